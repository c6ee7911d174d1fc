"""What so many items can show, and how many more would settle it. Normal approximations; planning, not evidence."""

import math
from statistics import NormalDist

from stokehold.core.records import Comparison
from stokehold.evaluation.metrics import Z_95
from stokehold.evaluation.paired import Correctness

POWER = 0.8
"""The chance with which a difference is to be seen that is called detectable."""

_NORMAL = NormalDist()


def paired_share_interval(lost: float, gained: float, n: float) -> tuple[float, float]:
    """95 % interval of the difference of two paired shares over n > 0 items (Bonett and Price 2012, adjusted Wald).

    It keeps a width where no item differs: ten items on which two models agree do not prove them equal. Counts need not
    be whole: clustered items count for as many as they are worth.
    """
    centre, error = _centre(lost, gained, n), paired_share_error(lost, gained, n)
    return max(-1.0, centre - Z_95 * error), min(1.0, centre + Z_95 * error)


def paired_share_error(lost: float, gained: float, n: float) -> float:
    """Standard error of the difference of two paired shares, as in `paired_share_interval`."""
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    return math.sqrt((up + down - (up - down) ** 2) / (n + 2))


def design_effect(found: Correctness) -> float:
    """How many clustered items are worth one that stands alone, >= 1; 1 exactly where every item does.

    The variance of the difference over clusters to that over items (Kish); where no item differs, the most it could be.
    """
    n = int(found.sizes.sum())
    if len(found.sizes) == n:
        return 1.0
    delta = (found.gained - found.lost) / n
    alone = n * ((found.lost + found.gained) / n - delta**2)
    most = float((found.sizes**2).sum()) / n
    if alone <= 0:
        return most
    together = float(((found.net - found.sizes * delta) ** 2).sum())
    return min(max(1.0, together / alone), max(1.0, float(found.sizes.max())))


def effective_counts(found: Correctness) -> tuple[float, float, float]:
    """`lost`, `gained` and items, each divided by the design effect."""
    effect = design_effect(found)
    return found.lost / effect, found.gained / effect, float(found.sizes.sum()) / effect


def smallest_detectable(error: float, level: float) -> float:
    """The difference that a two-sided test at `level` finds with 80 % power, where its standard error is `error`."""
    return min(1.0, _quantiles(level) * error)


def items_needed(comparison: Comparison, margin: float) -> int | None:
    """About how many items in all would settle it, were the differences found the true ones; None where unknown.

    To show the difference in correctness or in likelihood with 80 % power at the comparison's alpha, or to bring the
    interval of correctness inside ± margin, whichever is fewer.
    """
    routes = []
    for delta, interval in (
        (comparison.delta_exact, comparison.delta_exact_ci),
        (comparison.delta_nll_per_token, comparison.delta_nll_ci),
    ):
        if delta and interval and comparison.alpha:
            error = (interval[1] - interval[0]) / 2 / Z_95
            routes.append((_quantiles(comparison.alpha) * error / delta) ** 2)
    if comparison.delta_exact_ci is not None and abs(comparison.delta_exact or 0.0) < margin:
        low, high = comparison.delta_exact_ci
        routes.append(((high - low) / 2 / (margin - abs(comparison.delta_exact or 0.0))) ** 2)
    found = [ratio for ratio in routes if math.isfinite(ratio)]
    return max(comparison.items + 1, math.ceil(comparison.items * min(found))) if found else None


def _quantiles(level: float) -> float:
    return _NORMAL.inv_cdf(1 - level / 2) + _NORMAL.inv_cdf(POWER)


def _centre(lost: float, gained: float, n: float) -> float:
    return (gained - lost) / (n + 2)
