"""Snapshots: all that a home holds at one moment, kept by content, so that any folder may go afterwards.

`backups/<UTC stamp>-<short>/` has a consistent copy of the database, `stoke.toml` and `contents.json`: every file of
every published folder by path, bytes and BLAKE3. The content itself lies in the blob store, shared with the folders
where the file system can. Published last, the manifest says that all of it is there.

What it costs: the database is copied whole, so each snapshot grows with the rows in it; small files (under 1 MiB) cost
their bytes once, however many snapshots have them; large ones cost nothing while their folder lives, and their bytes
once from when it is deleted to when the last snapshot that names them is. Time grows with the database and with the
number of files, not with their bytes.
"""

import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

import orjson
from blake3 import blake3

from stokehold.core.errors import BusyError, IntegrityError, NotFoundError
from stokehold.core.records import JobState
from stokehold.store.blobs import BlobStore
from stokehold.store.db import dumps, job_rows
from stokehold.store.db.database import Database
from stokehold.store.files import MANIFEST, Bad, publish, read_manifest, verify
from stokehold.store.home import CONFIG_NAME, Home, Lock

KIND = "snapshot"
CONTENTS = "contents.json"
CONTENTS_FORMAT = 1
NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")
LOCK_WAIT_S = 600.0
"""Longest wait for another snapshot or a collection of blobs to end."""

LOCK_POLL_S = 0.2

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A published snapshot. `bytes` is the content it names, each blob once; `missing` could not be taken in."""

    id: str
    path: str
    reason: str
    created: str
    home: str
    """Machine and folder that it was taken of."""
    database: str
    folders: int
    files: int
    bytes: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A file by its path (in its folder, or in the home), bytes and BLAKE3; `mtime_ns` of one that may change."""

    path: str
    bytes: int
    blake3: str
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a snapshot names: published folders by their place in the home, single files, and blobs of the queue."""

    folders: Mapping[str, tuple[Entry, ...]]
    files: tuple[Entry, ...]
    queued: tuple[Entry, ...]
    missing: tuple[str, ...]

    def entries(self) -> Iterator[Entry]:
        """Every entry; the same content may come more than once."""
        for folder in self.folders.values():
            yield from folder
        yield from self.files
        yield from self.queued

    def blobs(self) -> dict[str, int]:
        """Bytes by hash, each blob once."""
        return {entry.blake3: entry.bytes for entry in self.entries()}


def quiet(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def snapshot(home: Home, db: Database, reason: str, progress: Progress = quiet) -> Snapshot:
    """Takes a snapshot of the home; it is whole when this returns, or it is not there.

    Checkpoints are taken in before the database is copied, and again after it: whichever retention prunes meanwhile,
    there is one that the copy's journal reaches. Raises `IntegrityError` for a damaged database, `DiskFullError`
    where there is no room, and `BusyError` where another one does not end.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = home.backups / f"{stamp}-{uuid4().hex[:6]}"
    known: dict[str, str] = {}
    where = f"{socket.gethostname()}:{home.root}"
    manifest: dict[str, Any] = {"kind": KIND, "reason": reason, "home": where, "database": db.engine.dialect.name}

    def write(stage: Path) -> None:
        progress("checkpoints", 0, 0)
        early = _Collector(home, progress)
        early.take_folders([home.checkpoints])
        progress("database", 0, 0)
        name, digest = dumps.dump(db, stage, home.disk)
        known[name] = digest
        contents = _collect(home, db, early, progress)
        for name, content in ((CONTENTS, _encode(contents)), (CONFIG_NAME, home.config_path.read_bytes())):
            home.disk.write(stage / name, content)
            known[name] = blake3(content).hexdigest()
        manifest.update(_counts(contents))

    with blobs_lock(home, "taking a snapshot"):
        publish(folder, write, manifest, known=known, disk=home.disk)
    return load_snapshot(folder)


def load_snapshot(folder: Path) -> Snapshot:
    """The record of one snapshot by its manifest, content not read."""
    manifest = read_manifest(folder)
    if manifest.get("kind") != KIND:
        raise IntegrityError("not a snapshot", str(folder), "name a folder under backups/")
    return of_manifest(folder.name, manifest, str(folder))


def of_manifest(name: str, manifest: Mapping[str, Any], path: str) -> Snapshot:
    """The record that a snapshot's manifest tells."""
    told = {key: manifest[key] for key in ("reason", "created", "home", "database", "folders", "bytes")}
    return Snapshot(name, path, **told, files=manifest["content_files"], missing=tuple(manifest["missing"]))


