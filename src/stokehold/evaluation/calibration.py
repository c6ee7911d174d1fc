"""How far a confidence can be believed: of the answers given at 80 %, are 80 % right?

One entry, `calibrate`, over pairs of a confidence in [0, 1] and whether the answer was right. Every number it gives is
finite or None, and none depends on the order of the pairs.

Sources: Guo et al. 2017 (ECE, temperature); Nguyen and O'Connor 2015 (bins of equal mass); Błasiok and Nakkiran 2023
(smooth ECE); Murphy 1973 with the terms within bins of Stephenson, Coelho and Jolliffe 2008 (parts of Brier's score).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stokehold.core.identity import short_id
from stokehold.evaluation.metrics import wilson

BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
"""Edges of the bins; each holds its lower edge, the last both."""

EQUAL_MASS_BINS = 10
SMALLEST_HALF = 20
"""Items each half must have before a temperature is fitted on the one and judged on the other."""

COLDEST, HOTTEST = 0.01, 100.0
"""Bounds of the temperature: where every answer above one half is right, none is cold enough."""

NARROWEST = 1e-3
"""Smallest bandwidth of the smooth ECE, and with it the smallest value that it can tell from 0."""

_GRID = 4096
_EDGE = 1e-6

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of the reliability diagram; `confidence` is a mean, `accuracy` a share with Wilson's 95 % interval."""

    lower: float
    upper: float
    n: int
    confidence: float | None
    accuracy: float | None
    accuracy_ci: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Brier:
    """Brier's score, the mean squared difference of confidence and outcome, and its parts over `BINS`.

    `score` = reliability - resolution + uncertainty + spread - association.
    """

    score: float
    reliability: float
    """Squared gap of confidence and accuracy of the bins: 0 when calibrated."""

    resolution: float
    """Squared distance of the bins' accuracies from the whole's: what the confidence tells apart."""

    uncertainty: float
    """Variance of the outcome, whatever the confidence says."""

    spread: float
    """Variance of the confidence inside the bins."""

    association: float
    """Twice the covariance of confidence and outcome inside the bins."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """The temperature that makes one half of the items most likely, and what it does to the ECE of the other half.

    It divides the log-odds of the confidence: above 1 the model was too sure, below 1 not sure enough.
    """

    value: float
    fitted_on: int
    judged_on: int
    ece_before: float
    ece_after: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What `n` pairs say; `left_out` more had no confidence or no judgement. Errors and shares are in [0, 1]."""

    n: int
    left_out: int
    confidence: float | None
    """Mean confidence."""

    accuracy: float | None
    ece: float | None
    """Mean gap of confidence and accuracy over `BINS`, each weighted by its items."""

    ece_equal_mass: float | None
    """The same over `EQUAL_MASS_BINS` bins of equally many items."""

    smooth_ece: float | None
    brier: Brier | None
    bins: tuple[Bin, ...]
    temperature: Temperature | None


def calibrate(
    confidences: Sequence[float | None], correct: Sequence[bool | None], ids: Sequence[str] = ()
) -> Calibration:
    """Everything about these pairs. A pair with None, or a confidence that is no number in [0, 1], is left out.

    `ids` name the items, one for each pair: a hash of them decides which half a temperature is fitted on. Without them,
    or with fewer than `SMALLEST_HALF` in a half, there is none.
    """
    names = ids or [""] * len(confidences)
    pairs = sorted(
        (sure, bool(right), name)
        for sure, right, name in zip(confidences, correct, names, strict=True)
        if sure is not None and right is not None and 0.0 <= sure <= 1.0
    )
    sure, right = np.array([pair[0] for pair in pairs], np.float64), np.array([pair[1] for pair in pairs], np.float64)
    some = len(pairs) > 0
    return Calibration(
        n=len(pairs),
        left_out=len(confidences) - len(pairs),
        confidence=float(sure.mean()) if some else None,
        accuracy=float(right.mean()) if some else None,
        ece=expected_error(sure, right) if some else None,
        ece_equal_mass=equal_mass_error(sure, right) if some else None,
        smooth_ece=smooth_error(sure, right) if some else None,
        brier=brier(sure, right) if some else None,
        bins=diagram(sure, right),
        temperature=fit_temperature(sure, right, [pair[2] for pair in pairs]) if ids else None,
    )


def expected_error(sure: Array, right: Array, edges: Sequence[float] = BINS) -> float:
    """Expected calibration error: the gap of mean confidence and accuracy, weighted over bins. At least one pair."""
    gaps = np.bincount(_places(sure, edges), sure - right, len(edges) - 1)
    return float(np.abs(gaps).sum() / len(sure))


def equal_mass_error(sure: Array, right: Array, bins: int = EQUAL_MASS_BINS) -> float:
    """As `expected_error`, over bins of equally many pairs, give or take one; `sure` ascends.

    Pairs of one confidence count with their mean outcome, so it does not matter which of them a bin gets.
    """
    _, group = np.unique(sure, return_inverse=True)
    shared = (np.bincount(group, right) / np.bincount(group))[group]
    return sum(abs(float(part.sum())) for part in np.array_split(sure - shared, bins)) / len(sure)


