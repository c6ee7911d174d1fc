"""CPU power from the processor's own energy counters (RAPL, `/sys/class/powercap`), where this process may read them.

The counters cover the CPU packages; memory and the rest of the machine are not in them.
"""

import time
from collections.abc import Callable
from pathlib import Path

from stokehold.core.errors import NotFoundError

POWERCAP = Path("/sys/class/powercap")
MIN_INTERVAL_S = 0.05
"""The counter is refreshed about every millisecond; over a shorter time the quotient is mostly its jitter."""


class RaplPower:
    """Mean package power in watts since the previous call: None on the first, `NotFoundError` without a counter.

    A counter that only root may read raises PermissionError at each call, so that the reason reaches the session.
    """

    def __init__(self, root: Path = POWERCAP, clock: Callable[[], float] = time.monotonic) -> None:
        self._packages: list[Path] = []
        self._root, self._clock = root, clock
        self._last: tuple[float, list[int]] | None = None

    def __call__(self) -> float | None:
        self._packages = self._packages or _packages(self._root)
        if not self._packages:
            raise NotFoundError("no RAPL package counter", str(self._root))
        counters, now, last = [_number(p / "energy_uj") for p in self._packages], self._clock(), self._last
        if last is not None and now - last[0] < MIN_INTERVAL_S:
            return None
        self._last = (now, counters)
        if last is None:
            return None
        spent_uj = sum(self._spent(i, last[1][i], counter) for i, counter in enumerate(counters))
        return spent_uj / 1e6 / (now - last[0])

    def _spent(self, package: int, before: int, now: int) -> int:
        if now >= before:
            return now - before
        return now - before + _number(self._packages[package] / "max_energy_range_uj")


def _packages(root: Path) -> list[Path]:
    """Top-level package zones only: `core`, `dram` and `psys` overlap with them or count other parts."""
    zones = sorted(root.glob("intel-rapl:*"))
    return [zone for zone in zones if (zone / "name").read_text().startswith("package")]


def _number(path: Path) -> int:
    return int(path.read_text())
