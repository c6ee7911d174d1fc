"""What is taken out of the way is moved here with its reason; only `empty` deletes, and only what is old enough."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.errors import BusyError
from stokehold.store.files import MANIFEST, UNCONFIRMED, refusals, utc_now, write_atomic
from stokehold.store.home import Home
from stokehold.store.housekeeping import ages

KEEP_S = 7 * 24 * 3600.0
"""How long a folder that was set aside can be had back."""

PRUNED_KEEP_S = 3600.0
"""How long one that retention pruned stays: trash frees no space, and newer verified ones exist."""

PRUNED = "pruned"
NAME = re.compile(r"(\d+)-(.+)")
"""When it came, in nanoseconds by the clock of `ages`, and its own name."""


@dataclass(frozen=True, slots=True)
class Discarded:
    """A folder in the trash: where it is, where it was, why, and since when."""

    path: Path
    origin: str
    reason: str
    created: str


def discard(home: Home, folder: Path, reason: str) -> Path:
    """Moves a folder of the home into the trash in one step; returns where it is now."""
    target = reserve(home, folder, reason)
    with refusals(folder):
        home.disk.rename(folder, target)
    with refusals(folder, UNCONFIRMED):
        home.disk.sync(folder.parent)
        home.disk.sync(home.trash)
    return target


def reserve(home: Home, folder: Path, reason: str) -> Path:
    """Writes down that `folder` comes to the trash and why; returns the name to move it to."""
    home.trash.mkdir(exist_ok=True)
    target = _free(home, folder.name)
    note = {"origin": folder.relative_to(home.root).as_posix(), "reason": reason, "created": utc_now()}
    write_atomic(_note(target), orjson.dumps(note), disk=home.disk)
    return target


def listing(home: Home) -> list[Discarded]:
    """What is in the trash, oldest first."""
    found = []
    for folder in sorted(path for path in home.trash.iterdir() if path.is_dir() and NAME.fullmatch(path.name)):
        note = _read_note(folder)
        origin, reason = note.get("origin", NAME.sub(r"\2", folder.name)), note.get("reason", "unknown")
        found.append(Discarded(folder, origin, reason, note.get("created", "")))
    return found


def expired(home: Home, keep_s: float = KEEP_S, pruned_keep_s: float = PRUNED_KEEP_S) -> list[Discarded]:
    """What has been here for longer than it can be had back, oldest first."""
    found, now_s = [], ages.present_s(home)
    for entry in listing(home):
        age_s = now_s - int(entry.path.name.partition("-")[0]) / 1e9
        if age_s >= (pruned_keep_s if entry.reason == PRUNED else keep_s):
            found.append(entry)
    return found


def find(home: Home, folder: Path) -> list[Path]:
    """Where a folder of the home is in the trash, the newest first."""
    origin = folder.relative_to(home.root).as_posix()
    return [entry.path for entry in reversed(listing(home)) if entry.origin == origin]


def put_back(home: Home, discarded: Path, folder: Path) -> None:
    """Moves what is in the trash to where it was, in one step; nothing may be there."""
    with refusals(folder):
        home.disk.rename(discarded, folder)
    with refusals(folder, UNCONFIRMED):
        home.disk.sync(folder.parent)
        home.disk.sync(home.trash)


def empty(home: Home, keep_s: float = KEEP_S, pruned_keep_s: float = PRUNED_KEEP_S) -> list[str]:
    """Deletes what has been here for longer; returns the origins. Nothing where another process is at it."""
    try:
        lock = home.lock("trash", "emptying the trash")
    except BusyError:
        return []
    gone = []
    with lock, refusals(home.trash, "what is left goes the next time"):
        for note in home.trash.glob("*.json"):
            if not note.with_suffix("").exists() and ages.present_s(home) - note.stat().st_mtime > keep_s:
                home.disk.remove(note)  # its folder was never moved: the process died, or publishing failed
        for entry in expired(home, keep_s, pruned_keep_s):
            home.disk.remove(entry.path / MANIFEST)  # first: half a folder must not look whole
            home.disk.remove_tree(entry.path)
            home.disk.remove(_note(entry.path))
            gone.append(entry.origin)
    return gone


def _read_note(folder: Path) -> dict[str, Any]:
    """What was written down of it; nothing where that was lost or does not speak of this folder."""
    try:
        note = orjson.loads(_note(folder).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    named = Path(str(note.get("origin"))).name if isinstance(note, dict) else ""
    return note if named == NAME.sub(r"\2", folder.name) else {}


def _free(home: Home, name: str) -> Path:
    """A name that nothing here has, stamped by the clock that `expired` counts to: the wall's may be days ahead."""
    stamp = int(ages.present_s(home) * 1e9)
    while (target := home.trash / f"{stamp}-{name}").exists() or _note(target).exists():
        stamp += 1
    return target


def _note(target: Path) -> Path:
    return target.parent / f"{target.name}.json"
