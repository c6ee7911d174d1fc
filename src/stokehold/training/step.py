"""One optimiser step: forward and backward over packed micro-batches, clip, update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stokehold.core.errors import DivergenceError
from stokehold.core.identity import short_id
from stokehold.data.batches import Batch
from stokehold.training.objectives import Predictions, entropy_sum, weighted
from stokehold.training.optimizer import learning_rate, set_rate
from stokehold.training.state import Lineage


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
    return Sums({name: part.detach() for name, part in parts.items()}, entropy_sum(predictions.logits))


def finish_step(lineage: Lineage, batches: Sequence[Batch], sums: Sums, loss_tokens: int) -> StepResult:
    """Clips the gradients that `accumulate` left, checks, and updates the weights.

    Raises DivergenceError before any weight changes when the loss or the gradient's norm is not finite.
    """
    training = lineage.config.training
    rate = learning_rate(training, lineage.step)
    fingerprint = short_id(*(row for batch in batches for row in batch.row_ids))
    norm = float(torch.nn.utils.clip_grad_norm_(lineage.model.parameters(), training.max_grad_norm))
    components = {name: float(value) / loss_tokens for name, value in sums.components.items()}
    loss = sum(components.values())
    if not (np.isfinite(loss) and np.isfinite(norm)):
        where = f"step {lineage.step + 1}, batch {fingerprint}, loss {loss}, gradient norm {norm}"
        raise DivergenceError("the loss is not finite", where, "lower training.learning_rate; no weight was changed")
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
    """Logits where loss is, and nowhere else: the head runs on trained positions only."""
    device = lineage.device
    targets_at = torch.from_numpy(np.flatnonzero(batch.trained)).to(device)
    ids = torch.from_numpy(batch.ids).to(device)
    edges = np.concatenate([[0], np.cumsum(batch.lengths)]).astype(np.int32)
    output = lineage.model(
        input_ids=ids[None],
        position_ids=torch.from_numpy(batch.positions).to(device)[None],
        logits_to_keep=targets_at - 1,
        cu_seq_lens_q=torch.from_numpy(edges),
        use_cache=False,
    )
    return Predictions(output.logits[0], ids[targets_at])
