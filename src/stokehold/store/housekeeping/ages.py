"""The time that ages are counted by: the wall clock's, as far as the machine can vouch for it.

A clock that is set forward by a year must not make everything a year older. So this time never gets ahead of the wall
clock, and between two looks it advances by no more than what passed since the machine was started; across a restart,
when nobody counted, by no more than a day. What is not certain to be old stays the longer.
"""

import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from stokehold.core.errors import DiskFullError
from stokehold.store.files import write_atomic
from stokehold.store.home import Home

FILE = "ages.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
ACROSS_S = 24 * 3600.0
"""Most that passes while the machine is off, or by a clock that nobody can check."""

WRITE_S = 3600.0
"""How often it is written down, so that this much is lost at a restart of the machine."""

SLACK_S = 2.0
"""Time servers nudge clocks."""


@dataclass(frozen=True, slots=True)
class Look:
    """The wall clock, which start of the machine this is, and the seconds since, sleep included."""

    wall_s: float
    boot: str
    boot_s: float


def look() -> Look:
    boot = BOOT_ID.read_text("ascii").strip() if BOOT_ID.exists() else ""
    since_s = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
    return Look(time.time(), boot, since_s)


def present_s(home: Home, now: Look | None = None) -> float:
    """Seconds since 1970, UTC, that ages in this home are counted to; what was seen is kept in `status/ages.json`."""
    seen, last = now or look(), _last(home)
    found = min(seen.wall_s, last.wall_s + _passed_s(last, seen) + SLACK_S) if last else seen.wall_s
    if last is None or (found >= last.wall_s and (seen.boot != last.boot or found - last.wall_s > WRITE_S)):
        content = orjson.dumps(asdict(Look(found, seen.boot, seen.boot_s)))
        try:
            write_atomic(home.status / FILE, content, disk=home.disk)
        except DiskFullError:
            return found  # what makes room must not fail for want of it
    return found


def present(home: Home) -> datetime:
    """As `present_s`, in the time zone of the machine."""
    return datetime.fromtimestamp(present_s(home), UTC).astimezone()


def _passed_s(last: Look, seen: Look) -> float:
    if last.boot and seen.boot == last.boot:
        return max(0.0, seen.boot_s - last.boot_s)
    return ACROSS_S


def _last(home: Home) -> Look | None:
    try:
        return Look(**orjson.loads((home.status / FILE).read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return None
