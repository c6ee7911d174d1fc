"""What keeps one bad batch, or too little memory, from ending a run.

A batch whose loss is no number, or far above what the file's batches had of late, changes no weight: the loop gives it
up as `BadBatch`, the run goes back to its newest checkpoint and passes over it. A batch that does not fit into memory
is divided by documents and its gradient accumulated: the same gradient, with less at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from stokehold.core.errors import DivergenceError, StokeholdError
from stokehold.core.identity import short_id
from stokehold.data.batches import Batch
from stokehold.store.failpoints import reach
from stokehold.training.state import Lineage, Progress
from stokehold.training.step import StepResult, Sums, accumulate, finish_step, trained_tokens

SPIKE_LEAST_NATS = 1.0
"""A loss that is no further above the mean is no spike: five times a very small loss is still small."""

SPIKE_LEAST_STEPS = 20
"""Steps on the file before a mean of its losses says anything."""

MEAN_SHARE = 0.1
"""Share of the newest loss in the exponential mean."""

PROBE_STEPS = 200
"""Steps after which a divided batch is tried with half as many parts."""

CPU_OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")
"""How torch's CPU allocator says it, in a plain RuntimeError."""


class BadBatch(DivergenceError):
    """A group of batches that must not be trained: its `key` in the run, its rows, and the step it would have been.

    `spike`: its loss is a number, but far above the file's others.
    """

    def __init__(self, cause: DivergenceError, group: Sequence[Batch], step: int, spike: bool = False) -> None:
        self.key, self.step, self.spike = group_key(group), step, spike
        self.examples = sum(batch.examples for batch in group)
        self.rows = tuple(row for batch in group for row in batch.row_ids)
        super().__init__(cause.what, cause.where, cause.fix)


def group_key(group: Sequence[Batch]) -> str:
    """Names a group of batches in its run: epoch and rows in order."""
    return f"{group[0].cursor.epoch}:{short_id(*(row for batch in group for row in batch.row_ids))}"


def level_key(step: int) -> str:
    """Says among a run's skips that from this step on its losses stand on another level."""
    return f"level:{step}"


def ceiling(progress: Progress, factor: float) -> float:
    """The loss in nats above which a batch is a spike; infinite where that is unknown or not asked for."""
    if factor <= 0 or progress.mean_loss is None or progress.steps < SPIKE_LEAST_STEPS:
        return math.inf
    return max(factor * progress.mean_loss, progress.mean_loss + SPIKE_LEAST_NATS)


def mean_with(progress: Progress, loss: float) -> float:
    """The exponential mean of the run's losses with one more."""
    before = progress.mean_loss
    return loss if before is None else (1 - MEAN_SHARE) * before + MEAN_SHARE * loss


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not get the memory for a tensor, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in CPU_OUT_OF_MEMORY)


def guarded_step(lineage: Lineage, group: Sequence[Batch], highest: float, note: Callable[[str], None]) -> StepResult:
    """One optimiser step, in as many parts as memory asks for. `note` is told when their number changes.

    Raises BadBatch, with no weight changed, where the loss is not finite or above `highest`.
    """
    if text := probe(lineage):
        note(text)
    loss_tokens = trained_tokens(group)
    sums = _within_memory(lineage, group, loss_tokens, note)
    loss = sum(float(value) for value in sums.components.values()) / loss_tokens
    if loss > highest:
        where = f"step {lineage.step + 1}, loss {loss:.4g}, more than {highest:.4g}"
        spike = DivergenceError("the loss rose suddenly", where, "look at the rows; no weight was changed")
        raise BadBatch(spike, group, lineage.step + 1, spike=True)
    reach("step.computed")
    try:
        return finish_step(lineage, group, sums, loss_tokens)
    except DivergenceError as error:
        raise BadBatch(error, group, lineage.step + 1) from error


def _within_memory(lineage: Lineage, group: Sequence[Batch], loss_tokens: int, note: Callable[[str], None]) -> Sums:
    while True:
        try:
            return accumulate(lineage, divided(group, lineage.parts) if lineage.parts > 1 else group, loss_tokens)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # its frames hold the step's tensors
        lineage.optimizer.zero_grad(set_to_none=True)
        note(divide_further(lineage, group, failure))


def divided(group: Sequence[Batch], parts: int) -> list[Batch]:
    """Each batch as at most `parts` batches of whole documents, about equal in tokens; their documents in order."""
    return [piece for batch in group for piece in _pieces(batch, parts)]


def most_parts(group: Sequence[Batch]) -> int:
    """How far a group can be divided: documents stay whole."""
    return max(len(batch.lengths) for batch in group)


def divide_further(lineage: Lineage, group: Sequence[Batch], error: RuntimeError) -> str:
    """Doubles the parts that batches are divided into; returns what to tell. Raises where documents are alone already.

    The caller must have let go of the failed step's tensors.
    """
    if lineage.parts >= most_parts(group):
        longest = max(length for batch in group for length in batch.lengths)
        fix = "lower data.max_length, set training.gradient_checkpointing, or take a smaller model"
        raise StokeholdError("memory does not hold one document", f"{longest} tokens", fix) from error
    lineage.parts, lineage.parts_since = lineage.parts * 2, lineage.step
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return f"step {lineage.step + 1}: memory ran out; each batch now goes in {lineage.parts} parts, with equal gradient"


def probe(lineage: Lineage) -> str | None:
    """Halves the parts again after `PROBE_STEPS` good steps; returns what to tell, None where nothing changed."""
    if lineage.parts == 1 or lineage.step - lineage.parts_since < PROBE_STEPS:
        return None
    lineage.parts, lineage.parts_since = lineage.parts // 2, lineage.step
    return f"step {lineage.step + 1}: trying each batch in {lineage.parts} parts again"


def _pieces(batch: Batch, parts: int) -> list[Batch]:
    ends = np.cumsum(batch.lengths)
    share = np.minimum((ends - 1) * parts // ends[-1], parts - 1)
    documents = [np.flatnonzero(share == part) for part in range(parts)]
    return [_piece(batch, ends, chosen) for chosen in documents if len(chosen)]


def _piece(batch: Batch, ends: np.ndarray, chosen: np.ndarray) -> Batch:
    first, last = int(chosen[0]), int(chosen[-1])
    span = slice(int(ends[first]) - batch.lengths[first], int(ends[last]))
    return replace(
        batch,
        ids=batch.ids[span],
        trained=batch.trained[span],
        positions=batch.positions[span],
        lengths=batch.lengths[first : last + 1],
    )
