"""OpenAI's chat completions and likelihoods on the wire: what a request may say, what an answer looks like.

A field that would change the answer and is not supported is refused; fields that only describe the request are let
through.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stokehold.core.records import Message
from stokehold.inference.worker import Finished, Measured, Started

MAX_ANSWERS = 16
"""Largest `n`: answers are generated one after another."""

MAX_STOPS = 16
MAX_TEXTS = 64
"""Most prompts of one request for likelihoods."""

ROLES: Mapping[str, str] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "audio": (),
    "modalities": (["text"],),
}
"""Fields that change the answer, with the values besides null that ask for nothing."""


class TextPart(BaseModel):
    """A part of a message's content; text only."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def message(self) -> Message:
        """The turn as our record; parts are joined without anything between."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(ROLES[self.role], text)


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def refuse_unsupported(self) -> "ChatRequest":
        for name, value in (self.model_extra or {}).items():
            if name in UNSUPPORTED and value is not None and value not in UNSUPPORTED[name]:
                raise ValueError(f"{name} is not supported")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def token_limit(self) -> int | None:
        """Longest answer in tokens; None for all the context has room for."""
        return self.max_completion_tokens or self.max_tokens


class LikelihoodRequest(BaseModel):
    """`POST /v1/completions`, as far as it asks how likely a text is: the prompt is echoed with its log-probabilities.

    With `max_tokens` 1 the likeliest next token stands behind it.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    prompt: list[int] | Annotated[list[list[int]], Field(min_length=1, max_length=MAX_TEXTS)]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=1)
    max_tokens: int = Field(16, ge=0)
    temperature: float = Field(1.0, ge=0, le=2)
    seed: int | None = None
    user: str | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def refuse_text(cls, value: Any) -> Any:
        if isinstance(value, str) or (isinstance(value, list) and any(isinstance(one, str) for one in value)):
            raise ValueError("text is not supported here: send token ids")
        return value

    @model_validator(mode="after")
    def refuse_answers(self) -> "LikelihoodRequest":
        if not self.echo or self.logprobs is None or self.max_tokens > 1 or (self.max_tokens and self.temperature):
            only = (
                "only likelihoods of a prompt are served: echo true, logprobs 0 or 1, temperature 0, max_tokens 0 or 1"
            )
            raise ValueError(f"{only}; /v1/chat/completions answers")
        return self

    @property
    def texts(self) -> list[list[int]]:
        """The prompts, each as token ids."""
        several = [one for one in self.prompt if isinstance(one, list)]
        return several or [[token for token in self.prompt if isinstance(token, int)]]


class Envelope:
    """What all chunks of one response share."""

    def __init__(self, started: Started) -> None:
        self._id, self._created = f"chatcmpl-{uuid4().hex}", int(time.time())
        self._started = started

    def whole(self, texts: Sequence[str], ends: Sequence[Finished]) -> dict[str, Any]:
        """A `chat.completion`."""
        choices = [
            {
                "index": end.index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": end.finish_reason,
            }
            for text, end in zip(texts, ends, strict=True)
        ]
        return {**self._frame("chat.completion"), "choices": choices, "usage": usage(ends)}

    def chunk(self, index: int, delta: Mapping[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        """A `chat.completion.chunk` of answer number `index`."""
        choice = {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}
        return {**self._frame("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, ends: Sequence[Finished]) -> dict[str, Any]:
        """The last chunk of a stream that was asked to tell its usage."""
        return {**self._frame("chat.completion.chunk"), "choices": [], "usage": usage(ends)}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._started.model,
            "system_fingerprint": self._started.weights_hash,
        }


def likelihoods(body: LikelihoodRequest, started: Started, found: Sequence[Measured]) -> dict[str, Any]:
    """A `text_completion` that says what was asked, with the log-probability of every token but the first."""
    prompt, generated = sum(len(one.found.token_ids) for one in found), body.max_tokens * len(found)
    return {
        "id": f"cmpl-{uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": started.model,
        "system_fingerprint": started.weights_hash,
        "choices": [_likelihood(one, body.max_tokens, body.logprobs or 0) for one in found],
        "usage": {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated},
    }


def _likelihood(one: Measured, generated: int, top: int) -> dict[str, Any]:
    found, after = one.found, one.found.likeliest[-1]
    best = found.likeliest[: len(found.logprobs) + generated]
    tokens = [one.tokens[token] for token in found.token_ids] + [one.tokens[after.token_id]] * generated
    logprobs = {
        "tokens": tokens,
        "token_logprobs": [None, *found.logprobs, *[after.logprob] * generated],
        "top_logprobs": [None, *({one.tokens[each.token_id]: each.logprob} for each in best)] if top else None,
        "text_offset": [0, *accumulate(map(len, tokens[:-1]))],
    }
    return {"index": one.index, "text": "".join(tokens), "logprobs": logprobs, "finish_reason": "length"}


def usage(ends: Sequence[Finished]) -> dict[str, int]:
    """Tokens of one response; the prompt counts once, however many answers it got."""
    prompt = ends[0].prompt_tokens if ends else 0
    completion = sum(end.completion_tokens for end in ends)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def model_list(names: Sequence[str]) -> dict[str, Any]:
    """`GET /v1/models`."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "stokehold"} for name in names],
    }
