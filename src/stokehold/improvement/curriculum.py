"""How much of each level to train next: where the model is unsure or moving, without forgetting what it knows."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from stokehold.core.records import SuiteResult, SuiteState

FLOOR = 0.05
"""Added to every open level: a mastered level is rehearsed, a hopeless one is tried now and then."""

OPENING_SHARE = 0.5
"""Share right that the next level to be learned is taken to have: the most uncertain one."""


def level_weights(history: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Share of the next file for each level; the shares sum to 1.

    `history` maps a level to its exact shares, oldest first. A level weighs p(1-p) + |p - p before| + a floor. Levels
    open one after another: of those with nothing right yet the lowest counts as if p were one half, the others have
    the floor alone, and nothing at all where they were never measured. At p = 0 everywhere the formula alone would
    spread a beginner's time over every level.
    """
    opening = next((level for level in sorted(history) if not history[level] or history[level][-1] == 0), None)
    weights = {level: _weight(shares) if shares else 0.0 for level, shares in history.items()}
    if opening is not None:
        weights[opening] = _weight([OPENING_SHARE])
    total = sum(weights.values()) or 1.0
    return {level: weights[level] / total for level in sorted(history)}


def level_history(
    evaluations: Iterable[Mapping[str, SuiteResult]], levels: Sequence[int], suites: Collection[str] | None = None
) -> dict[int, list[float]]:
    """Exact shares by level over evaluations, oldest first, ready for `level_weights`; suites pooled by their counts.

    Only suites that are ok count, and of those the named ones unless `suites` is None. A level that nothing measured
    keeps an empty list.
    """
    history: dict[int, list[float]] = {level: [] for level in levels}
    for results in evaluations:
        right, count = defaultdict[int, float](float), defaultdict[int, float](float)
        for name, result in results.items():
            if result.state is not SuiteState.OK or (suites is not None and name not in suites):
                continue
            for level in levels:
                reading = result.by_level.get(str(level), {"exact": 0.0, "n": 0})
                right[level] += reading["exact"] * reading["n"]
                count[level] += reading["n"]
        for level in levels:
            if count[level]:
                history[level].append(right[level] / count[level])
    return history


def apportion(weights: Mapping[int, float], total: int) -> dict[int, int]:
    """Whole counts that sum to `total` and are nearest the weights (largest remainder, lower level first on ties)."""
    whole = sum(weights.values())
    if total == 0 or whole <= 0:
        return dict.fromkeys(weights, 0)
    exact = {level: total * weight / whole for level, weight in weights.items()}
    counts = {level: int(share) for level, share in exact.items()}
    by_remainder = sorted(exact, key=lambda level: (counts[level] - exact[level], level))
    for level in by_remainder[: total - sum(counts.values())]:
        counts[level] += 1
    return counts


def _weight(shares: Sequence[float]) -> float:
    now = shares[-1]
    progress = abs(now - shares[-2]) if len(shares) > 1 else 0.0
    return now * (1 - now) + progress + FLOOR
