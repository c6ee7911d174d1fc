"""Folders on a disk that has no room for some of their files, as `pathlib` meets it: the system refuses each byte."""

from pathlib import Path, PosixPath
from typing import Any

DEVICE = "/dev/full"


def full_disk(folder: Path, refused: str, times: int = 1) -> Path:
    """The folder; so many times a file of this ending below it can be made, and takes nothing."""
    left = iter(range(times))

    class Full(PosixPath):
        def open(self, mode: str = "r", *how: Any, **more: Any) -> Any:
            if not self.name.endswith(refused) or next(left, None) is None:
                return super().open(mode, *how, **more)
            super().open(mode).close()
            return open(DEVICE, mode.replace("x", "w"), *how, **more)  # noqa: PTH123

    return Full(folder)
