"""What of a home's files may go, why, and what that frees; and doing it, beside a living trainer and server.

Versions and snapshots are ruled by `policy`; a version goes only when a snapshot that stays holds it and every byte of
it verified, and then to the trash, where it can be had back for a week. Checkpoints are pruned under the trainer's
lock: while a trainer lives it prunes them itself. Blobs go when nothing names them, under the lock of snapshots, and
never young ones, whose folder may still be on its way. What is being written is held by locks that die with its writer.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from stokehold.core.errors import BusyError, IntegrityError
from stokehold.core.records import Version
from stokehold.store.backup import backups
from stokehold.store.blobs import BlobStore
from stokehold.store.db import job_rows, tables
from stokehold.store.db.database import Database
from stokehold.store.files import INCOMING, MANIFEST, STAGING, Bad, read_manifest, refusals
from stokehold.store.home import Home
from stokehold.store.housekeeping import ages, compaction, policy, space, trash
from stokehold.store.housekeeping.policy import Holding, Ruling
from stokehold.store.models import checkpoints, versions
from stokehold.store.models.adapters import unused_bases
from stokehold.store.models.overview import judgement, share_exact

HASH = re.compile(r"[0-9a-f]{64}")
YOUNG_S = 24 * 3600.0
"""A blob written within this time may belong to a folder that is not published yet."""

LEFT_OVER = "what is left goes the next time"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing: its kind (version, checkpoint, snapshot, base, blob, trash, scratch, …), name, whether it stays, why.

    `bytes` is the size of its files, 0 of what stays; what is freed is told for all together, since files are shared.
    """

    kind: str
    name: str
    keep: bool
    why: str
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Every line, with the paths that go now and those that go to the trash, and the bytes that each frees."""

    lines: tuple[Line, ...]
    now: tuple[Path, ...]
    later: tuple[Path, ...]
    freed: int
    freed_later: int
    notes: tuple[str, ...] = ()


def plan(home: Home, db: Database, now: datetime) -> Plan:
    """What would be done, nothing touched."""
    snapshots = rule_snapshots(home, now)
    rulings = rule_versions(home, db, now, {one.name for one in snapshots if one.keep})
    lines = [Line("version", one.name, one.keep, one.why, _size(home.versions / one.name, one)) for one in rulings]
    lines += _checkpoint_lines(home, db)
    lines += [Line("base", base.name, False, "nothing stands on it", _tree_bytes(base)) for base in spare_bases(home)]
    later = [_path(home, line) for line in lines if not line.keep]
    lines += [Line("snapshot", one.name, one.keep, one.why, _size(home.backups / one.name, one)) for one in snapshots]
    gone = {home.backups / one.name for one in snapshots if not one.keep}
    emptied = {entry.path for entry in trash.expired(home)}
    lines += [Line("trash", path.name, False, "its time is over", _tree_bytes(path)) for path in sorted(emptied)]
    scratch = list(_scratch(home))
    lines += [Line("scratch", _relative(home, path), False, "its writer died", _tree_bytes(path)) for path in scratch]
    try:
        blobs = orphans(home, db, gone | emptied)
        after = orphans(home, db, {*gone, *emptied, *later}, of_any_age=True)
        notes: tuple[str, ...] = ()
    except IntegrityError as error:
        blobs, after, notes = [], [], (f"no blob is looked at: {error}",)
    lines += [Line("blob", path.name[:16], False, "nothing names it", path.stat().st_size) for path in blobs]
    first = (*emptied, *gone, *scratch, *blobs)
    freed = space.freed(first)
    return Plan(tuple(lines), first, tuple(later), freed, space.freed([*first, *later, *after]) - freed, notes)


def carry_out(home: Home, db: Database, now: datetime) -> Plan:
    """Does it; the plan as it was done: what turned out to be damaged or in use stays, with its reason.

    May be repeated after a kill at any place. One at a time: the caller holds the lock `gc`.
    """
    wanted = plan(home, db, now)
    held: dict[str, str] = {}
    with refusals(home.root, LEFT_OVER):
        for line in wanted.lines:
            if line.kind == "version" and not line.keep and (why := _remove_version(home, db, line, now)):
                held[line.name] = why
        for base in spare_bases(home):
            trash.discard(home, base, "nothing stands on it")
        if (why := _prune(home, db)) is not None:
            held |= {line.name: why for line in wanted.lines if line.kind == "checkpoint" and not line.keep}
        home.sweep()
        trash.empty(home)
        notes = [*wanted.notes, *_remove_snapshots_and_blobs(home, db, now)]
    lines = tuple(replace(line, keep=True, why=held[line.name]) if line.name in held else line for line in wanted.lines)
    return replace(wanted, lines=lines, notes=tuple(notes))


def rule_versions(home: Home, db: Database, now: datetime, snapshots: set[str]) -> list[Ruling]:
    """A ruling for each version; `snapshots` are those that stay."""
    there = versions.list_versions(home)
    try:
        held = needed(home, db, there)
    except IntegrityError as error:
        held = {one.name: f"what needs it is not known: {error}" for one in there}
    saved = _saved(home, snapshots)
    unsafe = {one.name: "in no snapshot" for one in there if one.name not in saved}
    holdings = [
        Holding(one.name, one.created, _parts(Path(one.path)), share_exact(judgement(home, one.evaluation)))
        for one in there
    ]
    return policy.rule(holdings, held, unsafe, now, home.config().store.keep_bytes)


def rule_snapshots(home: Home, now: datetime) -> list[Ruling]:
    """A ruling for each snapshot: thinned as versions are, the newest always stays."""
    there = backups.list_snapshots(home)
    held = {there[-1].id: "the newest"} if there else {}
    return policy.rule([Holding(one.id, one.created) for one in there], held, {}, now)


def wanted(db: Database, there: list[Version]) -> dict[str, str]:
    """Versions that a person or the trainer may want at any moment, with the reason: they also stay whole."""
    found: dict[str, str] = {there[-1].name: "the newest"} if there else {}
    found |= {name: f"the {alias}" for alias, name in sorted(versions.aliases(db).items())}
    if (before := versions.previous(db)) is not None:
        found.setdefault(before, "the champion before")
    return found | {name: "pinned" for name in versions.pinned(db) if name not in found}


def needed(home: Home, db: Database, there: list[Version]) -> dict[str, str]:
    """Versions that stay whatever their age, with the reason: those wanted, and what they stand on."""
    found = wanted(db, there)
    parents = {one.parent: one.name for one in there if one.name in found and one.parent}
    packed = compaction.dependants(home)
    for one in there:
        if one.name in found:
            continue
        if one.name in packed:
            found[one.name] = f"{', '.join(packed[one.name])} cannot be rebuilt without it"
        elif one.name in parents:
            found[one.name] = f"the parent of {parents[one.name]}"
        elif compaction.used_s(Path(one.path)) < compaction.FRESH_S:
            found[one.name] = "asked for within the last hour"
    return found


def steps_in_use(home: Home, db: Database) -> set[int]:
    """Steps that training may go back to: those of every alias's version, and of the champion before.

    Where training goes on while an evaluator judges, also those whose judgement is still to come.
    """
    names = {*versions.aliases(db).values(), versions.previous(db)}
    found = {v.step for v in versions.list_versions(home) if v.name in names and v.step is not None}
    return found | job_rows.steps_waiting(db) if home.config().devices.own_evaluator else found


def spare_bases(home: Home) -> list[Path]:
    """Bases that nothing stands on or names: no adapter, no manifest on any shelf, not the config."""
    named: set[str] = set()
    try:
        for folder in _folders(home):
            named |= set(_strings(_manifest(folder)))
    except IntegrityError:
        return []  # which bases it names is not known
    return [base for base in unused_bases(home) if f"base/{base.name}" not in named]


def references(home: Home, db: Database, but: set[Path]) -> set[str]:
    """Hashes of blobs that something names: folders and snapshots that are not in `but`, and submitted files.

    Raises `IntegrityError` where a manifest or a snapshot does not read: then nobody knows.
    """
    found: set[str] = set()
    for _ in range(2):  # what moves between two shelves meanwhile is met at least once
        for folder in (folder for folder in _folders(home) if folder not in but):
            manifest = {key: value for key, value in _manifest(folder).items() if key != compaction.PACKED}
            found |= {text for text in _strings(manifest) if HASH.fullmatch(text)}
    for snapshot in backups.list_snapshots(home):
        if Path(snapshot.path) not in but:
            found |= backups.contents(Path(snapshot.path)).blobs().keys()
    with db.read() as connection:
        found |= set(connection.execute(sa.select(tables.files.c.content_hash)).scalars())
    return found


def _remove_version(home: Home, db: Database, line: Line, now: datetime) -> str | None:
    """Moves a version to the trash, once every byte of it was read; why it stays, or None."""
    folder = home.versions / line.name
    if not (folder / MANIFEST).is_file():
        return None
    if bad := versions.verify(home, folder):
        return f"damaged: {bad[0].path}: {bad[0].reason}"
    with versions.one_at_a_time(db):
        kept = {one.name for one in rule_snapshots(home, now) if one.keep}
        ruling = next((one for one in rule_versions(home, db, now, kept) if one.name == line.name), None)
        if ruling is None or ruling.keep:
            return ruling.why if ruling else None
        trash.discard(home, folder, f"retention: {line.why}")
    return None


def _prune(home: Home, db: Database) -> str | None:
    """Prunes checkpoints unless a trainer lives, which does so itself; then why not."""
    try:
        lock = home.lock("trainer", "stoke gc, for a moment")
    except BusyError:
        return "the trainer prunes it at its next checkpoint"
    with lock:
        checkpoints.prune(home, steps_in_use(home, db), home.config().store.keep_checkpoints)
    return None


def _remove_snapshots_and_blobs(home: Home, db: Database, now: datetime) -> list[str]:
    """Both under the lock of snapshots; returns what was left for the next time."""
    try:
        lock = home.lock("blobs", "collecting blobs")
    except BusyError as error:
        return [f"snapshots and blobs are left for the next time: {error.what}"]
    with lock:
        rulings = rule_snapshots(home, now)
        newest = backups.list_snapshots(home)[-1:] if any(not one.keep for one in rulings) else []
        if newest and (bad := _incomplete(home, newest[0])):
            return [f"no snapshot goes: the newest is not whole: {bad.path}: {bad.reason}"]
        for one in rulings:
            if not one.keep:
                home.disk.remove(home.backups / one.name / MANIFEST)  # first: half a snapshot must not look whole
        for path in home.backups.iterdir():
            if backups.NAME.fullmatch(path.name) and not (path / MANIFEST).exists():
                home.disk.remove_tree(path)
        try:
            blobs = orphans(home, db, set())
        except IntegrityError:
            return []
        for path in blobs:
            home.disk.remove(path)
    return []


def _incomplete(home: Home, snapshot: backups.Snapshot) -> Bad | None:
    """What of a snapshot's own files or blobs is missing or of another size."""
    try:
        named = backups.contents(Path(snapshot.path)).blobs()
    except IntegrityError as error:
        return Bad(snapshot.id, error.what)
    store = BlobStore(home.blobs)
    for digest, size in named.items():
        path = store.path(digest)
        if not path.is_file() or path.stat().st_size != size:
            return Bad(f"blob {digest}", "missing or of another size")
    return None


