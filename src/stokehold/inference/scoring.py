"""How likely a model finds a given text: the log-probability of every token after those before it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stokehold.core.errors import InputError
from stokehold.inference.borrow import borrowed
from stokehold.inference.cache import growing_cache
from stokehold.inference.engine import ContextError, Engine

CHUNK_TOKENS = 256
"""Tokens that go through the model at once: bounds the logits that are held, whatever the length of the text."""


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The token that the model would have chosen, and its log-probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TextLogprobs:
    """`logprobs` are natural logs, one per token but the first; `likeliest` has those in their places, and one more for
    the token after the text."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    likeliest: tuple[Likeliest, ...]


def text_logprobs(engine: Engine, token_ids: Sequence[int]) -> TextLogprobs:
    """Reads one text; the model is borrowed and handed back as it was.

    `ContextError` when the text leaves no room for a token after it, `InputError` when it is empty or holds a number
    that is no token of the model.
    """
    embedded = engine.model.get_input_embeddings().weight
    assert isinstance(embedded, torch.Tensor)
    ids, tokens = list(token_ids), embedded.shape[0]
    if not ids or min(ids) < 0 or max(ids) >= tokens:
        raise InputError("not a text of this model's tokens", f"{len(ids)} ids", f"ids go from 0 to {tokens - 1}")
    if len(ids) >= engine.context_tokens:
        raise ContextError("the text does not fit the context", f"{len(ids)} tokens", "send a shorter one")
    given: list[float] = []
    best: list[Likeliest] = []
    with borrowed(engine.model):
        cache = growing_cache(engine.model.config)
        for start in range(0, len(ids), CHUNK_TOKENS):
            part = ids[start : start + CHUNK_TOKENS]
            following = ids[start + 1 : start + 1 + len(part)]
            read = torch.tensor([part], device=engine.model.device)
            logits = engine.model(input_ids=read, past_key_values=cache, use_cache=True).logits[0]
            logprobs = logits.float().log_softmax(-1)  # [part, vocabulary]
            wanted = torch.tensor(following, device=logits.device)[:, None]
            given += logprobs[: len(following)].gather(-1, wanted)[:, 0].tolist()
            values, chosen = logprobs.max(-1)
            best += [Likeliest(*pair) for pair in zip(chosen.tolist(), values.tolist(), strict=True)]
    return TextLogprobs(tuple(ids), tuple(given), tuple(best))
