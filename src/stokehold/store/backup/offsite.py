"""Snapshots in a second place: copied there blob by blob, listed, checked, and the record of the last time.

Only blobs that the place does not have travel, each is read back, and a snapshot's manifest comes last: a copy that
was killed leaves whole blobs, which the next one finds. What it costs: the database whole each time, every other
content once; no object is ever removed from the place, only what a killed copy left half written. A run lists every
object there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.errors import IntegrityError, NotFoundError, StokeholdError, UsageError
from stokehold.store.backup.backups import (
    CONTENTS,
    NAME,
    Contents,
    Progress,
    Snapshot,
    contents,
    decode,
    newest,
    of_manifest,
    quiet,
    snapshot,
)
from stokehold.store.backup.locations import (
    MARKER,
    HomeLocation,
    Location,
    blob_name,
    check_names,
    mark,
    open_location,
    snapshot_name,
)
from stokehold.store.blobs import BlobStore
from stokehold.store.db.database import Database
from stokehold.store.files import (
    MANIFEST,
    Bad,
    hash_file,
    parse_manifest,
    read_manifest,
    refusals,
    utc_now,
    write_atomic,
)
from stokehold.store.home import Home
from stokehold.store.housekeeping import ages

RESULT = "backup.json"
COPYING = "backup.copying"
"""In `status/`: the object under way to a place that shows it before it was read back."""

HALF_S = 24 * 3600.0
"""What is half written at the place for longer than this has no writer: other homes may be copying there now."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What travelled and what was there already, in objects and bytes."""

    objects: int
    bytes: int
    skipped_objects: int
    skipped_bytes: int


@dataclass(frozen=True, slots=True)
class Result:
    """How the last backup ended: `succeeded` is when one last did, by its place, "" for none. ISO 8601, UTC."""

    ended: str
    ok: bool
    succeeded: Mapping[str, str]
    snapshot: str | None
    location: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Standing:
    """The newest snapshot, when one was last taken, or, where a second place is set, last copied there; how the last
    run of `stoke backup`, or of the night, ended: None before there was one."""

    snapshot: str | None
    taken: str | None
    ok: bool | None
    location: str | None
    error: str | None


def run(
    home: Home, db: Database, reason: str, to: str, progress: Progress = quiet, anew: bool = False
) -> tuple[Snapshot, Copied | None]:
    """Takes a snapshot and, with `to`, copies it there; how it ended is kept in `status/backup.json`.

    Raises `BusyError` while another copy is under way, and `StokeholdError` where the place that held the last one is
    empty now, unless `anew`: a disk that is not mounted must not be taken for a new one.
    """
    with home.lock("backup", "a backup"):
        taken: Snapshot | None = None
        try:
            taken = snapshot(home, db, reason, progress)
            copied = copy(home, taken, _open(home, to, anew), progress) if to else None
        except BaseException as error:
            _note(home, taken, to, str(error) or type(error).__name__)
            raise
        _note(home, taken, to, None)
    return taken, copied


def copy(home: Home, found: Snapshot, location: Location, progress: Progress = quiet) -> Copied:
    """Copies what the location lacks of a snapshot, its manifest last.

    A blob that is damaged here is passed over until all others are there; then `IntegrityError` names it, and no
    manifest is written.
    """
    if isinstance(location, HomeLocation):
        raise UsageError("a home is no place for a backup", location.place, "choose a folder outside it")
    if not (there := check_names(location)):
        mark(location)
    location.sweep(ages.present_s(home) - HALF_S)
    _recheck(home, location, there)
    wanted = list(_sources(home, found))
    total, done, bad, sent = sum(size for _, size, _ in wanted), 0, [], []
    for digest, size, source in wanted:
        progress("copy", done, total)
        done += size
        if there.get(blob_name(digest)) == size:
            continue
        if why := _put(home, location, digest, source):
            bad.append(f"{source}: {why}")
        else:
            sent.append(size)
    if bad:
        fix = "`stoke versions verify` names the folders; delete or restore them, then back up again"
        raise IntegrityError(f"{len(bad)} damaged files cannot be backed up", bad[0], fix)
    if snapshot_name(found.id) not in there:
        location.write(snapshot_name(found.id), (Path(found.path) / MANIFEST).read_bytes())
    return Copied(len(sent), sum(sent), len(wanted) - len(sent), total - sum(sent))


def listing(location: Location) -> tuple[list[Snapshot], list[str]]:
    """The snapshots there, oldest first, and the names of manifests that cannot be read."""
    found, damaged = [], []
    for name in sorted(name for name in check_names(location) if name.startswith("snapshots/")):
        try:
            found.append(_record(location, name))
        except IntegrityError:
            damaged.append(name)
    return sorted(found, key=lambda each: (each.created, each.id)), damaged


def find(location: Location, name: str | None = None) -> Snapshot:
    """The snapshot of this name, or the newest of the one home whose snapshots these are; `NotFoundError`."""
    if name is not None and not NAME.fullmatch(name):
        raise NotFoundError("not the name of a snapshot", name, "`stoke backup list --at` shows them")
    there, _ = listing(location)
    found = [each for each in there if name in (None, each.id)]
    if not found:
        raise NotFoundError(
            "no such snapshot", f"{location.place}: {name or 'none at all'}", "`stoke backup list --at`"
        )
    homes = sorted({each.home for each in found})
    if len(homes) > 1:
        raise NotFoundError("snapshots of several homes", ", ".join(homes), "name one: `stoke backup list --at`")
    return found[-1]