def orphans(home: Home, db: Database, but: set[Path], of_any_age: bool = False) -> list[Path]:
    """Blobs that nothing names when the folders in `but` are gone, young ones left out."""
    named, store, now_s = references(home, db, but), BlobStore(home.blobs), ages.present_s(home)
    paths = (store.path(digest) for digest in store.hashes() if digest not in named)
    return [path for path in paths if of_any_age or now_s - path.stat().st_mtime > YOUNG_S]


def _checkpoint_lines(home: Home, db: Database) -> list[Line]:
    """As `checkpoints.prune` decides, without reading one."""
    used, newest = steps_in_use(home, db), home.config().store.keep_checkpoints
    lines = []
    for place, one in enumerate(reversed(checkpoints.list_checkpoints(home))):
        name, recent = Path(one.path).name, place < newest
        why = f"one of the newest {newest}" if recent else "training may go back to it"
        if recent or one.step in used:
            lines.append(Line("checkpoint", name, True, why))
        else:
            lines.append(Line("checkpoint", name, False, f"{newest} newer ones stay", _tree_bytes(Path(one.path))))
    return lines


def _saved(home: Home, snapshots: set[str]) -> set[str]:
    """Versions that one of these snapshots holds, with all of its blobs."""
    found: set[str] = set()
    store = BlobStore(home.blobs)
    for name in sorted(snapshots):
        try:
            folders = backups.contents(home.backups / name).folders
        except IntegrityError:
            continue  # it holds nothing that could be had back
        for place, entries in folders.items():
            shelf, _, version = place.partition("/")
            if shelf == home.versions.name and all(store.path(entry.blake3).is_file() for entry in entries):
                found.add(version)
    return found


