"""The optional profile `emoji_think`: every answer stands between thinking marks and stop marks, counted as asked.

    user       …the turn…
               (blank line)
               Begin with 5 🤔 on a line of their own; end with 3 🛑 on a line of their own.
    assistant  🤔🤔🤔🤔🤔
               …the answer…
               🛑🛑🛑

Both counts follow from `data.seed` and the conversation before the answer, and from nothing else: training, a resumed
run, evaluation and the server ask the same of the same conversation, and earlier turns keep their marks as it grows.
The line is put behind the last turn before an answer, in training and at generation alike. Files, hashes, firewall,
scorers and clients only ever see conversations without marks; they are put on where text becomes tokens (`dress`) and
taken off where tokens become an answer (`unwrap`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stokehold.core.config import DataConfig
from stokehold.core.identity import short_id
from stokehold.core.records import Message

THINK, STOP = "🤔", "🛑"
THINK_MARKS, STOP_MARKS = range(2, 9), range(2, 5)
"""The counts an answer may be asked for."""

_FIRST = re.compile(f"\\A{THINK}+\n")
_LAST = re.compile(f"\n{STOP}+\\Z")
_UNFINISHED = "\ufffd*"
"""What the first bytes of a mark decode to."""

_PERHAPS_FIRST = re.compile(f"{THINK}*{_UNFINISHED}")
_PERHAPS_LAST = re.compile(f"\n{STOP}*{_UNFINISHED}\\Z")


@dataclass(frozen=True, slots=True)
class Marks:
    """How many marks one answer is asked for."""

    think: int
    stop: int

    @property
    def instruction(self) -> str:
        """What the turn before the answer says of them."""
        begin, end = f"Begin with {self.think} {THINK}", f"end with {self.stop} {STOP}"
        return f"\n\n{begin} on a line of their own; {end} on a line of their own."

    def wrap(self, answer: str) -> str:
        """The answer between its marks; `unwrap` gives it back."""
        return f"{THINK * self.think}\n{answer}\n{STOP * self.stop}"


@dataclass(frozen=True, slots=True)
class EmojiThink:
    """The profile under one `data.seed`."""

    seed: int

    @property
    def identity(self) -> str:
        """What the training form depends on beside the chat template."""
        return f"emoji_think:{self.seed}:{Marks(THINK_MARKS.start, STOP_MARKS.start).instruction}"

    def marks(self, messages: Sequence[Message]) -> Marks | None:
        """What the answer after these turns is asked for; None after an answer, or where nothing was said."""
        if not messages or messages[-1].role == "assistant":
            return None
        return _drawn(self._keys(messages)[-1])

    def dress(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation as the model reads it: asked for before each answer, and each answer as asked.

        Answers that no other turn stands before were not asked and stay bare; so do blank ones, which train nothing.
        """
        keys = self._keys(messages)
        dressed = []
        for place, message in enumerate(messages):
            coming = messages[place + 1] if place + 1 < len(messages) else None
            if message.role != "assistant":
                asks = coming is None or coming.role == "assistant"
                dressed.append(_with(message, message.content + _drawn(keys[place]).instruction) if asks else message)
            elif place > 0 and messages[place - 1].role != "assistant" and message.content.strip():
                dressed.append(_with(message, _drawn(keys[place - 1]).wrap(message.content)))
            else:
                dressed.append(message)
        return dressed

    def _keys(self, messages: Sequence[Message]) -> list[str]:
        """Per turn the identity of the conversation through it."""
        keys = [f"emoji_think:{self.seed}"]
        for message in messages:
            keys.append(short_id(keys[-1], message.role, message.content))
        return keys[1:]


def profile_of(config: DataConfig) -> EmojiThink | None:
    """The profile that the configuration names."""
    return EmojiThink(config.seed) if config.profile == "emoji_think" else None


def unwrap(text: str) -> str:
    """An answer without its line of thinking marks and its line of stop marks, however many there are of each.

    What stands there otherwise is the answer's own and stays: marks inside it, and text around them.
    """
    return text[slice(*answer_span(text))]


def answer_span(text: str) -> tuple[int, int]:
    """The characters [start, end) of `text` that `unwrap` leaves."""
    first = _FIRST.match(text)
    start = first.end() if first else 0
    last = _LAST.search(text, start)
    return start, last.start() if last else len(text)


def shown(text: str) -> str:
    """What is certain of an unwrapped answer while it grows: never takes back what it showed of a shorter one."""
    if _PERHAPS_FIRST.fullmatch(text):
        return ""
    return _PERHAPS_LAST.sub("", _FIRST.sub("", text, count=1), count=1)


def _drawn(key: str) -> Marks:
    number = int(key, 16)
    think, stop = number % len(THINK_MARKS), number // len(THINK_MARKS) % len(STOP_MARKS)
    return Marks(THINK_MARKS[think], STOP_MARKS[stop])


def _with(message: Message, content: str) -> Message:
    return Message(message.role, content)
