"""Energy from power: the trapezoid over measured samples only. Without a power sensor there is no energy, not zero."""

from stokehold.core.records import Reading, Source


class EnergyMeter:
    """Joules of one device. An interval counts when both ends are measured and it is not longer than `max_gap_s`."""

    def __init__(self, max_gap_s: float) -> None:
        self._max_gap_s = max_gap_s
        self._last: tuple[float, float] | None = None
        self._joules = 0.0
        self.covered_s = 0.0
        """Seconds that the joules stand for; less than the session where the sensor was silent."""

    def add(self, monotonic_s: float, power_w: Reading) -> None:
        """One sample, in time order. An estimated or missing power breaks the integral: nothing is bridged."""
        if power_w.value is None or power_w.source is not Source.MEASURED:
            self._last = None
            return
        if self._last is not None:
            seconds = monotonic_s - self._last[0]
            if 0.0 < seconds <= self._max_gap_s:
                self._joules += seconds * (power_w.value + self._last[1]) / 2.0
                self.covered_s += seconds
        self._last = (monotonic_s, power_w.value)

    @property
    def joules(self) -> float | None:
        """None until one interval has been measured."""
        return self._joules if self.covered_s > 0.0 else None


def joules_per_token(joules: float | None, tokens: int) -> float | None:
    """None without a power sensor or without tokens."""
    return None if joules is None or tokens <= 0 else joules / tokens