def verify(location: Location, found: Snapshot, progress: Progress = quiet) -> list[Bad]:
    """Everything there that is not what the snapshot says; every byte of it is read back."""
    wanted = {entry["blake3"]: entry["bytes"] for entry in manifest_of(location, found.id)["files"]}
    bad: list[Bad] = []
    try:
        wanted |= contents_of(location, found.id).blobs()
    except (IntegrityError, NotFoundError) as error:
        bad.append(Bad(CONTENTS, error.what))
    total, done = sum(wanted.values()), 0
    for digest, size in wanted.items():
        progress("verify", done, total)
        done += size
        try:
            if location.digest(blob_name(digest)) != digest:
                bad.append(Bad(blob_name(digest), "content changed"))
        except NotFoundError:
            bad.append(Bad(blob_name(digest), "missing"))
    return bad


def manifest_of(location: Location, snapshot_id: str) -> dict[str, Any]:
    """The manifest of a snapshot that lies there."""
    name = snapshot_name(snapshot_id)
    return parse_manifest(location.read(name), f"{location.place}/{name}")


def contents_of(location: Location, snapshot_id: str) -> Contents:
    """What a snapshot that lies there names."""
    listed = {entry["path"]: entry["blake3"] for entry in manifest_of(location, snapshot_id)["files"]}
    where = f"{location.place}/{snapshot_name(snapshot_id)}"
    if CONTENTS not in listed:
        raise IntegrityError("a snapshot without the list of what it holds", where, "use another snapshot")
    return decode(location.read(blob_name(listed[CONTENTS])), listed[CONTENTS], where)


def last_result(home: Home) -> Result | None:
    """How the last backup ended; None where there never was one."""
    path = home.status / RESULT
    return Result(**orjson.loads(path.read_bytes())) if path.is_file() else None


def standing(home: Home, location: str) -> Standing | None:
    """How the backups stand, `location` being the second place that is set; None where there never was one."""
    last, result = newest(home), last_result(home)
    if last is None and result is None:
        return None
    taken = last.created if last else None
    if location:
        taken = result.succeeded.get(location) if result else None
    named = last.id if last else None
    return Standing(named, taken, result.ok if result else None, location or None, result.error if result else None)


def _open(home: Home, to: str, anew: bool) -> Location:
    location, before = open_location(to, home.disk), last_result(home)
    if not anew and before and to in before.succeeded and MARKER not in location.names():
        fix = "mount or connect it; if it is to begin anew, say --anew"
        raise StokeholdError("the place of the last backup is empty", location.place, fix)
    return location


def _note(home: Home, taken: Snapshot | None, to: str, error: str | None) -> None:
    before, now = last_result(home), utc_now()
    succeeded = {**(before.succeeded if before else {}), **({to: now} if error is None else {})}
    result = Result(now, error is None, succeeded, taken.id if taken else None, to or None, error)
    write_atomic(home.status / RESULT, orjson.dumps(asdict(result)), disk=home.disk)


def _record(location: Location, name: str) -> Snapshot:
    try:
        return of_manifest(Path(name).stem, manifest_of(location, Path(name).stem), f"{location.place}/{name}")
    except (KeyError, TypeError) as error:
        raise IntegrityError("not the manifest of a snapshot", f"{location.place}/{name}", "take it away") from error


def _sources(home: Home, found: Snapshot) -> Iterator[tuple[str, int, Path]]:
    """Hash, bytes and file of everything that the snapshot needs: its own files, and blobs by hash."""
    folder, blobs = Path(found.path), BlobStore(home.blobs, home.disk)
    for entry in read_manifest(folder)["files"]:
        yield entry["blake3"], entry["bytes"], folder / entry["path"]
    for digest, size in sorted(contents(folder).blobs().items()):
        yield digest, size, blobs.path(digest)


def _put(home: Home, location: Location, digest: str, source: Path) -> str | None:
    """Copies one blob; returns why it cannot be, where it is our own that is damaged."""
    under_way = home.status / COPYING
    if not location.settles:
        write_atomic(under_way, digest.encode(), disk=home.disk)
    try:
        location.put(blob_name(digest), source, digest)
    except IntegrityError:
        if source.is_file() and hash_file(source) == digest:
            raise
        return "content changed"
    except NotFoundError:
        if source.is_file():
            raise
        return "missing"
    if not location.settles:
        with refusals(under_way, "the next run goes on"):
            home.disk.remove(under_way)
    return None


def _recheck(home: Home, location: Location, there: dict[str, int]) -> None:
    """Forgets the object that a killed copy left under its name before it was read back, unless it is good."""
    under_way = home.status / COPYING
    if location.settles or not under_way.is_file():
        return
    name = blob_name(under_way.read_text())
    if name in there and location.digest(name) != Path(name).name:
        del there[name]
    with refusals(under_way, "the next run goes on"):
        home.disk.remove(under_way)
