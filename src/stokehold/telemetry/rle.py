"""RLE (recursive load efficiency): how much utilisation a device gives for its power, discounted by unrest and heat.

eta = utilisation / 100; alpha = power / rated power; sigma = 1 / (1 + pstdev of the last 10 utilisations);
T_s = seconds until the temperature limit at the present slope; E_th = sigma / (1 + 1 / T_s); E_pw = eta / alpha;
RLE = E_th * E_pw. Pure functions. Whatever needs a number that is not there is None; nothing infinite leaves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pstdev

from stokehold.core.records import Reading, Source

UTILISATION_WINDOW = 10
"""Samples of utilisation in sigma."""

SMOOTHING_WINDOW = 5
"""Samples in the smoothed RLE."""

SLOPE_MIN_S, SLOPE_MAX_S = 10.0, 30.0
"""Time that the regression of temperature spans: whole-degree sensors say nothing about a shorter one."""

MIN_SLOPE_C_PER_S = 1e-3
SUSTAIN_MIN_S, SUSTAIN_MAX_S = 1.0, 600.0

ONE_TICK_RISE = 1.5
"""One step of size d in an otherwise flat temperature makes a fitted line rise by less than 1.5 d over its window."""


@dataclass(frozen=True, slots=True)
class Slope:
    """Least-squares slope of temperature in degrees Celsius per second over `span_s` seconds."""

    c_per_s: float
    span_s: float

    @property
    def heating(self) -> bool:
        """Rising by more than a single tick of a whole-degree sensor can feign."""
        return self.c_per_s * self.span_s > ONE_TICK_RISE


@dataclass(frozen=True, slots=True)
class Rle:
    """RLE of one sample and its parts; `t_sustain_s` in seconds, the others without unit.

    `degenerate`: the power was itself estimated from utilisation, so E_pw is 1 by construction and says nothing.
    """

    eta: float | None
    alpha: float | None
    sigma: float | None
    t_sustain_s: float | None
    e_th: float | None
    e_pw: float | None
    rle: float | None
    degenerate: bool


def sigma(utilisations_pct: Sequence[float]) -> float | None:
    """Steadiness in (0, 1]; None below two samples, where no unrest could show."""
    if len(utilisations_pct) < 2:
        return None
    return 1.0 / (1.0 + pstdev(utilisations_pct))


def slope(points: Sequence[tuple[float, float]]) -> Slope | None:
    """Regression over (seconds, degrees Celsius) in time order; only the last 30 s count, and they must span 10 s."""
    if not points:
        return None
    recent = [(t, c) for t, c in points if t >= points[-1][0] - SLOPE_MAX_S]
    span_s = recent[-1][0] - recent[0][0]
    if span_s < SLOPE_MIN_S or len(recent) < 3:
        return None
    mean_t = math.fsum(t for t, _ in recent) / len(recent)
    mean_c = math.fsum(c for _, c in recent) / len(recent)
    numerator = math.fsum((t - mean_t) * (c - mean_c) for t, c in recent)
    return Slope(numerator / math.fsum((t - mean_t) ** 2 for t, _ in recent), span_s)


def t_sustain_s(temperature_c: float, limit_c: float, slope_c_per_s: float) -> float:
    """Seconds to the limit at this slope, within [1, 600]."""
    seconds = (limit_c - temperature_c) / max(slope_c_per_s, MIN_SLOPE_C_PER_S)
    return min(SUSTAIN_MAX_S, max(SUSTAIN_MIN_S, seconds))


def thermal_efficiency(steadiness: float, sustain_s: float) -> float:
    """E_th in (0, 1)."""
    return steadiness / (1.0 + 1.0 / sustain_s)


def power_efficiency(eta: float, alpha: float) -> float | None:
    """E_pw; None where no power flows (the quotient means nothing) or it is too small to divide by."""
    if alpha <= 0.0:
        return None
    quotient = eta / alpha
    return quotient if math.isfinite(quotient) else None


def rle(
    utilisation_pct: Reading,
    power_w: Reading,
    temperature_c: Reading,
    *,
    rated_power_w: float,
    temperature_limit_c: float,
    recent_utilisation_pct: Sequence[float],
    temperature_slope: Slope | None,
) -> Rle:
    """All parts that these readings allow. `recent_utilisation_pct` are the known ones of the last 10 samples."""
    eta = None if utilisation_pct.value is None else utilisation_pct.value / 100.0
    alpha = None if power_w.value is None else power_w.value / rated_power_w
    steadiness = None if eta is None else sigma(recent_utilisation_pct)
    sustain_s = e_th = e_pw = None
    if temperature_c.value is not None and temperature_slope is not None:
        sustain_s = t_sustain_s(temperature_c.value, temperature_limit_c, temperature_slope.c_per_s)
    if steadiness is not None and sustain_s is not None:
        e_th = thermal_efficiency(steadiness, sustain_s)
    if eta is not None and alpha is not None:
        e_pw = power_efficiency(eta, alpha)
    return Rle(
        eta=eta,
        alpha=alpha,
        sigma=steadiness,
        t_sustain_s=sustain_s,
        e_th=e_th,
        e_pw=e_pw,
        rle=None if e_th is None or e_pw is None else e_th * e_pw,
        degenerate=power_w.source is Source.ESTIMATED,
    )
