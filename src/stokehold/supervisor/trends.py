"""The numbers of the status payload that come from lists: pure functions, None where there is too little to say.

Losses are in nats per token, accuracies in percent; sequences are in time order, the newest last.
"""

import statistics
from collections.abc import Sequence

from stokehold.core.records import Evaluation, Step, SuiteResult

EMA_ALPHA = 0.1
EMA_STEPS = 500
"""Steps that the exponential mean needs: what lies before weighs 0.9^500 = 1e-23, below a double's resolution."""

VARIANCE_STEPS = 50
RATE_STEPS = 50
TREND_WINDOW = 10
LOSS_TOLERANCE = 0.05
"""Relative change of a loss that is no trend."""

ACCURACY_TOLERANCE = 5.0
"""Percentage points of accuracy that are no trend."""

IMPROVING, STABLE, DEGRADING, INSUFFICIENT = "improving", "stable", "degrading", "insufficient_data"


def streaming_ce(losses: Sequence[float]) -> float | None:
    """Exponential mean of the step losses, begun at the first."""
    if not losses:
        return None
    mean = losses[0]
    for loss in losses[1:]:
        mean += EMA_ALPHA * (loss - mean)
    return mean


def smoothed(losses: Sequence[float]) -> list[float]:
    """The exponential mean after each loss."""
    found: list[float] = []
    for loss in losses:
        found.append(loss if not found else found[-1] + EMA_ALPHA * (loss - found[-1]))
    return found


def loss_variance(losses: Sequence[float]) -> float | None:
    """Variance (of the population) of the last 50 step losses."""
    last = losses[-VARIANCE_STEPS:]
    return statistics.pvariance(last) if len(last) > 1 else None


def loss_trend(losses: Sequence[float]) -> str:
    """The last 10 against the 10 before: less by more than 5 % is improving."""
    pair = _means(losses)
    if pair is None:
        return INSUFFICIENT
    before, now = pair
    return _verdict(before - now, LOSS_TOLERANCE * abs(before))


def accuracy_trend(accuracies: Sequence[float]) -> str:
    """The last 10 against the 10 before, in percent: more by over 5 points is improving."""
    pair = _means(accuracies)
    return INSUFFICIENT if pair is None else _verdict(pair[1] - pair[0], ACCURACY_TOLERANCE)


def percent(matches: Sequence[bool], last: int) -> float | None:
    """Share of the newest `last` (or as many as there are) that match, in percent."""
    newest = matches[-last:]
    return 100 * sum(newest) / len(newest) if newest else None


def running_percent(matches: Sequence[bool], last: int) -> list[float]:
    """`percent` as it was after each match."""
    return [
        100 * sum(part) / len(part) for end in range(1, len(matches) + 1) if (part := matches[max(0, end - last) : end])
    ]


def tokens_per_s(steps: Sequence[Step]) -> float | None:
    """Tokens per second of wall time over the last 50 steps."""
    last = steps[-RATE_STEPS:]
    seconds = sum(step.seconds for step in last)
    return sum(step.tokens for step in last) / seconds if seconds > 0 else None


def seconds_per_step(steps: Sequence[Step]) -> float | None:
    """Mean wall time of the last 50 steps."""
    last = steps[-RATE_STEPS:]
    return statistics.fmean(step.seconds for step in last) if last else None


def remaining_steps(done: int, progress: float | None) -> int | None:
    """Steps still to come in a file of which `done` steps consumed the share `progress` of the examples."""
    if not progress or done <= 0:
        return None
    return max(0, round(done / min(progress, 1.0)) - done)


def pooled(evaluation: Evaluation, reading: str) -> float | None:
    """Mean of a reading (`exact`, `nll_per_token`, `ece`) over the suites that have it, weighted by their items."""
    pairs = [(value, r.n) for r in evaluation.suites.values() if r.n and (value := _reading(r, reading)) is not None]
    items = sum(n for _, n in pairs)
    return sum(value * n for value, n in pairs) / items if items else None


def _reading(result: SuiteResult, name: str) -> float | None:
    found: float | None = result.parts.get("ece") if name == "ece" else getattr(result, name)
    return found


def _means(values: Sequence[float]) -> tuple[float, float] | None:
    if len(values) < 2 * TREND_WINDOW:
        return None
    return statistics.fmean(values[-2 * TREND_WINDOW : -TREND_WINDOW]), statistics.fmean(values[-TREND_WINDOW:])


def _verdict(gain: float, tolerance: float) -> str:
    if gain > tolerance:
        return IMPROVING
    return DEGRADING if gain < -tolerance else STABLE
