"""One optimiser step: forward and backward over packed micro-batches, clip, update."""

from collections.abc import Sequence
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


def optimiser_step(lineage: Lineage, batches: Sequence[Batch]) -> StepResult:
    """Updates the weights once from all `batches` together; raises DivergenceError before any weight changes."""
    training = lineage.config.training
    rate = learning_rate(training, lineage.step)
    loss_tokens = sum(int(batch.trained.sum()) for batch in batches)
    fingerprint = short_id(*(row for batch in batches for row in batch.row_ids))
    sums: dict[str, float] = {}
    entropy = 0.0
    lineage.optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        predictions = predict(lineage, batch)
        parts = weighted(predictions, lineage.config.objectives)
        total = torch.stack(list(parts.values())).sum() / loss_tokens
        total.backward()
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + float(part.detach())
        entropy += float(entropy_sum(predictions.logits))
    norm = float(torch.nn.utils.clip_grad_norm_(lineage.model.parameters(), training.max_grad_norm))
    components = {name: value / loss_tokens for name, value in sums.items()}
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
        token_entropy=entropy / loss_tokens,
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
