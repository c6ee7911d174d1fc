"""The one thread that runs the model: requests wait in a queue and are answered one at a time, first come first served.

A request is an `Ask`; what becomes of it is delivered as events, piece by piece, in the worker's thread. The model is
swapped between two requests, never inside one.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from stokehold.core.errors import BusyError, StokeholdError
from stokehold.core.records import Message
from stokehold.inference.registry import Registry, Served
from stokehold.inference.scoring import TextLogprobs, text_logprobs

MAX_WAITING = 256
"""Requests in the queue; one more is refused at once instead of timing out later."""

POLL_S = 0.2
"""How often an idle worker looks whether it should end."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """The model that answers, before its first piece."""

    model: str
    weights_hash: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that answer number `index` goes on with."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Answer number `index` has ended: stop or length, and its tokens."""

    index: int
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """How likely text number `index` is; `tokens` are its tokens and the likeliest ones as text, by id."""

    index: int
    found: TextLogprobs
    tokens: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Failed:
    """The request came to nothing; the last event of its kind."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Done:
    """All answers were given; the last event."""


Event = Started | Piece | Finished | Measured | Failed | Done


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. Answer `i` of `n` samples with `seed + i`; setting `cancelled` ends it at the next token."""

    model: str
    messages: Sequence[Message]
    deliver: Callable[[Event], None]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    n: int = 1
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Measure:
    """A request for the likelihoods of texts given as token ids; nothing is generated."""

    model: str
    texts: Sequence[Sequence[int]]
    deliver: Callable[[Event], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker(threading.Thread):
    """Owns the registry's model. `close` ends it at the next token."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(name="model", daemon=True)
        self.registry = registry
        self._waiting: queue.Queue[Ask | Measure] = queue.Queue(MAX_WAITING)
        self.closing = threading.Event()

    def submit(self, ask: Ask | Measure) -> None:
        """Queues a request; `BusyError` when too many wait."""
        try:
            self._waiting.put_nowait(ask)
        except queue.Full as error:
            raise BusyError(
                "too many requests are waiting", f"{MAX_WAITING} in the queue", "try again later"
            ) from error

    def close(self) -> None:
        """Ends the thread at the next token; requests still waiting are told."""
        self.closing.set()
        self.join()

    def run(self) -> None:
        while not (self.closing.is_set() and self._waiting.empty()):
            try:
                ask = self._waiting.get(timeout=POLL_S)
            except queue.Empty:
                continue
            try:
                self._answer(ask)
            except StokeholdError as error:
                ask.deliver(Failed(error))
            except Exception as error:
                log.exception("a request failed")
                ask.deliver(Failed(error))

    def _answer(self, ask: Ask | Measure) -> None:
        if ask.cancelled.is_set():
            return
        served = self.registry.current(ask.model)
        ask.deliver(Started(served.name, served.weights_hash))
        for index in range(len(ask.texts) if isinstance(ask, Measure) else ask.n):
            if ask.cancelled.is_set():
                return
            if isinstance(ask, Measure):
                self._measure(ask, served, index)
            else:
                self._generate(ask, served, index)
        ask.deliver(Done())

    def _measure(self, ask: Measure, served: Served, index: int) -> None:
        if self.closing.is_set():
            raise BusyError("the server is stopping", ask.model, "ask again")
        found = text_logprobs(served.engine, ask.texts[index])
        ids = {*found.token_ids, *(one.token_id for one in found.likeliest)}
        tokens = {token: served.engine.tokenizer.decode([token], keep_special=True) for token in ids}
        ask.deliver(Measured(index, found, tokens))

    def _generate(self, ask: Ask, served: Served, index: int) -> None:
        seed = None if ask.seed is None else ask.seed + index
        answer = served.engine.stream(
            ask.messages, ask.max_new_tokens, ask.temperature, ask.top_p, seed=seed, stop=ask.stop
        )
        for text in answer:
            if ask.cancelled.is_set():
                return
            if self.closing.is_set():
                raise BusyError("the server is stopping", ask.model, "ask again")
            ask.deliver(Piece(index, text))
        ended = answer.finish_reason or "stop"
        ask.deliver(Finished(index, ended, answer.prompt_tokens, answer.completion_tokens))