def list_snapshots(home: Home) -> list[Snapshot]:
    """Every published snapshot, oldest first; folders without a readable manifest do not exist."""
    found = []
    for folder in sorted(path for path in home.backups.iterdir() if NAME.fullmatch(path.name)):
        try:
            found.append(load_snapshot(folder))
        except IntegrityError:
            continue
    return sorted(found, key=lambda each: (each.created, each.id))


def newest(home: Home) -> Snapshot | None:
    """The newest snapshot by its name, which begins with its time; reads one manifest however many there are."""
    for folder in sorted((path for path in home.backups.iterdir() if NAME.fullmatch(path.name)), reverse=True):
        try:
            return load_snapshot(folder)
        except IntegrityError:
            continue
    return None


def find_snapshot(home: Home, name: str | None = None) -> Snapshot:
    """The snapshot of this name, or the newest; `NotFoundError`."""
    there = list_snapshots(home)
    found = [each for each in there if name in (None, each.id)]
    if not found:
        fix = f"there are: {', '.join(each.id for each in there[-5:])}" if there else "`stoke backup run` takes one"
        raise NotFoundError("no such snapshot", name or str(home.backups), fix)
    return found[-1]


def contents(folder: Path) -> Contents:
    """What the snapshot in this folder names; `IntegrityError` where its list is not what its manifest says."""
    path = folder / CONTENTS
    entry = next((e for e in read_manifest(folder)["files"] if e["path"] == CONTENTS), None)
    if entry is None or not path.is_file():
        raise IntegrityError("the list of what it holds is missing", str(path), "use another snapshot")
    return decode(path.read_bytes(), entry["blake3"], str(path))


def verify_snapshot(home: Home, found: Snapshot, progress: Progress = quiet) -> list[Bad]:
    """Everything that is not what the snapshot says: its own files, its database, and every blob, read whole."""
    folder = Path(found.path)
    bad = verify(folder)
    if bad:
        return bad
    copy = folder / dumps.FILES["sqlite"]
    if found.database == "sqlite" and (why := dumps.fault(copy)):
        bad.append(Bad(copy.name, why))
    blobs, store = contents(folder).blobs(), BlobStore(home.blobs, home.disk)
    total, done = sum(blobs.values()), 0
    for digest, size in blobs.items():
        progress("verify", done, total)
        if why := store.verify(digest):
            bad.append(Bad(f"blob {digest}", why))
        done += size
    return bad


def blobs_lock(home: Home, purpose: str) -> Lock:
    """The lock under which blobs are taken into a snapshot, or collected; waited for up to `LOCK_WAIT_S`.

    Take a snapshot before it, never inside.
    """
    end_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return home.lock("blobs", purpose)
        except BusyError:
            if time.monotonic() > end_s:
                raise
            time.sleep(LOCK_POLL_S)


def decode(content: bytes, digest: str, where: str) -> Contents:
    """The list in its form on disk; `IntegrityError` where it is not of this hash, newer, or names what it may not."""
    if blake3(content).hexdigest() != digest:
        raise IntegrityError("the list of what it holds is damaged", where, "use another snapshot")
    tree = orjson.loads(content)
    if tree["format"] > CONTENTS_FORMAT:
        raise IntegrityError(f"a list of the newer format {tree['format']}", where, "upgrade stokehold")
    folders = {place: tuple(Entry(**entry) for entry in entries) for place, entries in tree["folders"].items()}
    files, queued = (tuple(Entry(**entry) for entry in tree[name]) for name in ("files", "queued"))
    found = Contents(folders, files, queued, tuple(tree["missing"]))
    for name in (*folders, *(entry.path for entry in found.entries())):
        check_path(name, where)
    return found


def check_path(name: str, where: str) -> None:
    """Raises `IntegrityError` for a path that leaves its folder."""
    pure = PurePosixPath(name)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in name:
        raise IntegrityError(f"a path outside the home: {name!r}", where, "do not trust it")


def _encode(found: Contents) -> bytes:
    return orjson.dumps({"format": CONTENTS_FORMAT, **asdict(found)})


def _counts(found: Contents) -> dict[str, Any]:
    """What the manifest tells of the list, so that nobody needs to read it to list snapshots."""
    facts = {"folders": len(found.folders), "content_files": sum(1 for _ in found.entries())}
    return {**facts, "bytes": sum(found.blobs().values()), "missing": list(found.missing)}


