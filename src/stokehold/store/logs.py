"""Logs of processes that run for months: put aside once a day while they are written, and no line is lost.

The log is renamed, and its writer is told to open the name afresh (`reopen`). Until it does, its lines go on into the
file that was put aside; each is written whole to one of the two. Nothing is copied and cut, which would lose what is
written in between, and nobody stands between a process and its log, so that its last lines are there whoever died.
"""

import os
import stat
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from stokehold.store.disk import DISK, Disk

MOST_BYTES = 10 * 1024 * 1024
"""A log that has grown past this is put aside before the day is over."""

KEPT = 14
"""Of each log, put aside. They are counted, not aged: a clock that jumps must not take the logs along."""

KEPT_BYTES = 256 * 1024 * 1024
"""Of all that were put aside together."""

STDOUT, STDERR = 1, 2


class Log:
    """One log and the day it is of, in local time: that of its last line where it is there already."""

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self.path, self._disk = path, disk
        self._day: date | None = None

    def put_aside(self, now: datetime, most_bytes: int = MOST_BYTES) -> bool:
        """Renames the log when a later day has begun or it has grown; whether it did. Its writer makes it anew."""
        if not self.path.exists():
            self._day = now.date()
            return False
        found = self.path.stat()
        if self._day is None:
            self._day = datetime.fromtimestamp(found.st_mtime, now.tzinfo).date()
        if not found.st_size or (now.date() <= self._day and found.st_size < most_bytes):
            return False
        target = self.path.with_name(f"{self.path.name}.{now.astimezone(UTC):%Y%m%dT%H%M%S%fZ}")
        self._disk.rename(self.path, target)
        self._day = now.date()
        return True


def aside(folder: Path) -> list[Path]:
    """What was put aside in this folder, newest first."""
    return sorted(folder.glob("*.log.*"), key=lambda path: (path.name.partition(".log.")[2], path.name), reverse=True)


def thin(folder: Path, kept: int = KEPT, kept_bytes: int = KEPT_BYTES, disk: Disk = DISK) -> list[Path]:
    """Removes the oldest beyond `kept` of each log and `kept_bytes` of all; the newest of each stays. Returns them."""
    counts: dict[str, int] = {}
    total, gone = 0, []
    for path in aside(folder):
        name = path.name.partition(".log.")[0]
        counts[name] = counts.get(name, 0) + 1
        total += path.stat().st_size
        if counts[name] > kept or (counts[name] > 1 and total > kept_bytes):
            disk.remove(path)
            gone.append(path)
    return gone


def writes_to(path: Path, descriptor: int = STDERR) -> bool:
    """Whether this process has that file as its stderr: it must open it afresh when it is put aside."""
    found = os.fstat(descriptor)
    return stat.S_ISREG(found.st_mode) and path.exists() and os.path.samestat(found, path.stat())


def reopen(path: Path, descriptors: Sequence[int] = (STDOUT, STDERR)) -> None:
    """Lets stdout and stderr go on in the file that has this name now. Raises OSError where it cannot be opened."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        for descriptor in descriptors:
            os.dup2(handle, descriptor)
    finally:
        os.close(handle)
