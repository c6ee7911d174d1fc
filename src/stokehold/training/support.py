"""Which models can be trained packed, decided when one is loaded and not by what the loss looks like later.

What the config says is read first. Then the model shows it: a few short documents in one row must give the logits
that each gives alone under the model's own attention, whatever their neighbours are.
"""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stokehold.core.errors import InputError
from stokehold.core.rope import extrapolates, steady_context
from stokehold.data.batches import Batch, Cursor
from stokehold.training import attention
from stokehold.training.attention import refusal
from stokehold.training.forward import bare, project, trained_logits, trained_states

LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layer whose documents can be kept apart; a convolution or a recurrence runs across them."""

PROBE = (5, 1, 7)
"""Tokens of the documents that a model is tried on."""

EXACT = frozenset({torch.float32, torch.float64})

LEAK, HALF_LEAK = 1e-3, 0.02
"""Relative change that a document's logits may show when the documents beside it are others. Shapes stay the same, so
there is none but where tokens are sorted among experts; layers that mix documents gave 0.1 and more."""

ERROR, HALF_ERROR = 1e-3, 0.2
"""Relative error that logits may have beside those of the documents alone. Rounding gave 5e-7 in float32 and 0.015 in
bfloat16 in two layers of the families that are tested, and grows with depth."""

TINY = 1e-12
"""Logits shorter than this are nought, as those of a head that was never trained may be."""


def admit(model: PreTrainedModel, max_length: int) -> None:
    """Returns when `model` can be trained on documents of up to `max_length` tokens in packed rows.

    InputError with the reason otherwise. The model is in eval mode with `attention.NAME`, as when it was just loaded;
    nothing of it is changed, nor the random state.
    """
    _refuse_by_class(model)
    _refuse_by_config(model.config.get_text_config(), max_length)
    batch = _probe_batch(model)
    try:
        together = _together(model, batch)
    except (AttributeError, TypeError) as error:
        raise refusal(f"its code does not go with packed rows: {error}", type(model).__name__) from error
    exact, name = model.dtype in EXACT, type(model).__name__
    leak = _leak(model, batch, together)
    if not leak <= (LEAK if exact else HALF_LEAK):
        raise refusal(f"packed documents see each other: other neighbours change logits by {leak:.1e}", name)
    apart = _relative(together, _alone(model, batch))
    if not apart <= (ERROR if exact else HALF_ERROR):
        raise refusal(f"packed documents do not give the logits they give alone: they differ by {apart:.1e}", name)


def projects(model: PreTrainedModel) -> bool:
    """Whether `forward.project` gives the model's own logits; where it does not, only `trained_logits` is right."""
    if not isinstance(bare(model).get_decoder(), PreTrainedModel):
        return False
    batch = _probe_batch(model)
    with torch.no_grad():
        found = project(model, trained_states(model, batch))
    return _relative(found, _together(model, batch)) <= (ERROR if model.dtype in EXACT else HALF_ERROR)


def _refuse_by_class(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if not (model._supports_attention_backend and model._can_set_attn_implementation()):
        raise refusal("its attention cannot be exchanged for one that keeps packed documents apart", name)
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise refusal("it cannot give logits for chosen positions (no logits_to_keep)", name)
    if model.config.is_encoder_decoder:
        raise refusal("it has an encoder", name)


def _refuse_by_config(config: Any, max_length: int) -> None:
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - LAYERS)
    if strange:
        raise refusal(f"layers of kind {', '.join(strange)} cannot keep packed documents apart", config.model_type)
    rope = getattr(config, "rope_parameters", None)
    steady = steady_context(rope, getattr(config, "max_position_embeddings", None) or max_length)
    if max_length > steady and not extrapolates(rope):
        raise InputError(
            f"it reads a document the same whatever shares its row only up to {steady} tokens",
            f"{config.model_type}, data.max_length {max_length}",
            f"set data.max_length to {steady} or less",
        )


def _probe_batch(model: PreTrainedModel) -> Batch:
    """Documents of distinct tokens from the whole vocabulary, every position but the first of each trained."""
    tokens = sum(PROBE)
    vocabulary = model.config.get_text_config().vocab_size
    positions = np.concatenate([np.arange(length, dtype=np.int64) for length in PROBE])
    return Batch(
        ids=np.linspace(0, vocabulary - 1, tokens + 2).astype(np.int64)[1:-1],
        trained=positions > 0,
        positions=positions,
        lengths=PROBE,
        row_ids=("probe",),
        examples=len(PROBE),
        cursor=Cursor.start(),
        fingerprint="probe",
    )


def _together(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return trained_logits(model, batch)


def _leak(model: PreTrainedModel, batch: Batch, together: torch.Tensor) -> float:
    """How much the last document's logits change when the tokens before it do."""
    last = PROBE[-1]
    others = np.concatenate([batch.ids[:-last][::-1], batch.ids[-last:]])
    changed = _together(model, replace(batch, ids=others))
    return _relative(changed[1 - last :], together[1 - last :])


def _alone(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Logits of every document by itself, attended as the model's authors wrote it."""
    ids = torch.from_numpy(batch.ids).to(model.device)
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            documents = torch.split(ids, list(PROBE))
            logits = [model(input_ids=one[None], use_cache=False).logits[0, :-1] for one in documents]
    finally:
        model.set_attn_implementation(attention.NAME)
    return torch.cat(logits)


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance between logits relative to their length, of the token that three quarters do better than; NaN where any
    is not a number. A few may be far off in half precision, where another expert is chosen."""
    distances = (found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1).clamp_min(TINY)
    return float(distances.quantile(0.75))