def smooth_error(sure: Array, right: Array) -> float:
    """Smooth ECE: the mean absolute gap after smoothing by a Gaussian whose width is that very number.

    The Gaussian is reflected at 0 and 1. There it is the heat kernel, whose eigenfunctions are cosines: smoothing
    multiplies the k-th cosine coefficient by exp(-(k pi width)^2 / 2), without cutting off a tail. Gaps stand on a grid
    of 1/4096, and the width is searched from `NARROWEST` to 1.
    """
    coefficients = _cosine_coefficients(sure, (sure - right) / len(sure))
    rate = (np.pi * np.arange(_GRID + 1)) ** 2 / 2

    def smoothed(width: float) -> float:
        gaps = np.abs(np.fft.irfft(coefficients * np.exp(-rate * width**2)) * 2 * _GRID)[: _GRID + 1]
        return float((gaps.sum() - (gaps[0] + gaps[-1]) / 2) / _GRID)

    narrow = smoothed(NARROWEST)
    if narrow <= NARROWEST:
        return narrow
    return min(1.0, smoothed(_crossing(lambda width: smoothed(width) > width, NARROWEST, 1.0)))


def brier(sure: Array, right: Array, edges: Sequence[float] = BINS) -> Brier:
    """Brier's score and its parts over bins. At least one pair."""
    place, total = _places(sure, edges), len(sure)
    counts = np.bincount(place, minlength=len(edges) - 1)
    held = np.maximum(counts, 1)
    confidence, accuracy = (np.bincount(place, values, len(counts)) / held for values in (sure, right))
    weights, overall = counts / total, float(right.mean())
    apart, off = sure - confidence[place], right - accuracy[place]
    return Brier(
        score=float(np.mean((sure - right) ** 2)),
        reliability=float((weights * (confidence - accuracy) ** 2).sum()),
        resolution=float((weights * (accuracy - overall) ** 2).sum()),
        uncertainty=overall * (1 - overall),
        spread=float(np.mean(apart**2)),
        association=float(2 * np.mean(apart * off)),
    )


def diagram(sure: Array, right: Array, edges: Sequence[float] = BINS) -> tuple[Bin, ...]:
    """The reliability diagram: every bin, empty ones too."""
    place = _places(sure, edges)
    return tuple(
        _bin(lower, upper, sure[place == number], right[place == number])
        for number, (lower, upper) in enumerate(pairwise(edges))
    )


def fit_temperature(sure: Array, right: Array, ids: Sequence[str]) -> Temperature | None:
    """Fits on the half of the items that a hash of the id says, judges on the other.

    None where a half has fewer than `SMALLEST_HALF` items, or where those to fit on are all right or all wrong: then
    no temperature is the most likely.
    """
    fitted = np.array([int(short_id("calibration", name), 16) % 2 == 0 for name in ids], np.bool_)
    known, rest = (sure[fitted], right[fitted]), (sure[~fitted], right[~fitted])
    if min(len(known[0]), len(rest[0])) < SMALLEST_HALF or not 0 < known[1].mean() < 1:
        return None
    odds = _log_odds(known[0])

    def too_cold(temperature: float) -> bool:
        """Whether the log-likelihood, concave in the inverse of the temperature, falls with that inverse."""
        return float((odds * (_share(odds / temperature) - known[1])).sum()) > 0

    value = _crossing(too_cold, COLDEST, HOTTEST)
    after = _share(_log_odds(rest[0]) / value)
    before_ece, after_ece = expected_error(*rest), expected_error(after, rest[1])
    return Temperature(value, len(known[0]), len(rest[0]), before_ece, after_ece)


def _places(sure: Array, edges: Sequence[float]) -> NDArray[np.intp]:
    return np.minimum(np.searchsorted(edges, sure, side="right") - 1, len(edges) - 2)


def _bin(lower: float, upper: float, sure: Array, right: Array) -> Bin:
    n = len(sure)
    interval = wilson(int(right.sum()), n)
    return Bin(lower, upper, n, float(sure.mean()) if n else None, float(right.mean()) if n else None, interval)


def _cosine_coefficients(places: Array, weights: Array) -> Array:
    """sum of weight * cos(k pi place) for k = 0 to `_GRID`, each weight shared by the two grid points around it."""
    at = np.minimum((places * _GRID).astype(np.intp), _GRID - 1)
    above = places * _GRID - at
    mass = np.bincount(at, weights * (1 - above), _GRID + 1) + np.bincount(at + 1, weights * above, _GRID + 1)
    inner = mass[1:-1] / 2
    return np.fft.rfft(np.concatenate([mass[:1], inner, mass[-1:], inner[::-1]])).real


def _crossing(below: Callable[[float], bool], low: float, high: float) -> float:
    """Where `below`, true up to a point and false after it, changes; an end where it does not change between them."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


def _log_odds(sure: Array) -> Array:
    inside = np.clip(sure, _EDGE, 1 - _EDGE)
    return np.log(inside / (1 - inside))


def _share(odds: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(odds, -700, 700)))
