"""Three clocks, and what their difference tells: the machine slept, or somebody set the time.

Durations are by the monotonic clock, which no one sets and which stands still while the machine sleeps: rates, step
times, energy, back-off and every wait use it. What happened when is told by wall time. The boot clock also runs on
through sleep, is the same for every process, and begins anew with each start of the machine: ages that one process
works out from what another wrote use it.
"""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NOTICED_S = 2.0
"""A smaller difference between two looks is none: reading three clocks takes time, and time servers nudge clocks."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """One look at the three, in seconds; only differences between two looks mean anything."""

    monotonic_s: float
    boot_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """What time did between two looks: seconds the machine slept, and seconds the clock was set by (back: negative)."""

    slept_s: float
    set_s: float

    @property
    def words(self) -> str:
        """In a sentence; empty when nothing happened."""
        said = []
        if self.slept_s:
            said.append(f"the machine slept for {duration(self.slept_s)}")
        if self.set_s:
            said.append(f"the clock was set {'forward' if self.set_s > 0 else 'back'} by {duration(abs(self.set_s))}")
        return ", and ".join(said)


@dataclass(frozen=True, slots=True)
class Stamp:
    """A moment that every process of this machine can measure from: which boot, and seconds since it."""

    boot: str
    boot_s: float

    def age_s(self, now: "Stamp") -> float | None:
        """Seconds from here to `now`, sleep included; None across a restart of the machine."""
        return max(0.0, now.boot_s - self.boot_s) if self.boot == now.boot else None


def look() -> Clocks:
    return Clocks(time.monotonic(), boot_s(), time.time())


def change(before: Clocks, after: Clocks) -> Change | None:
    """What was not ordinary between two looks, None where all was."""
    slept = (after.boot_s - before.boot_s) - (after.monotonic_s - before.monotonic_s)
    was_set = (after.wall_s - before.wall_s) - (after.boot_s - before.boot_s)
    found = Change(slept if slept >= NOTICED_S else 0.0, was_set if abs(was_set) >= NOTICED_S else 0.0)
    return found if found.words else None


def boot_s() -> float:
    """Seconds since the machine was started, sleep included; where no clock tells them, the monotonic ones."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def stamp() -> Stamp:
    """Now."""
    return Stamp(boot(), boot_s())


@lru_cache(maxsize=1)
def boot() -> str:
    """What this start of the machine is called; empty where it has no name."""
    return BOOT_ID.read_text("ascii").strip() if BOOT_ID.exists() else ""


def duration(seconds: float) -> str:
    """`2 h 10 min`, `3 min 5 s`, `7 s`, `2 days 4 h`: the two largest units, the smaller one left out where it is 0."""
    rest = round(seconds)
    said: list[str] = []
    for size, unit in ((86_400, "day"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count or said:
            said.append(f"{count} {unit}{'s' if unit == 'day' and count != 1 else ''}" if count else "")
    return " ".join(part for part in said[:2] if part) or "0 s"
