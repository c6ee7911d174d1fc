"""Shares, means and intervals that are either finite or None: what cannot be computed is not a number here."""

import math
from collections.abc import Iterable

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def finite(value: float | None) -> float | None:
    """The value, or None where it is absent, NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean; None of nothing, and None when any value is not finite."""
    found = list(values)
    return finite(math.fsum(found) / len(found)) if found and all(map(math.isfinite, found)) else None


def weighted_mean(pairs: Iterable[tuple[float, float]]) -> float | None:
    """Mean of (value, weight >= 0); None without weight, and None when anything is not finite."""
    found = list(pairs)
    if not all(math.isfinite(value) and math.isfinite(weight) for value, weight in found):
        return None
    total = math.fsum(weight for _, weight in found)
    return finite(math.fsum(value * weight for value, weight in found) / total) if total > 0 else None


def wilson(successes: int, n: int, z: float = Z_95) -> tuple[float, float] | None:
    """Wilson's score interval of a share, inside [0, 1] at every n; None when n is 0."""
    if n == 0:
        return None
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding must not move the ends past the share itself at 0 and n.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))
