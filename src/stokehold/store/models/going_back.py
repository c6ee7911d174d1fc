"""Training goes on from an earlier state: a new branch of the journal begins there, and what came after is set aside.

From a version: the branch and a note of what is to be done are written in one transaction, and `finish` does the rest,
now or at the trainer's next start. Before that transaction nothing has changed; after it the new state is certain, for
the version was read to its end.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from stokehold.core.errors import BusyError, IntegrityError, StokeholdError
from stokehold.core.records import JobState, Version
from stokehold.store import files
from stokehold.store.blobs import share
from stokehold.store.db import events, job_rows, journal, tables
from stokehold.store.db.database import Database, upsert
from stokehold.store.files import read_manifest
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, versions
from stokehold.store.models.checkpoints import checkpoint_folder, verify_checkpoint, weights_hash

STATE = "trainer.json"
MOMENTS = "optimizer.safetensors"
NO_MOMENTS = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file of no tensor: the optimiser begins anew."""

PENDING = "going_back"
"""Name of the note in the table of commands."""

ROLLED_BACK, HELD = "rollback", "hold"
"""Decisions on an evaluation: the first would take training back again from what a person returned to."""


@dataclass(frozen=True, slots=True)
class Return:
    """Training goes on from `version` at `step` in `branch`; `optimiser` is "kept", or "fresh" where it was not."""

    version: str
    step: int
    branch: int
    optimiser: str
    set_aside: tuple[str, ...]


def train_from(home: Home, db: Database, name: str) -> Return:
    """Makes training go on from a version; nothing is removed, and later checkpoints lie in the trash for a week.

    `BusyError` while a trainer runs; `IntegrityError` for a version that is damaged, `StokeholdError` for one that
    does not know its place in training.
    """
    try:
        lock = home.lock("trainer", "going back to a version")
    except BusyError as error:
        raise BusyError(error.what, str(home.root), "`stoke down` first; training goes on at the next start") from error
    with lock:
        finish(home, db)
        version = versions.find_version(home, name)
        folder = Path(version.path)
        if bad := files.verify(folder):
            fix = f"`stoke versions restore {version.name}` first"
            raise IntegrityError(f"it is damaged: {bad[0].path}: {bad[0].reason}", version.name, fix)
        if version.step is None or (not _place_in_training(home, version)):
            fix = "`stoke versions export` it and `stoke init` a home with it"
            raise StokeholdError("its place in training was not kept", version.name, fix)
        _begin(db, version, _branch_of(folder))
        try:
            done = finish(home, db)
        except StokeholdError as error:
            fix = "going back has begun: repeat it, or start the trainer, once that is mended"
            raise type(error)(error.what, error.where, fix) from error
        assert done is not None
        return done


def finish(home: Home, db: Database) -> Return | None:
    """Does what is left of going back to a version, if that was begun; may be repeated. For whoever holds the trainer's
    lock."""
    note = _note(db)
    if note is None:
        return None
    version = versions.find_version(home, note["version"])
    assert version.step is not None
    branch = journal.current_branch(db)
    give_back_jobs(db, journal.jobs_after(db, note["common"], branch - 1), f"taken back to {version.name}")
    optimiser = _place(home, version)
    gone = checkpoints.set_aside(home, version.step, f"training went back to {version.name}", branch)
    for evaluation in evaluations.list_evaluations(home, db, version.weights_hash):
        verdict, decision = evaluations.decided(db, evaluation.id)
        if decision == ROLLED_BACK:
            evaluations.record_decision(db, evaluation.id, verdict, HELD)
    text = f"training goes on from {version.name}, step {version.step}, with a {optimiser} optimiser"
    events.record(db, "went_back", text, version=version.name, branch=branch)
    with db.write() as connection:
        connection.execute(tables.control.delete().where(tables.control.c.name == PENDING))
    return Return(version.name, version.step, branch, optimiser, tuple(folder.name for folder in gone))


def pending(db: Database) -> str | None:
    """The version that going back to was begun and not ended, if any."""
    note = _note(db)
    return str(note["version"]) if note else None


