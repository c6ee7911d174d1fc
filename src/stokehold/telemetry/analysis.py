"""From ticks to RLE, collapses, energy and the summary of a session: the same code live and over a replayed log."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stokehold.core.records import Reading, Source
from stokehold.telemetry.collapse import HEADROOM_C, CollapseDetector, CollapseRule, Observation
from stokehold.telemetry.energy import EnergyMeter, joules_per_token
from stokehold.telemetry.readings import DeviceReadings, Limit, Metric, Tick
from stokehold.telemetry.rle import SLOPE_MAX_S, SMOOTHING_WINDOW, UTILISATION_WINDOW, Rle, Slope, rle, slope


@dataclass(frozen=True, slots=True)
class Derived:
    """What follows from one device's readings and its past. `rle_peak` is the decaying peak of `rle_smoothed`."""

    device: str
    rle: Rle
    slope_c_per_s: float | None
    rle_smoothed: float | None
    rle_peak: float | None
    collapsed: bool


class DeviceAnalysis:
    """The memory of one device: windows of utilisation, temperature and RLE, its energy and its extremes."""

    def __init__(self, rule: CollapseRule) -> None:
        self.detector = CollapseDetector(rule)
        self.energy = EnergyMeter(rule.max_gap_s)
        self.max_temperature_c: float | None = None
        self.max_power_w: float | None = None
        self.rle_range: tuple[float, float] | None = None
        self.degenerate = False
        self._utilisations: deque[float | None] = deque(maxlen=UTILISATION_WINDOW)
        self._temperatures: deque[tuple[float, float]] = deque()
        self._rles: deque[float | None] = deque(maxlen=SMOOTHING_WINDOW)

    def observe(self, monotonic_s: float, readings: DeviceReadings) -> Derived:
        """One sample, in time order."""
        power = readings.reading(Metric.POWER_W)
        self.energy.add(monotonic_s, power)
        self._utilisations.append(readings.value(Metric.UTILISATION_PCT))
        heat = self._slope(monotonic_s, readings.value(Metric.TEMPERATURE_C))
        now = rle(
            readings.reading(Metric.UTILISATION_PCT),
            power,
            readings.reading(Metric.TEMPERATURE_C),
            rated_power_w=readings.limits.rated_power_w.value,
            temperature_limit_c=readings.limits.temperature_c.value,
            recent_utilisation_pct=[u for u in self._utilisations if u is not None],
            temperature_slope=heat,
        )
        smoothed = self._smooth(now.rle)
        collapsed = self.detector.observe(_observation(monotonic_s, readings, now, smoothed, heat))
        self._keep_extremes(readings, now)
        peak = self.detector.peak
        return Derived(readings.device, now, heat.c_per_s if heat else None, smoothed, peak, collapsed)

    def _slope(self, monotonic_s: float, temperature_c: float | None) -> Slope | None:
        if temperature_c is not None:
            self._temperatures.append((monotonic_s, temperature_c))
        while self._temperatures and self._temperatures[0][0] < monotonic_s - SLOPE_MAX_S:
            self._temperatures.popleft()
        return slope(self._temperatures) if temperature_c is not None else None

    def _smooth(self, value: float | None) -> float | None:
        self._rles.append(value)
        known = [v for v in self._rles if v is not None]
        return None if value is None else sum(known) / len(known)

    def _keep_extremes(self, readings: DeviceReadings, now: Rle) -> None:
        self.max_temperature_c = _larger(self.max_temperature_c, readings.reading(Metric.TEMPERATURE_C))
        self.max_power_w = _larger(self.max_power_w, readings.reading(Metric.POWER_W))
        if now.rle is not None:
            low, high = self.rle_range or (now.rle, now.rle)
            self.rle_range = (min(low, now.rle), max(high, now.rle))
            self.degenerate = self.degenerate or now.degenerate


class SessionAnalysis:
    """All devices of one session. `rule` decides collapses; its `max_gap_s` also bounds an energy interval."""

    def __init__(self, rule: CollapseRule | None = None) -> None:
        self.rule = rule or CollapseRule()
        self.devices: dict[str, DeviceAnalysis] = {}
        self.samples = 0
        self.first_s: float | None = None
        self.last_s: float | None = None

    def observe(self, tick: Tick) -> tuple[Derived, ...]:
        """One tick, in time order; one `Derived` per device, in the tick's order."""
        self.samples += 1
        self.first_s = tick.monotonic_s if self.first_s is None else self.first_s
        self.last_s = tick.monotonic_s
        return tuple(self._device(d.device).observe(tick.monotonic_s, d) for d in tick.devices)

    def _device(self, name: str) -> DeviceAnalysis:
        return self.devices.setdefault(name, DeviceAnalysis(self.rule))

    def joules(self) -> float | None:
        """Measured energy of all devices with a power sensor; None where there is none."""
        known = [joules for joules in (d.energy.joules for d in self.devices.values()) if joules is not None]
        return sum(known) if known else None

    def summary(self, tokens: int) -> dict[str, Any]:
        """JSON-able. Per device: None for what its sensors cannot tell, so no RLE means `collapses` None, not 0."""
        energy_j = self.joules()
        return {
            "samples": self.samples,
            "collapses": self._each(lambda d: d.detector.collapses if d.rle_range else None),
            "max_temp_c": self._each(lambda d: d.max_temperature_c),
            "max_power_w": self._each(lambda d: d.max_power_w),
            "rle_range": self._each(lambda d: list(d.rle_range) if d.rle_range else None),
            "rle_degenerate": self._each(lambda d: d.degenerate if d.rle_range else None),
            "energy_by_device_j": self._each(lambda d: d.energy.joules),
            "energy_covered_s": self._each(lambda d: d.energy.covered_s),
            "energy_j": energy_j,
            "tokens": tokens,
            "joules_per_token": joules_per_token(energy_j, tokens),
        }

    def _each(self, what: Callable[[DeviceAnalysis], Any]) -> Mapping[str, Any]:
        return {name: what(device) for name, device in self.devices.items()}


def _observation(
    monotonic_s: float, readings: DeviceReadings, now: Rle, smoothed: float | None, heat: Slope | None
) -> Observation:
    limits = readings.limits
    near = _near(readings.value(Metric.TEMPERATURE_C), limits.temperature_c)
    near = near or _near(readings.value(Metric.MEMORY_TEMPERATURE_C), limits.memory_temperature_c)
    return Observation(
        monotonic_s=monotonic_s,
        smoothed_rle=smoothed,
        utilisation_pct=readings.value(Metric.UTILISATION_PCT),
        alpha=now.alpha,
        t_sustain_s=now.t_sustain_s,
        heating=heat is not None and heat.heating,
        near_limit=near,
    )


def _near(temperature_c: float | None, limit: Limit | None) -> bool:
    return temperature_c is not None and limit is not None and temperature_c > limit.value - HEADROOM_C


def _larger(known: float | None, reading: Reading) -> float | None:
    """Extremes are of measured values: an estimated power has no place in a maximum that people size fans by."""
    if reading.value is None or reading.source is not Source.MEASURED:
        return known
    return reading.value if known is None else max(known, reading.value)
