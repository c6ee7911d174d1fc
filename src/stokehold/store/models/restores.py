"""A damaged or missing folder made whole again: staged, verified, swapped in one step, the previous one kept.

What it was, its manifest tells: the folder's own, that of its copy in the trash, what the database remembers of a
version, or a snapshot. Each file is taken from wherever the same content is found whole: its blob, the folder itself,
any other folder that has it, the trash, the second location of the backups. Nothing is taken unread.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.errors import IntegrityError, NotFoundError, StokeholdError
from stokehold.store import files
from stokehold.store.backup import backups
from stokehold.store.backup.locations import blob_name, open_location
from stokehold.store.blobs import BlobStore, share
from stokehold.store.db.database import Database
from stokehold.store.files import MANIFEST, Bad, hash_file, publish, read_manifest, refusals, staging
from stokehold.store.home import Home
from stokehold.store.housekeeping import compaction, trash
from stokehold.store.models import checkpoints, versions
from stokehold.store.models.adapters import base_of
from stokehold.store.models.references import STEP_REF, resolve

DAMAGED = "damaged, and restored"

Fetch = Callable[[str, Path], bool]
"""Brings the content of this BLAKE3 from elsewhere to a new file; False where it is not there."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The folder that is whole now, where the one before it is kept, and others that still have the bad content."""

    name: str
    path: str
    kept_previous: str | None
    was: tuple[Bad, ...]
    still_damaged: tuple[str, ...]


def restore(home: Home, db: Database, ref: str) -> Restored:
    """Makes a version or a checkpoint whole; one that verifies is left as it is.

    Raises `NotFoundError` where nothing tells what it was, and `IntegrityError` naming the files whose content is
    nowhere: then nothing has changed.
    """
    folder = _place(home, db, ref)
    bad = files.verify(folder)
    if any("newer format" in fault.reason for fault in bad):
        raise IntegrityError(bad[0].reason, folder.name, "upgrade stokehold; nothing was changed")
    if not bad:
        compaction.whole(home, folder)
        return Restored(folder.name, str(folder), None, (), ())
    manifest = _find_manifest(home, db, folder)
    others = _sharing(home, folder, bad)
    replaced = trash.reserve(home, folder, DAMAGED) if folder.exists() else None
    whole = {key: value for key, value in manifest.items() if key != compaction.PACKED}
    whole["files"] = compaction.entries(manifest)
    sources = _Sources(home, folder, _second_place(home))
    try:
        _rebuild(home, folder, whole, sources, replaced)
    except IntegrityError:
        if not compaction.is_packed(manifest):
            raise
        _rebuild(home, folder, manifest, sources, replaced)
        compaction.whole(home, folder)
    return Restored(folder.name, str(folder), str(replaced) if replaced else None, tuple(bad), others)


def _rebuild(home: Home, folder: Path, manifest: Mapping[str, Any], sources: "_Sources", replaced: Path | None) -> None:
    """Publishes the folder from what its sources have; the old one is at `replaced` then."""

    def write(stage: Path) -> None:
        lacking = []
        for entry in manifest["files"]:
            backups.check_path(entry["path"], folder.name)
            if not sources.bring(entry, stage / entry["path"]):
                lacking.append(entry["path"])
        if lacking:
            what = f"the content of {', '.join(lacking)} is damaged or gone wherever it was"
            raise IntegrityError(what, folder.name, "restore it from a backup; nothing was changed")

    known = {entry["path"]: entry["blake3"] for entry in manifest["files"]}
    publish(folder, write, manifest, known, replaced, home.disk)


