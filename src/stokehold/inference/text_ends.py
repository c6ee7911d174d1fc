"""How much of an answer's text is there after each of its tokens, in time linear in the answer.

A character of several bytes may come in several tokens; it is there with the last of them. Most answers have none, and
most tokenizers write a text as the texts of its tokens one after another: then lengths add up. Otherwise a window of
the last tokens is decoded at every token, as long as it must be to end between two characters.
"""

from collections.abc import Sequence
from itertools import accumulate

from stokehold.data.profile import answer_span
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.inference.streaming import UNFINISHED

CHARACTER_TOKENS = 4
"""No character of UTF-8 has more bytes, and no token has less than one."""


class TextEnds:
    """For one tokenizer; remembers the texts of its tokens."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def __call__(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """The answer that these tokens are, and how many of its characters are there after each of them."""
        whole = self._tokenizer.decode(ids)
        texts = [self._text(token) for token in ids]
        added_up = UNFINISHED not in whole and "".join(texts) == whole
        ends = list(accumulate(map(len, texts))) if added_up else self._windowed(ids)
        ends[-1:] = [len(whole)] if ids else []
        start, end = answer_span(whole) if self._tokenizer.profile else (0, len(whole))
        return whole[start:end], tuple(min(max(place, start), end) - start for place in ends)

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]

    def _windowed(self, ids: Sequence[int]) -> list[int]:
        """Ends by decoding the last tokens; what cannot be read as text counts once something readable follows."""
        ends: list[int] = []
        first = before = 0  # of the window: its first token, the characters before its text
        for place in range(len(ids)):
            text = self._tokenizer.decode(ids[first : place + 1])
            # A character that is there stays, though some decoders unread it while the next one is unfinished.
            ends.append(max(before + len(text.rstrip(UNFINISHED)), ends[-1] if ends else 0))
            if text and not text.endswith(UNFINISHED):
                last, kept = self._last_character(ids, first, place)
                first, before = last, before + len(text) - kept
        return ends

    def _last_character(self, ids: Sequence[int], first: int, place: int) -> tuple[int, int]:
        """Where to begin so that the tokens through `place` are text, and its length; at most the whole window.

        Those tokens stay in the window: some decoders write a first word otherwise than a later one.
        """
        for begin in range(place, max(first, place - CHARACTER_TOKENS), -1):
            text = self._tokenizer.decode(ids[begin : place + 1])
            if text and UNFINISHED not in text:
                return begin, len(text)
        return first, len(self._tokenizer.decode(ids[first : place + 1]))
