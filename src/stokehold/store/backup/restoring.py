"""A home made anew from a snapshot: on an empty machine, with one call.

Everything comes into a staging folder beside the target and is hashed as it comes; folders are rebuilt from blobs,
their manifests last, then the database is put in. The staging folder becomes the home in one rename. The home starts
paused: what was running or waiting goes on when somebody says `stoke resume`. A kill leaves no home, and the next
restore begins anew.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from stokehold.core.config import describe, parse_config
from stokehold.core.errors import IntegrityError, StokeholdError, UsageError
from stokehold.core.records import JobState
from stokehold.store.backup import offsite
from stokehold.store.backup.backups import Contents, Entry, Progress, Snapshot, quiet
from stokehold.store.backup.locations import Location, blob_name
from stokehold.store.blobs import BlobStore
from stokehold.store.db import control, dumps, events, job_rows, journal
from stokehold.store.db.database import Database, connect, database_url
from stokehold.store.disk import DISK, Disk
from stokehold.store.files import MANIFEST, UNCONFIRMED, hash_file, refusals, staging, sweep, write_atomic
from stokehold.store.home import CONFIG_NAME, Home

CHECKPOINT = re.compile(r"checkpoints/step_(\d+)")
INCOMING = "incoming"


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored where, and what of it could not be: `unfinished` are the jobs that wait in it."""

    home: str
    snapshot: Snapshot
    files: int
    bytes: int
    unfinished: int
    left_out: tuple[str, ...]


def restore(
    location: Location,
    target: Path,
    name: str | None = None,
    new_url: str = "",
    progress: Progress = quiet,
    disk: Disk = DISK,
) -> Restored:
    """Makes a home at `target`, which is empty or not there, from the snapshot of this name or the newest.

    A snapshot of a PostgreSQL database needs `new_url`, that of an empty one. Raises `StokeholdError` where a home or
    anything else is at the target, `IntegrityError` for a blob that is not what its name says; then nothing was made.
    """
    target = target.absolute()
    _refuse_occupied(target)
    found = offsite.find(location, name)
    _refuse_database(found, new_url)
    _sweep(target, disk)
    with refusals(target), staging(target, disk) as stage:
        restored = _fill(location, found, stage, new_url, progress, disk)
        disk.sync(stage)
        disk.rename(stage, target)
    with refusals(target, UNCONFIRMED):
        disk.sync(target.parent)
    return replace(restored, home=str(target))


def _fill(location: Location, found: Snapshot, stage: Path, new_url: str, progress: Progress, disk: Disk) -> Restored:
    """A home in the staging folder."""
    own = {entry["path"]: entry["blake3"] for entry in offsite.manifest_of(location, found.id)["files"]}
    contents = offsite.contents_of(location, found.id)
    _get(location, own[CONFIG_NAME], stage / CONFIG_NAME, disk)
    _point_at(stage / CONFIG_NAME, new_url, disk)
    home = Home.open(stage, disk)
    _fetch_blobs(location, home, contents, progress)
    _put_database(location, home, own)
    db = connect(home)
    try:
        folders, left_out = _within_journal(db, contents)
        _place_files(home, folders, contents, progress)
        unfinished = _pause(db, found, left_out)
    finally:
        db.close()
    files = sum(1 for _ in contents.entries())
    size = sum(contents.blobs().values())
    return Restored(str(stage), found, files, size, unfinished, (*contents.missing, *left_out))


def _refuse_occupied(target: Path) -> None:
    if (target / CONFIG_NAME).is_file():
        fix = "choose another folder; to have one version back, `stoke versions restore`"
        raise StokeholdError("a home is here already", str(target), fix)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StokeholdError("the folder is not empty", str(target), "choose another, or one that is not there yet")


def _refuse_database(found: Snapshot, url: str) -> None:
    if found.database == "postgresql" and not url:
        what = "this snapshot is of a PostgreSQL database"
        raise UsageError(what, found.id, "create an empty one and give its URL: --database-url postgresql://…")
    if found.database == "sqlite" and url:
        raise UsageError("this snapshot is of an SQLite database", found.id, "leave --database-url away")


