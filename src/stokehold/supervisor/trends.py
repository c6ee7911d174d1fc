"""The numbers of the status payload that come from lists: pure functions, None where there is too little to say.

Losses are in nats per token, accuracies in percent; sequences are in time order, the newest last.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from stokehold.core.records import Evaluation, Step

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
    """Tokens per second over the last 50 steps' own seconds.

    A step's seconds run from asking for its batch to its journal row: waiting for the batch is in them, what lies
    between two steps (checkpoints, evaluations, samples, a pause) is not.
    """
    last = steps[-RATE_STEPS:]
    seconds = sum(step.seconds for step in last)
    return sum(step.tokens for step in last) / seconds if seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is left of a file: `steps`, their `seconds`, and one standard error of those, None for a single step."""

    steps: int
    seconds: float
    error_seconds: float | None


def forecast(steps: Sequence[Step], examples: float) -> Forecast | None:
    """How long `examples` more rows take at the pace of the last 50 of `steps`; None where none of them had a row.

    The pace is a ratio, r = seconds / rows of these N steps, so `seconds` is r · examples, over k = examples / (rows
    per step) steps. Its error takes steps for independent: with s² the variance of a step's seconds around r times
    its rows (both the spread of the seconds and that of the rows per step are in it), the k steps to come have the
    variance k·s² and the measured pace adds k²·s²/N. Steps' own seconds: evaluations and pauses to come are not known.
    """
    last = steps[-RATE_STEPS:]
    rows = sum(step.examples for step in last)
    if not rows:
        return None
    pace = sum(step.seconds for step in last) / rows
    left = max(0.0, examples) * len(last) / rows
    error = None
    if len(last) > 1:
        squares = math.fsum((step.seconds - pace * step.examples) ** 2 for step in last)
        error = math.sqrt(squares / (len(last) - 1) * (left + left**2 / len(last)))
    return Forecast(math.ceil(left), pace * max(0.0, examples), error)


def pooled(evaluation: Evaluation, reading: str) -> float | None:
    """Mean of a reading (`exact`, `nll_per_token`, `ece`) over the suites that have it, weighted by their items."""
    pairs = [(value, r.n) for r in evaluation.suites.values() if r.n and (value := getattr(r, reading)) is not None]
    items = sum(n for _, n in pairs)
    return sum(value * n for value, n in pairs) / items if items else None


def _means(values: Sequence[float]) -> tuple[float, float] | None:
    if len(values) < 2 * TREND_WINDOW:
        return None
    return statistics.fmean(values[-2 * TREND_WINDOW : -TREND_WINDOW]), statistics.fmean(values[-TREND_WINDOW:])


def _verdict(gain: float, tolerance: float) -> str:
    if gain > tolerance:
        return IMPROVING
    return DEGRADING if gain < -tolerance else STABLE