def _folders(home: Home) -> Iterator[Path]:
    """Published folders on every shelf but that of snapshots; the trash twice, for things move to and from it."""
    shelves = (home.trash, home.checkpoints, home.versions, home.datasets, home.base, home.evaluations, home.trash)
    for shelf in shelves:
        for folder in shelf.iterdir():
            if (folder / MANIFEST).is_file() and not folder.name.startswith(STAGING):
                yield folder


def _manifest(folder: Path) -> dict[str, Any]:
    """Empty where the folder went away meanwhile."""
    try:
        return read_manifest(folder)
    except IntegrityError:
        if (folder / MANIFEST).is_file():
            raise
        return {}


def _strings(value: Any) -> Iterator[str]:
    """Every text inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _scratch(home: Home) -> Iterator[Path]:
    """Staging that nobody holds any more, as `Home.sweep` finds it."""
    for folder in (home.root, *home.inboxes.values(), *home.folders):
        for path in (*folder.glob(f"{STAGING}*"), *folder.glob(f"{INCOMING}*")):
            try:
                handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            except OSError:
                continue  # finished or removed by its owner since the listing
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    yield path
            except BlockingIOError:
                continue  # its writer lives
            finally:
                os.close(handle)


def _parts(folder: Path) -> dict[str, int]:
    return {entry["blake3"]: entry["bytes"] for entry in read_manifest(folder)["files"]}


def _path(home: Home, line: Line) -> Path:
    shelves = {"version": home.versions, "checkpoint": home.checkpoints, "base": home.base}
    return shelves[line.kind] / line.name


def _size(folder: Path, ruling: Ruling) -> int:
    return 0 if ruling.keep else _tree_bytes(folder)


def _tree_bytes(folder: Path) -> int:
    """Bytes of the files in a folder, whoever else shares them."""
    return sum(found.st_size for _, found in space.files_of(folder))


def _relative(home: Home, path: Path) -> str:
    return path.relative_to(home.root).as_posix()
