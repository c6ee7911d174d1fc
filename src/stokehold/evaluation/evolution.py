"""Whether a model still learns, and what a file taught it: statistics over stored evaluations, nothing measured anew.

A trend is the Theil-Sen slope over a window that was fixed beforehand, with Sen's interval. Its verdict is one look at
one window: whoever looks after every evaluation sees a wrong verdict more often than one time in twenty, and errors of
evaluations on the same items are not independent, as the interval takes them to be.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from stokehold.core.records import Comparison, Evaluation, Trained
from stokehold.evaluation.metrics import Z_95
from stokehold.evaluation.verdict import ItemReading, compare

WINDOW_EVALUATIONS = 50
"""The window of a trend, in evaluations: the newest so many."""

FEWEST_EVALUATIONS = 10
"""With fewer, Sen's interval rests on an approximation that does not hold yet."""

MARGIN = 0.01
"""A change over the window that is none: of a share absolutely, of nats per token relative to the window's median."""


class Direction(StrEnum):
    IMPROVING = "improving"
    PLATEAU = "plateau"
    DECLINING = "declining"
    INSUFFICIENT = "insufficient data"


@dataclass(frozen=True, slots=True)
class Slope:
    """Median of the slopes between all pairs of points, and its 95 % interval, in units of y per unit of x."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Trend:
    """`change` is the slope times the steps from the first to the last of `n` evaluations; with its 95 % interval.

    `slope` is per 1,000 steps. None where fewer than two steps were judged.
    """

    direction: Direction
    n: int
    reason: str
    slope: float | None = None
    change: float | None = None
    change_ci: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """The evaluations before and after a file; `foreign` counts steps of other files between the two."""

    before: Evaluation | None
    after: Evaluation | None
    foreign: int = 0


def readings_of(rows: Sequence[Mapping[str, Any]], suite: str | None = None) -> list[ItemReading]:
    """Readings from an evaluation's stored items, of all its suites or of one."""
    return [
        ItemReading(
            sample_id=f"{row['suite']}/{row['sample_id']}",
            exact=None if row["score"] is None else row["score"] == 1.0,
            gold_nll=row["gold_nll"],
            gold_tokens=row["gold_tokens"],
            suite=row["suite"],
            cluster=row.get("cluster"),
        )
        for row in rows
        if suite is None or row["suite"] == suite
    ]


def theil_sen(x: Sequence[float], y: Sequence[float]) -> Slope | None:
    """The slope of y over x; None where fewer than two x differ.

    The interval is Sen's (1968): order statistics of the pairwise slopes, from the normal approximation to Kendall's
    distribution, corrected for ties in x and in y.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    first, second = np.triu_indices(len(xs), 1)
    run, rise = xs[second] - xs[first], ys[second] - ys[first]
    apart = run != 0
    slopes = np.sort(rise[apart] / run[apart])
    if not len(slopes):
        return None
    n = len(xs)
    variance = (n * (n - 1) * (2 * n + 5) - _tied(xs) - _tied(ys)) / 18
    half = Z_95 * math.sqrt(max(0.0, variance))
    low = max(round((len(slopes) - half) / 2) - 1, 0)
    high = min(round((len(slopes) + half) / 2), len(slopes) - 1)
    return Slope(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))


def trend(steps: Sequence[float], values: Sequence[float], relative: bool = False, rising: bool = True) -> Trend:
    """The verdict over the newest `WINDOW_EVALUATIONS` points, in order of their steps.

    `relative` measures `MARGIN` against the window's median; `rising` says which way is better. Improving and declining
    need an interval on one side of zero that is not all within the margin, a plateau one that is; whatever is neither
    is insufficient data.
    """
    x, y = steps[-WINDOW_EVALUATIONS:], values[-WINDOW_EVALUATIONS:]
    n = len(x)
    slope = theil_sen(x, y)
    if slope is None:
        return Trend(Direction.INSUFFICIENT, n, f"{n} of {FEWEST_EVALUATIONS} evaluations")
    span = max(x) - min(x)
    low, high = slope.low * span, slope.high * span
    margin = MARGIN * abs(float(np.median(y))) if relative else MARGIN
    direction, reason = _direction(n, low, high, margin, rising)
    return Trend(direction, n, reason, slope.value * 1000, slope.value * span, (low, high))


def around(file: Trained, evaluations: Sequence[Evaluation], suite: str | None = None) -> Pair:
    """The evaluations to compare for a file, of those given in order of their steps; without a step they are step 0.

    After: at its last step, else the newest inside it, else the first beyond it. Before: the newest ahead of its first
    step that was judged alike. Equal steps are settled by the newer one.
    """
    judged = [e for e in evaluations if suite is None or suite in e.suites]
    inside = [e for e in judged if file.first <= _step(e) <= file.last]
    beyond = [e for e in judged if _step(e) > file.last]
    after = max(inside, key=lambda e: (_step(e), e.created), default=None)
    after = after or min(beyond, key=_step, default=None)
    alike = [e for e in judged if _step(e) < file.first and (after is None or e.how == after.how)]
    before = max(alike, key=lambda e: (_step(e), e.created), default=None)
    foreign = _step(after) - _step(before) - file.steps if before and after and _step(after) >= file.last else 0
    return Pair(before, after, max(0, foreign))


def taught(before: Sequence[ItemReading], after: Sequence[ItemReading], margin: float) -> Comparison:
    """What changed on the items that both judged, after - before, paired; see `verdict.compare`."""
    return compare(before, after, margin)


def shared_curve(items: Sequence[Sequence[ItemReading]]) -> tuple[int, list[float | None], list[float | None]]:
    """Exact share and nats per token of each evaluation over the items that all of them judged, and how many.

    A suite may have grown: over all its items a curve would show the items as well as the model.
    """
    tables = [{item.sample_id: item for item in readings} for readings in items]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    chosen = [[table[name] for name in shared] for table in tables]
    return len(shared), [_exact(readings) for readings in chosen], [_nll(readings) for readings in chosen]


def _direction(n: int, low: float, high: float, margin: float, rising: bool) -> tuple[Direction, str]:
    if n < FEWEST_EVALUATIONS:
        return Direction.INSUFFICIENT, f"{n} of {FEWEST_EVALUATIONS} evaluations"
    if -margin <= low and high <= margin:
        return Direction.PLATEAU, f"changed by less than {margin:.3g} over {n} evaluations"
    if low > 0 or high < 0:
        better = (low > 0) == rising
        return (Direction.IMPROVING if better else Direction.DECLINING), f"over {n} evaluations"
    return Direction.INSUFFICIENT, f"{n} evaluations cannot tell a change from none"


def _step(evaluation: Evaluation) -> int:
    return evaluation.step or 0


def _exact(readings: Sequence[ItemReading]) -> float | None:
    scored = [item.exact for item in readings if item.exact is not None]
    return sum(scored) / len(scored) if scored else None


def _nll(readings: Sequence[ItemReading]) -> float | None:
    """Weighted by gold tokens, as a suite's own figure is."""
    likely = [(i.gold_nll, i.gold_tokens) for i in readings if i.gold_nll is not None and i.gold_tokens]
    tokens = sum(count for _, count in likely)
    return math.fsum(nll * count for nll, count in likely) / tokens if tokens else None


def _tied(values: Any) -> int:
    _, counts = np.unique(values, return_counts=True)
    return sum(int(k) * (int(k) - 1) * (2 * int(k) + 5) for k in counts if k > 1)
