"""How far a run over a file got: what a step adds to it, and whether it is complete. Pure bookkeeping."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from stokehold.core.errors import InputError, IntegrityError
from stokehold.core.records import Rejection
from stokehold.data.batches import Batch
from stokehold.training.guards import mean_with
from stokehold.training.state import Progress


def trained(progress: Progress, group: Sequence[Batch], rejected: Iterable[Rejection], loss: float) -> Progress:
    """Progress after a step on `group`; `rejected` are the lines refused since the step before."""
    return replace(
        _past(progress, group, rejected),
        examples=progress.examples + _examples(group),
        tokens=progress.tokens + sum(len(batch.ids) for batch in group),
        steps=progress.steps + 1,
        mean_loss=mean_with(progress, loss),
    )


def passed_over(progress: Progress, group: Sequence[Batch], rejected: Iterable[Rejection]) -> Progress:
    """Progress when `group` was not trained because it spoils a step."""
    return replace(_past(progress, group, rejected), skipped=progress.skipped + _examples(group))


def completed(progress: Progress, rows: int, epochs: int, rejected: Sequence[Rejection], dataset: str) -> Progress:
    """Progress of a run whose rows ran out. Completion is decided by examples consumed, never by having got here.

    Raises InputError when nothing could be trained, IntegrityError when fewer of the `rows` were than the file has.
    """
    progress = replace(progress, unusable=_unusable(progress, rejected))
    if progress.examples == 0:
        why = f"line {rejected[0].line}: {rejected[0].reason}" if rejected else "it has no row to train"
        raise InputError("no row of this file could be trained", f"dataset {dataset}", why)
    wanted = _wanted(progress, rows, epochs) - progress.skipped
    if progress.examples < wanted:
        lost = f"{progress.examples} of {wanted} examples were trained"
        raise IntegrityError("rows are missing", f"dataset {dataset}", f"{lost}; verify the dataset's rows.jsonl")
    return progress


def share(progress: Progress, rows: int, epochs: int) -> float:
    """How much of a run is behind it, in [0, 1], as `completed` reckons it."""
    done = progress.examples + progress.skipped
    return min(1.0, done / max(1, _wanted(progress, rows, epochs)))


def _wanted(progress: Progress, rows: int, epochs: int) -> int:
    """Examples of a whole run, as far as is known: a row that cannot be trained is in none of its epochs."""
    return epochs * (rows - len(progress.unusable))


def _past(progress: Progress, group: Sequence[Batch], rejected: Iterable[Rejection]) -> Progress:
    return replace(progress, cursor=group[-1].cursor, unusable=_unusable(progress, rejected))


def _unusable(progress: Progress, rejected: Iterable[Rejection]) -> tuple[int, ...]:
    fresh = [one.line for one in rejected]
    return tuple(sorted({*progress.unusable, *fresh})) if fresh else progress.unusable


def _examples(group: Sequence[Batch]) -> int:
    return sum(batch.examples for batch in group)