def copy_to(home: Home, folder: Path, target: Path) -> int:
    """A copy of a published folder at a place that must not exist; returns its bytes, each of them hashed on the way.

    Adapters are refused: they find their base by where they lie.
    """
    manifest = read_manifest(folder)
    if base_of(folder) is not None:
        raise StokeholdError("adapters without their base", folder.name, "`stoke versions export` takes both along")
    if target.exists():
        raise StokeholdError("something is there already", str(target), "name a folder that does not exist")
    with refusals(target), staging(target, home.disk) as stage:
        for entry in manifest["files"]:
            (stage / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
            if home.disk.copy(folder / entry["path"], stage / entry["path"]) != entry["blake3"]:
                fix = f"`stoke versions restore {folder.name}` first"
                raise IntegrityError("content changed since it was published", str(folder / entry["path"]), fix)
        home.disk.write(stage / MANIFEST, (folder / MANIFEST).read_bytes())
        home.disk.sync(stage)
        home.disk.rename(stage, target)
    with refusals(target, files.UNCONFIRMED):
        home.disk.sync(target.parent)
    return sum(entry["bytes"] for entry in manifest["files"])


def _second_place(home: Home) -> Fetch:
    """Brings content from the second location of the backups, where the settings name one."""
    where = home.config().store.backup_to
    location = open_location(where, home.disk) if where else None

    def fetch(digest: str, target: Path) -> bool:
        if location is None:
            return False
        try:
            return location.get(blob_name(digest), target, home.disk) == digest
        except NotFoundError:
            return False

    return fetch


def _place(home: Home, db: Database, ref: str) -> Path:
    """Where the reference is or would be; a version or a step need not be there."""
    if (name := versions.full_name(ref)) is not None:
        return home.versions / name
    if match := STEP_REF.fullmatch(ref):
        return checkpoints.checkpoint_folder(home, int(match[1]))
    if (name := versions.alias(db, ref)) is not None:
        return home.versions / name
    return resolve(home, db, ref, paths=False, read=False)


def _find_manifest(home: Home, db: Database, folder: Path) -> dict[str, Any]:
    """What the folder was, without the files' own word for it."""
    for place in (folder, *trash.find(home, folder)):
        if (place / MANIFEST).is_file():
            try:
                return read_manifest(place)
            except IntegrityError:
                continue  # damaged as well: the next one tells
    if folder.parent == home.versions and (known := versions.remembered(db, folder.name)):
        return known
    if (told := _of_snapshots(home, folder)) is not None:
        return told
    shelf = "versions list" if folder.parent == home.versions else "checkpoints"
    raise NotFoundError("nothing tells what it was", folder.name, f"`stoke {shelf}` shows what there is")


def _of_snapshots(home: Home, folder: Path) -> dict[str, Any] | None:
    """The manifest in the newest snapshot that has the folder."""
    place = folder.relative_to(home.root).as_posix()
    blobs = BlobStore(home.blobs)
    for snapshot in reversed(backups.list_snapshots(home)):
        for entry in backups.contents(Path(snapshot.path)).folders.get(place, ()):
            if entry.path == MANIFEST and blobs.verify(entry.blake3) is None:
                found: dict[str, Any] = orjson.loads(blobs.path(entry.blake3).read_bytes())
                return found
    return None


class _Sources:
    """Every place where content may be found, asked in the order of what it costs."""

    def __init__(self, home: Home, folder: Path, fetch: Fetch) -> None:
        self._home, self._fetch = home, fetch
        self._blobs = BlobStore(home.blobs, home.disk)
        shelves = (home.checkpoints, home.versions, home.base, home.trash)
        others = [other for shelf in shelves for other in sorted(shelf.iterdir()) if other != folder]
        self._places: dict[str, list[Path]] = {}
        for place in (folder, *others):
            for entry in versions.entries(place):
                self._places.setdefault(entry["blake3"], []).append(place / entry["path"])

    def bring(self, entry: Mapping[str, Any], target: Path) -> bool:
        """Puts the entry's content at `target`, and into the blob store where it was not whole there."""
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = entry["blake3"]
        for path in self._candidates(digest):
            if path.is_file() and path.stat().st_size == entry["bytes"] and hash_file(path) == digest:
                share(path, target, self._home.disk)
                break
        else:
            if not self._fetch(digest, target) or hash_file(target) != digest:
                target.unlink(missing_ok=True)
                return False
        blob = self._blobs.path(digest)
        if blob.is_file() and not blob.samefile(target) and self._blobs.verify(digest) is not None:
            self._blobs.mend(target, digest)
        return True

    def _candidates(self, digest: str) -> Iterator[Path]:
        yield self._blobs.path(digest)
        yield from self._places.get(digest, ())


def _sharing(home: Home, folder: Path, bad: list[Bad]) -> tuple[str, ...]:
    """Folders whose file is the very one that is damaged here."""
    wrong = {path.stat().st_ino for each in bad if (path := folder / each.path).is_file()}
    shelves = (*home.checkpoints.iterdir(), *home.versions.iterdir())
    found = []
    for other in sorted(path for path in shelves if path != folder):
        paths = (other / entry["path"] for entry in versions.entries(other))
        if any(path.is_file() and path.stat().st_ino in wrong for path in paths):
            found.append(other.name)
    return tuple(found)
