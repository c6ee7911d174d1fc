"""How much room there is, what taking files away would give back, and when training waits for room."""

import itertools
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stokehold.core.config import StoreConfig

BLOCK_BYTES = 512
"""Unit of `st_blocks`, whatever the file system's own."""

LIFT = 1.2
"""A pause ends when this many times the share is free at which it began: no flutter at the edge."""

LOOK_S = 2.0

Level = Literal["ok", "low", "full"]


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of a file system: what an ordinary user may still write, and all."""

    free: int
    total: int

    @property
    def share(self) -> float:
        """Share that is free; 1 of a file system that tells no size."""
        return self.free / self.total if self.total else 1.0


def room(path: Path) -> Room:
    """Of the file system that holds `path`."""
    found = os.statvfs(path)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    free = found.f_bavail * found.f_frsize
    return Room(free, used + free)


def level(there: Room, config: StoreConfig, waiting: bool = False) -> Level:
    """`low` warns, `full` makes training wait. One that waits already goes on when there is clearly more room."""
    bound = config.pause_free_share * (LIFT if waiting else 1.0)
    if there.share < bound:
        return "full"
    return "low" if there.share < config.warn_free_share else "ok"


class Guard:
    """Says when training has to wait for room, and `note`s (kind, sentence) when that begins and ends.

    `read` is asked at most every LOOK_S seconds, however often `full` is.
    """

    def __init__(self, config: StoreConfig, read: Callable[[], Room], note: Callable[[str, str], None]) -> None:
        self._config, self._read, self._note = config, read, note
        self._looked_s = -math.inf
        self.waiting = False

    def full(self, now_s: float) -> bool:
        """Whether to wait; `now_s` is a monotonic time."""
        if now_s - self._looked_s < LOOK_S:
            return self.waiting
        self._looked_s = now_s
        there = self._read()
        waiting = level(there, self._config, self.waiting) == "full"
        if waiting and not self.waiting:
            bound = f"{100 * self._config.pause_free_share:.0f} %"
            text = f"{100 * there.share:.1f} % of the disk is free, less than {bound}: training waits for room"
            self._note("disk_pause", text)
        elif self.waiting and not waiting:
            self._note("disk_room", f"{100 * there.share:.1f} % of the disk is free: training goes on")
        self.waiting = waiting
        return waiting


def freed(paths: Iterable[Path]) -> int:
    """Bytes that come back when these files and folders go: a file of several names counts when all of them go.

    What a file system shares below its files (reflinks) cannot be told apart and is counted for each.
    """
    names: dict[tuple[int, int], int] = {}
    there: dict[tuple[int, int], os.stat_result] = {}
    for found in {file: found for path in paths for file, found in files_of(path)}.values():
        key = (found.st_dev, found.st_ino)
        names[key] = names.get(key, 0) + 1
        there[key] = found
    return sum(found.st_blocks * BLOCK_BYTES for key, found in there.items() if names[key] >= found.st_nlink)


def files_of(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The files and links in a folder, or the file itself; what a living trainer removes meanwhile is left out."""
    inside = (Path(folder) / name for folder, folders, files in os.walk(path) for name in (*folders, *files))
    for each in (path,) if path.is_symlink() else itertools.chain((path,), inside):
        with suppress(FileNotFoundError):
            found = each.lstat()
            if not stat.S_ISDIR(found.st_mode):
                yield each, found
