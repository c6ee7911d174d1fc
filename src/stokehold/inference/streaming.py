"""One answer, token by token: sampling, text that never shows half a character, stop strings.

`Generation` is an iterator of text pieces whose concatenation is the answer. It samples with its own generator, so
the process's RNG is left alone, and borrows the model for one token at a time.
"""

from collections.abc import Generator, Iterator, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from stokehold.data.tokenizer import ChatTokenizer
from stokehold.inference.borrow import borrowed
from stokehold.inference.cache import growing_cache
from stokehold.inference.decoding import Penalty

UNFINISHED = "\ufffd"
"""What a tokenizer decodes the first bytes of a longer character to."""


class TextAssembler:
    """Turns a growing list of token ids into text pieces.

    A piece is held back while it may still change: bytes of an unfinished character, or the beginning of a stop
    string. Text from a stop string on is dropped.
    """

    def __init__(self, tokenizer: ChatTokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._ids: list[int] = []
        self._shown = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that became certain with this token; sets `stopped` when a stop string is complete."""
        self._ids.append(token)
        text = self._tokenizer.answer_text(self._ids, complete=False)
        found = [at for at in (text.find(stop, self._shown) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._show(text, min(found))
        if text.endswith(UNFINISHED):
            return ""
        return self._show(text, len(text) - self._held(text))

    def finish(self) -> str:
        """What was held back, once no more tokens come."""
        text = self._tokenizer.answer_text(self._ids)
        return "" if self.stopped else self._show(text, len(text))

    def _held(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        sizes = range(min(longest, len(text) - self._shown), 0, -1)
        return next((n for n in sizes if any(stop.startswith(text[-n:]) for stop in self._stop)), 0)

    def _show(self, text: str, end: int) -> str:
        piece = text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece


class Generation(Iterator[str]):
    """A running answer. `finish_reason` is None until it ends, then stop or length."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: ChatTokenizer,
        prompt: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | None,
        stop: Sequence[str],
        penalty: Penalty | None = None,
    ) -> None:
        self._model, self._tokenizer, self._prompt = model, tokenizer, list(prompt)
        self._budget, self._temperature, self._top_p = max_new_tokens, temperature, top_p
        self._random = torch.Generator(device=model.device)
        # Without a seed every request differs; drawn from the system, so that the global RNG stays where it is.
        self._random.seed() if seed is None else self._random.manual_seed(seed % 2**63)
        self._text = TextAssembler(tokenizer, stop)
        self._penalty, self._answer = penalty, list[int]()
        self._pieces: Generator[str, None, None] = self._run()
        self.prompt_tokens = len(self._prompt)
        self.completion_tokens = 0
        self.finish_reason: str | None = None

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the answer early and frees its cache."""
        self._pieces.close()

    def _run(self) -> Generator[str, None, None]:
        cache = growing_cache(self._model.config)
        ids = torch.tensor([self._prompt], device=self._model.device)
        while self.finish_reason is None:
            token = self._next_token(ids, cache)
            self._answer.append(token)
            self.completion_tokens += 1
            ids = torch.tensor([[token]], device=self._model.device)
            piece = "" if token in self._tokenizer.stop_ids else self._text.push(token)
            if token in self._tokenizer.stop_ids or self._text.stopped:
                self.finish_reason = "stop"
            elif self.completion_tokens == self._budget:
                self.finish_reason = "length"
            if piece:
                yield piece
        if rest := self._text.finish():
            yield rest

    def _next_token(self, ids: torch.Tensor, cache: DynamicCache) -> int:
        with borrowed(self._model):
            logits = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        logits = logits.float()
        if self._penalty is not None:
            logits = self._penalty(logits[None], [0], [self._answer])[0]
        return sample_token(logits, self._temperature, self._top_p, self._random)


def sample_token(logits: torch.Tensor, temperature: float, top_p: float, random: torch.Generator) -> int:
    """A token id from `logits` [vocabulary]: arg-max at temperature 0, else one of the likeliest of mass top_p."""
    if temperature <= 0:
        return int(logits.argmax())
    shares, order = (logits / temperature).softmax(-1).sort(descending=True)
    # A token stays when the mass before it is below top_p; the first always does.
    shares = torch.where(shares.cumsum(-1) - shares < max(top_p, torch.finfo(shares.dtype).tiny), shares, 0)
    return int(order[torch.multinomial(shares, 1, generator=random)])
