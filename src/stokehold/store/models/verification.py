"""Every version and checkpoint compared with its manifest; what many of them share is read once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stokehold.store import files
from stokehold.store.files import Bad, hash_file
from stokehold.store.home import Home
from stokehold.store.models import versions

Progress = Callable[[int, int], None]
"""Told (bytes that were read, bytes that are to be read)."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One folder: how many files and bytes it is said to have, and what is not as it should be."""

    name: str
    files: int
    bytes: int
    bad: tuple[Bad, ...]


def verify_all(home: Home, progress: Progress) -> list[Checked]:
    """Reads every byte there is once, checkpoints and then versions; folders that share a damaged file all say so."""
    checkpoints = sorted(folder for folder in home.checkpoints.iterdir() if folder.name.startswith("step_"))
    numbered = sorted(folder for folder in home.versions.iterdir() if versions.NAME.fullmatch(folder.name))
    folders = [*checkpoints, *numbered]
    known: dict[tuple[int, int], str] = {}
    sizes = {_identity(path): path.stat().st_size for folder in folders for path in _files(folder)}
    total, done = sum(sizes.values()), 0

    def digest(path: Path) -> str:
        nonlocal done
        identity = _identity(path)
        if identity not in known:
            known[identity] = hash_file(path)
            done += path.stat().st_size
            progress(done, total)
        return known[identity]

    found = []
    for folder in folders:
        entries = versions.entries(folder)
        bad = tuple(files.verify(folder, digest))
        found.append(Checked(folder.name, len(entries), sum(entry["bytes"] for entry in entries), bad))
    return found


def _files(folder: Path) -> list[Path]:
    listed = (folder / entry["path"] for entry in versions.entries(folder))
    return [path for path in listed if path.is_file()]


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