def give_back_jobs(db: Database, names: set[str], reason: str) -> None:
    """Jobs whose training is no longer in the weights become `partial`, and say so."""
    jobs = {job.id: job for job in job_rows.list_jobs(db)}
    for name in sorted(names & jobs.keys()):
        if jobs[name].state in (JobState.COMPLETED, JobState.RUNNING):
            job_rows.set_state(db, name, JobState.PARTIAL, f"{reason}; retry trains it again from there")
            events.record(db, "taken_back", f"{jobs[name].file}: {reason}", job=name)


def _note(db: Database) -> dict[str, Any] | None:
    query = sa.select(tables.control.c.command).where(tables.control.c.name == PENDING)
    with db.read() as connection:
        noted = connection.execute(query).scalar()
    return orjson.loads(noted) if noted else None


def _begin(db: Database, version: Version, branch: int) -> None:
    assert version.step is not None
    common = journal.last_in_common(db, branch, version.step)
    note = orjson.dumps({"version": version.name, "common": common}).decode()
    with db.write() as connection:
        upsert(tables.control, connection, name=PENDING, command=note, free=False, requested=files.utc_now())
        journal.branch_off(connection, branch, version.step, f"training went back to {version.name}")


def _place_in_training(home: Home, version: Version) -> bool:
    return (Path(version.path) / STATE).is_file() or _standing(home, version) or _discarded(home, version) is not None


def _place(home: Home, version: Version) -> str:
    """Puts the version's checkpoint where training finds it; whether its optimiser is "kept" or "fresh"."""
    assert version.step is not None
    if _standing(home, version):
        return "kept"
    folder = checkpoint_folder(home, version.step)
    if (discarded := _discarded(home, version)) is not None:
        if folder.exists():
            trash.discard(home, folder, f"training went back to {version.name}")
        trash.put_back(home, discarded, folder)
        return "kept"
    return _make(home, version)


def _standing(home: Home, version: Version) -> bool:
    """Whether the checkpoint that the version was made from is still there, and whole."""
    assert version.step is not None
    return _is_origin(checkpoint_folder(home, version.step), version)


def _discarded(home: Home, version: Version) -> Path | None:
    """That checkpoint in the trash."""
    assert version.step is not None
    found = trash.find(home, checkpoint_folder(home, version.step))
    return next((folder for folder in found if _is_origin(folder, version)), None)


def _is_origin(folder: Path, version: Version) -> bool:
    try:
        manifest = read_manifest(folder)
    except IntegrityError:
        return False
    same = weights_hash(manifest["files"]) == version.weights_hash
    return same and manifest.get("branch", 0) == _branch_of(Path(version.path)) and not verify_checkpoint(folder)


def _make(home: Home, version: Version) -> str:
    """A checkpoint from the version's files; without an optimiser in it, training begins one at its step."""
    source = Path(version.path)
    manifest = read_manifest(source)
    paths = [entry["path"] for entry in manifest["files"]]
    has_moments = any(versions.OPTIMISER.fullmatch(path) for path in paths)

    def write(stage: Path) -> None:
        for path in paths:
            if path != STATE or has_moments:
                (stage / path).parent.mkdir(parents=True, exist_ok=True)
                share(source / path, stage / path, home.disk)
        if not has_moments:
            home.disk.write(stage / MOMENTS, NO_MOMENTS)
            home.disk.write(stage / STATE, orjson.dumps(_without_moments(source), option=orjson.OPT_INDENT_2))

    facts = {key: manifest.get(key) for key in ("base", "datasets")}
    assert version.step is not None
    known = {entry["path"]: entry["blake3"] for entry in manifest["files"] if entry["path"] != STATE}
    checkpoints.publish_checkpoint(home, version.step, write, {**facts, "branch": _branch_of(source)}, known)
    return "kept" if has_moments else "fresh"


def _without_moments(source: Path) -> dict[str, Any]:
    state: dict[str, Any] = orjson.loads((source / STATE).read_bytes())
    return {**state, "optimizer_since": state["step"]}


def _branch_of(folder: Path) -> int:
    """The branch that a version's step belongs to; its state tells it where the manifest is older than that."""
    manifest = read_manifest(folder)
    if "branch" in manifest:
        return int(manifest["branch"])
    return int(orjson.loads((folder / STATE).read_bytes())["branch"]) if (folder / STATE).is_file() else 0