def _collect(home: Home, db: Database, early: "_Collector", progress: Progress) -> Contents:
    found = _Collector(home, progress, early)
    found.take_folders([home.base, home.datasets, home.checkpoints, home.versions, home.evaluations, home.sessions])
    found.take_files([home.suites, home.sessions])
    found.take_queue(db)
    return Contents(found.folders, tuple(found.files), tuple(found.queued), tuple(dict.fromkeys(found.missing)))


class _Collector:
    """Takes content into the blob store and notes it down."""

    def __init__(self, home: Home, progress: Progress, early: "_Collector | None" = None) -> None:
        self._home, self._progress = home, progress
        self._blobs = BlobStore(home.blobs, home.disk)
        self.folders: dict[str, tuple[Entry, ...]] = dict(early.folders) if early else {}
        self.files: list[Entry] = []
        self.queued: list[Entry] = []
        self.missing: list[str] = list(early.missing) if early else []

    def take_folders(self, shelves: Sequence[Path]) -> None:
        """Every published folder directly on these shelves; one that goes away meanwhile is none."""
        wanted = [folder for shelf in shelves for folder in sorted(shelf.iterdir()) if (folder / MANIFEST).is_file()]
        for number, folder in enumerate(wanted):
            self._progress("folders", number, len(wanted))
            place = folder.relative_to(self._home.root).as_posix()
            if place not in self.folders and (entries := self._take_folder(folder)):
                self.folders[place] = entries

    def take_files(self, shelves: Sequence[Path]) -> None:
        """Files outside published folders; one that did not change since the last snapshot is not read again."""
        known = self._known()
        for path in (path for shelf in shelves for path in sorted(shelf.rglob("*")) if _is_plain(path, shelf)):
            name, found = path.relative_to(self._home.root).as_posix(), path.stat()
            same = known.get((name, found.st_size, found.st_mtime_ns))
            if same is not None and self._blobs.path(same.blake3).is_file():
                self.files.append(same)
                continue
            digest = self._blobs.add(path)
            size = self._blobs.path(digest).stat().st_size
            self.files.append(Entry(name, size, digest, found.st_mtime_ns if size == found.st_size else None))

    def take_queue(self, db: Database) -> None:
        """Submitted files that wait: their blobs, which no dataset holds yet."""
        for job in job_rows.list_jobs(db, (*job_rows.UNFINISHED, JobState.FAILED)):
            if job.kind != "ingest":
                continue
            digest = job_rows.get_payload(db, job.id)["content_hash"]
            if (blob := self._blobs.path(digest)).is_file():
                self.queued.append(Entry(blob.relative_to(self._home.root).as_posix(), blob.stat().st_size, digest))

    def _take_folder(self, folder: Path) -> tuple[Entry, ...]:
        entries = []
        try:
            manifest = read_manifest(folder)
            text = (folder / MANIFEST).read_bytes()
        except IntegrityError as error:
            return self._note_missing(folder, error.what) if folder.exists() else ()
        whole = [*manifest["files"], {"path": MANIFEST, "bytes": len(text), "blake3": blake3(text).hexdigest()}]
        for listed in whole:
            entry = Entry(listed["path"], listed["bytes"], listed["blake3"])
            try:
                self._blobs.adopt(folder / entry.path, entry.blake3, entry.bytes)
            except (FileNotFoundError, IntegrityError) as error:
                return self._note_missing(folder / entry.path, str(error)) if (folder / MANIFEST).exists() else ()
            entries.append(entry)
        return tuple(entries)

    def _note_missing(self, path: Path, why: str) -> tuple[Entry, ...]:
        self.missing.append(f"{path.relative_to(self._home.root).as_posix()}: {why}")
        return ()

    def _known(self) -> dict[tuple[str, int, int | None], Entry]:
        last = newest(self._home)
        try:
            files = contents(Path(last.path)).files if last else ()
        except (IntegrityError, OSError):
            return {}  # it only spares reading files again
        return {(entry.path, entry.bytes, entry.mtime_ns): entry for entry in files}


def _is_plain(path: Path, shelf: Path) -> bool:
    """A file of ours outside published folders; hidden ones are being written."""
    inner = path.relative_to(shelf)
    if any(part.startswith(".") for part in inner.parts) or path.is_symlink() or not path.is_file():
        return False
    return len(inner.parts) == 1 or not (shelf / inner.parts[0] / MANIFEST).is_file()
