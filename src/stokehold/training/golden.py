"""Golden logits: what the live weights said of a few fixed tokens when a checkpoint was taken, in a few kilobytes.

Whoever loads the checkpoint later asks the same again. On a machine with the same arithmetic the answer has the same
bits; elsewhere it is within the `TOLERANCE` of its type. Weights that were lost, mixed up or read in another order
answer otherwise, also where every file has the hash that its manifest states.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from blake3 import blake3
from safetensors.torch import load, save
from transformers import PreTrainedModel

from stokehold.core.errors import IntegrityError
from stokehold.training.arithmetic import arithmetic
from stokehold.training.cuda import random_kept

FORMAT = "1"
TOKENS = 64
POSITIONS = 16
TARGETS = 64
ATTENTION = "eager"
"""As the model's authors wrote it: what every copy of the model has, whoever loaded it."""

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}
"""Largest difference of a log-probability, in nats, that other arithmetic may make, by the type of the weights."""


@dataclass(frozen=True)
class Golden:
    """`logprobs` [positions, targets] and their log-sum-exp [positions] in float32, nats, after `ids` [tokens].

    `facts` are what the bits depend on beside the weights.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    logprobs: torch.Tensor
    sums: torch.Tensor
    facts: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        metadata = {"format": FORMAT, "facts": json.dumps(self.facts, sort_keys=True)}
        return save({name: getattr(self, name) for name in TENSORS}, metadata)

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> "Golden":
        """What `to_bytes` gave; IntegrityError for anything else."""
        try:
            tensors = load(content)
            length = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + length])["__metadata__"]
            facts = json.loads(metadata["facts"])
            given = {name: tensors[name] for name in TENSORS}
        except Exception as error:
            raise IntegrityError(f"no golden logits: {error}", where, "use another version") from error
        if metadata["format"] != FORMAT:
            raise IntegrityError(f"golden logits of format {metadata['format']}", where, "upgrade stokehold")
        return cls(**given, facts=facts)


TENSORS = ("ids", "positions", "targets", "logprobs", "sums")


@dataclass(frozen=True, slots=True)
class Agreement:
    """How what was found stands to what was recorded: `worst` is the largest difference in nats, NaN where there is
    one. Where `exact` is asked of it nothing but the same bits will do.
    """

    equal: bool
    worst: float
    tolerance: float
    exact: bool
    differences: tuple[str, ...]
    """Facts that differ: `threads 1 -> 2`."""

    @property
    def ok(self) -> bool:
        return self.equal or (not self.exact and self.worst <= self.tolerance)


def golden(model: PreTrainedModel, like: Golden | None = None) -> Golden:
    """What `model` says now, of the tokens of `like` or of the fixed ones of its vocabulary.

    One forward pass over `TOKENS` tokens without autograd. Weights, modes, attention and random state stay as they are.
    """
    ids, positions, targets = (like.ids, like.positions, like.targets) if like else _questions(model)
    with _asked(model):
        answer = model(input_ids=ids[None].to(model.device), use_cache=False, logits_to_keep=positions.to(model.device))
        logits = answer.logits[0].float()
        sums = logits.logsumexp(-1)
        chosen = logits[:, targets.to(model.device)] - sums[:, None]
    facts = {**arithmetic(model.device), "dtype": _dtype(model), "transformers": transformers.__version__}
    return Golden(ids, positions, targets, chosen.cpu().contiguous(), sums.cpu(), facts)


def agreement(recorded: Golden, found: Golden) -> Agreement:
    """Compares what was recorded with what the same questions gave; both must be of the same tokens."""
    pairs = [(getattr(recorded, name), getattr(found, name)) for name in ("logprobs", "sums")]
    equal = all(torch.equal(before, now) for before, now in pairs)
    worst = max(float((before - now).abs().max()) for before, now in pairs)
    if any(not now.isfinite().all() for _, now in pairs):
        worst = math.nan
    keys = sorted(recorded.facts.keys() | found.facts.keys())
    unlike = [key for key in keys if recorded.facts.get(key) != found.facts.get(key)]
    told = tuple(f"{key} {recorded.facts.get(key)} -> {found.facts.get(key)}" for key in unlike)
    # Kernels of a CUDA device may sum in another order each time, unless they were asked not to.
    steady = found.facts["device"] == "cpu" or found.facts["deterministic"]
    tolerance = max(TOLERANCE[one.facts["dtype"]] for one in (recorded, found))
    return Agreement(equal, worst, tolerance, bool(steady and not unlike), told)


def _questions(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, positions and target ids: of vocabulary and context alone, the same for ever."""
    config = model.config.get_text_config()
    vocabulary = int(config.vocab_size)
    tokens = min(TOKENS, getattr(config, "max_position_embeddings", None) or TOKENS)
    ids, targets = _drawn("ids", tokens, vocabulary), _drawn("targets", TARGETS, vocabulary)
    return ids, torch.linspace(0, tokens - 1, min(POSITIONS, tokens)).long(), targets


def _drawn(what: str, count: int, vocabulary: int) -> torch.Tensor:
    """[count] ids below `vocabulary`; from the bits of a hash, so that no library's sampler is in them."""
    bits = blake3(f"golden {what} {vocabulary}".encode()).digest(length=8 * count)
    words = (int.from_bytes(bits[8 * n : 8 * n + 8], "little") for n in range(count))
    return torch.tensor([word % vocabulary for word in words])


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


@contextmanager
def _asked(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode, `ATTENTION`, no autograd; all as before after it, and the random state too."""
    modes = [(module, module.training) for module in model.modules()]
    attention = model.config._attn_implementation
    try:
        model.set_attn_implementation(ATTENTION)
        for module, _ in modes:
            module.training = False
        with random_kept(model.device), torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(attention)
        for module, training in modes:
            module.training = training
