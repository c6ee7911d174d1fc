"""One optimiser step: forward and backward over packed micro-batches, clip, update."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedModel

from stokehold.core.errors import DivergenceError
from stokehold.core.identity import short_id
from stokehold.data.batches import Batch
from stokehold.training.forward import bare, project, trained_logits, trained_states
from stokehold.training.objectives import Predictions, entropy_sum, weighted
from stokehold.training.optimizer import learning_rate, set_rate
from stokehold.training.state import Lineage
from stokehold.training.support import projects

Head = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states [n, hidden] to logits [n, vocabulary]."""


@dataclass(frozen=True)
class StepResult:
    """Readings of one step: `loss` and `components` are means in nats over `loss_tokens`."""

    loss: float
    components: dict[str, float]
    learning_rate: float
    grad_norm: float
    tokens: int
    loss_tokens: int
    examples: int
    token_entropy: float
    fingerprint: str


@dataclass(frozen=True)
class Sums:
    """Sums over trained positions, in nats, still on the device: weight × component by name, and the entropy."""

    components: Mapping[str, torch.Tensor]
    entropy: torch.Tensor


def optimiser_step(lineage: Lineage, batches: Sequence[Batch]) -> StepResult:
    """Updates the weights once from all `batches` together; raises DivergenceError before any weight changes."""
    loss_tokens = trained_tokens(batches)
    return finish_step(lineage, batches, accumulate(lineage, batches, loss_tokens), loss_tokens)


def trained_tokens(batches: Sequence[Batch]) -> int:
    """Positions that carry loss: what a step's sums are divided by."""
    return sum(int(batch.trained.sum()) for batch in batches)


def accumulate(lineage: Lineage, batches: Sequence[Batch], loss_tokens: int) -> Sums:
    """Forward and backward of every batch, one after the other; gradients of anything before are dropped.

    The loss is the sum over the batches' trained positions divided by `loss_tokens`, so that the gradient depends on
    the documents only, not on how they are cut into batches. May be called again after it raised.
    """
    lineage.optimizer.zero_grad(set_to_none=True)
    found = [_backward(lineage, batch, loss_tokens) for batch in batches]
    names = found[0].components
    return Sums(
        {name: torch.stack([one.components[name] for one in found]).sum() for name in names},
        torch.stack([one.entropy for one in found]).sum(),
    )


def _backward(lineage: Lineage, batch: Batch, loss_tokens: int) -> Sums:
    predictions = predict(lineage, batch)
    parts = weighted(predictions, lineage.config.objectives)
    (torch.stack(list(parts.values())).sum() / loss_tokens).backward()
    return Sums({name: part.detach() for name, part in parts.items()}, entropy_sum(predictions))


def finish_step(lineage: Lineage, batches: Sequence[Batch], sums: Sums, loss_tokens: int) -> StepResult:
    """Clips the gradients that `accumulate` left, checks, and updates the weights.

    Raises DivergenceError before any weight changes when the loss or the gradient's norm is not finite.
    """
    training = lineage.config.training
    rate = learning_rate(training, lineage.step)
    fingerprint = short_id(*(row for batch in batches for row in batch.row_ids))
    slopes = [p.grad for p in lineage.model.parameters() if p.grad is not None]
    total = get_total_norm(slopes)
    norm = float(total)
    components = {name: float(value) / loss_tokens for name, value in sums.components.items()}
    loss = sum(components.values())
    if not (np.isfinite(loss) and np.isfinite(norm)):
        where = f"step {lineage.step + 1}, batch {fingerprint}, loss {loss}, gradient norm {norm}"
        raise DivergenceError("the loss is not finite", where, "lower training.learning_rate; no weight was changed")
    if norm > training.max_grad_norm:
        clip_grads_with_norm_(lineage.model.parameters(), training.max_grad_norm, total)
    set_rate(lineage.optimizer, rate)
    lineage.optimizer.step()
    lineage.step += 1
    return StepResult(
        loss=loss,
        components=components,
        learning_rate=rate,
        grad_norm=norm,
        tokens=sum(len(batch.ids) for batch in batches),
        loss_tokens=loss_tokens,
        examples=sum(batch.examples for batch in batches),
        token_entropy=float(sums.entropy) / loss_tokens,
        fingerprint=fingerprint,
    )


def predict(lineage: Lineage, batch: Batch) -> Predictions:
    """What the model says where loss is, and nowhere else: its head runs on trained positions only."""
    model = lineage.model
    targets = torch.from_numpy(batch.ids[batch.trained]).to(lineage.device)
    if model not in _HEADS:
        _HEADS[model] = head_of(model)
    head = _HEADS[model]
    if head is None:
        return Predictions(trained_logits(model, batch), targets)
    return Predictions(trained_states(model, batch), targets, head)


_HEADS: WeakKeyDictionary[PreTrainedModel, Head | None] = WeakKeyDictionary()
"""What `head_of` found for the models in memory: finding it takes a few forward passes."""


def head_of(model: PreTrainedModel) -> Head | None:
    """The way from hidden states to logits: a bare matrix where it is no more than that, None where only the model
    itself knows. Weights, modes and the random state stay as they are.
    """
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.no_grad():
        model.eval()
        found = _find_head(model)
    for module, training in modes:
        module.training = training
    return found


def _find_head(model: PreTrainedModel) -> Head | None:
    if not projects(model):
        return None
    head: torch.nn.Module = bare(model).get_output_embeddings()
    has_bias = getattr(head, "bias", None) is not None
    # No subclass: quantised and adapted matrices are linear too, and their weight is not the matrix.
    if type(head) is torch.nn.Linear and not has_bias:
        states = torch.randn(2, head.in_features, dtype=head.weight.dtype, device=head.weight.device)
        if torch.equal(project(model, states), head(states)):
            return head
    return partial(project, model)