def _sweep(target: Path, disk: Disk) -> None:
    """What a killed restore to the same place left; other folders beside it are not ours."""
    sweep(target.parent, disk, f"{target.name}-")


def _get(location: Location, digest: str, path: Path, disk: Disk) -> None:
    """Brings one object; `IntegrityError` where it is not what its name says."""
    came = location.get(blob_name(digest), path, disk)
    if came != digest:
        raise IntegrityError("content changed", f"{location.place}/{blob_name(digest)}", "restore another snapshot")


def _point_at(config: Path, new_url: str, disk: Disk) -> None:
    """Names the new database in the settings, which then lose their comments."""
    if new_url:
        tree = tomllib.loads(config.read_text("utf-8"))
        tree["store"] = {**tree.get("store", {}), "database_url": new_url}
        write_atomic(config, describe(parse_config(tree)).encode(), disk=disk)


def _fetch_blobs(location: Location, home: Home, contents: Contents, progress: Progress) -> None:
    blobs, wanted = BlobStore(home.blobs, home.disk), contents.blobs()
    total, done = sum(wanted.values()), 0
    for digest, size in sorted(wanted.items()):
        progress("blobs", done, total)
        _get(location, digest, home.blobs / INCOMING, home.disk)
        blobs.take(home.blobs / INCOMING, digest)
        done += size


def _put_database(location: Location, home: Home, own: Mapping[str, str]) -> None:
    url = sa.make_url(database_url(home))
    kind = url.get_backend_name()
    copy = home.root / dumps.SCRATCH
    _get(location, own[dumps.FILES[kind]], copy, home.disk)
    if kind == "sqlite":
        dumps.restore_sqlite(copy, home.database, home.disk)
    else:
        dumps.restore_postgresql(copy, url.render_as_string(hide_password=False))
    home.disk.remove(copy)


def _within_journal(db: Database, contents: Contents) -> tuple[dict[str, tuple[Entry, ...]], list[str]]:
    """The folders without the checkpoints that the database's copy came too early for, and those.

    The journal is written before the checkpoint of its step, so a later one was published after the copy.
    """
    steps = {place: int(match[1]) for place in contents.folders if (match := CHECKPOINT.fullmatch(place))}
    last = journal.last_step(db)
    late = sorted(place for place, step in steps.items() if last is not None and step > last.step)
    if len(late) == len(steps):  # none within it: the journal began anew, and says nothing of them
        late = []
    return {place: entries for place, entries in contents.folders.items() if place not in late}, late


def _place_files(home: Home, folders: Mapping[str, tuple[Entry, ...]], contents: Contents, progress: Progress) -> None:
    """Rebuilds every folder, its manifest last."""
    blobs = BlobStore(home.blobs, home.disk)
    for number, (place, entries) in enumerate(sorted(folders.items())):
        progress("folders", number, len(folders))
        for entry in sorted(entries, key=lambda each: each.path == MANIFEST):
            _place(home, blobs, entry.blake3, home.root / place / entry.path)
    for entry in contents.files:
        _place(home, blobs, entry.blake3, home.root / entry.path)
    for folder in sorted({path.parent for path in home.root.rglob("*")}):
        home.disk.sync(folder)


def _place(home: Home, blobs: BlobStore, digest: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    blobs.place(digest, target)
    if not target.samefile(blobs.path(digest)) and hash_file(target) != digest:
        raise IntegrityError("what was written does not read back as it should", str(target), "look at the disk")


def _pause(db: Database, found: Snapshot, left_out: Sequence[str]) -> int:
    """Nothing runs until somebody says so; what ran waits, and a restore counts as no attempt. How many jobs wait."""
    control.request(db, "pause")
    unfinished = job_rows.list_jobs(db, job_rows.UNFINISHED)
    for job in unfinished:
        if job.state is not JobState.QUEUED:
            job_rows.set_state(db, job.id, JobState.QUEUED)
    text = f"from snapshot {found.id} of {found.created}; paused, {len(unfinished)} jobs wait for `stoke resume`"
    events.record(db, "restored", text, snapshot=found.id, left_out=list(left_out))
    return len(unfinished)
