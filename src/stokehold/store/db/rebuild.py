"""A database remade from what lies in the folders, where it was lost or damaged: `stoke doctor --rebuild`.

It begins with the copy in the newest good snapshot, if there is one, and adds what the manifests tell: datasets, so
that nothing is trained twice, and a job for each that is not trained to its end; numbers of versions; evaluations;
branches, and how many examples of each dataset are in the checkpoints. What the manifests do not tell is named.
The old database is put aside, never removed. A call that was killed may be repeated.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from stokehold.core.errors import IntegrityError, StokeholdError
from stokehold.core.records import Checkpoint, Dataset, JobState, Priority
from stokehold.store import datasets
from stokehold.store.backup import backups
from stokehold.store.backup.backups import Snapshot
from stokehold.store.db import dumps, events, job_rows, journal, tables
from stokehold.store.db.database import Database, connect, database_url, upsert
from stokehold.store.files import MANIFEST, read_manifest, refusals, staging, utc_now, verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.judged import evaluations
from stokehold.store.models import versions
from stokehold.store.models.checkpoints import list_checkpoints

STATE = "trainer.json"
AGAIN = "what is left of the database is kept; make room, or look at the disk, and repeat it"
PARTS = ("", "-wal", "-shm")
"""A database, its log and its index, as SQLite names them; put aside in this order, so that no log meets another."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was found, and sentences on what could not be recovered or is a guess."""

    snapshot: str | None
    damaged: str | None
    datasets: int
    queued: int
    checkpoints: int
    versions: int
    evaluations: int
    champion: str | None
    notes: tuple[str, ...]


def rebuild(home: Home) -> Rebuilt:
    """Remakes the database; `StokeholdError` where a healthy one is there, `BusyError` where something runs."""
    with home.lock("supervisor", "remaking the database"), home.lock("trainer", "remaking the database"):
        url = sa.make_url(database_url(home))
        if url.get_backend_name() != "sqlite":
            return _rebuild_postgresql(home, url.render_as_string(hide_password=False))
        if _state(home.database) == "healthy":
            raise StokeholdError("the database is healthy", str(home.database), "`stoke doctor --ledger` looks closer")
        with refusals(home.database, AGAIN), staging(home.root / home.database.name, home.disk) as stage:
            copy = stage / home.database.name
            source = _newest_copy(home, "sqlite")
            if source is not None:
                dumps.restore_sqlite(Path(source.path) / dumps.FILES["sqlite"], copy, home.disk)
            found = _remake(home, f"sqlite:///{copy}", source)
            with closing(sqlite3.connect(copy)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            damaged = _put_aside(home)
            home.disk.rename(copy, home.database)
            home.disk.sync(home.root)
    return Rebuilt(**{**found, "damaged": damaged})


def _rebuild_postgresql(home: Home, url: str) -> Rebuilt:
    place = sa.make_url(url).render_as_string(hide_password=True)
    engine = sa.create_engine(url)
    try:
        empty = not sa.inspect(engine).get_table_names()
    finally:
        engine.dispose()
    if not empty and not _is_blank(url):
        raise StokeholdError("the database is not empty", place, "give the home an empty one in store.database_url")
    source = _newest_copy(home, "postgresql") if empty else None
    if source is not None:
        dumps.restore_postgresql(Path(source.path) / dumps.FILES["postgresql"], url)
    return Rebuilt(**_remake(home, url, source))


def _is_blank(url: str) -> bool:
    """Whether our tables are there without a row that a home in use has."""
    db = connect(url)
    try:
        with db.read() as connection:
            used = (tables.files, tables.jobs, tables.journal, tables.versions)
            return not any(connection.execute(sa.select(table).limit(1)).first() for table in used)
    finally:
        db.close()


def _state(path: Path) -> str:
    """healthy, or else what it is: missing, blank (made anew by somebody who looked), or damaged in these words."""
    if not path.exists():
        return "missing"
    try:
        with closing(sqlite3.connect(path)) as connection:
            found = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            return str(found[0])
        return "blank" if _is_blank(f"sqlite:///{path}") else "healthy"
    except (sqlite3.DatabaseError, sa.exc.DatabaseError) as error:
        return str(error)


def _newest_copy(home: Home, kind: str) -> Snapshot | None:
    """The newest snapshot whose copy of the database is good."""
    for found in reversed(backups.list_snapshots(home)):
        if found.database == kind and not verify(Path(found.path)):
            return found
    return None


def _put_aside(home: Home) -> str | None:
    """Moves the old database out of the way; returns where it is."""
    there = [path for part in PARTS if (path := home.root / (home.database.name + part)).exists()]
    if not there:
        return None
    folder = home.backups / f"damaged-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%fZ')}"
    home.disk.make_folder(folder)
    for path in there:
        home.disk.rename(path, folder / path.name)
    home.disk.sync(folder)
    home.disk.sync(home.root)
    return str(folder)


def _remake(home: Home, url: str, source: Snapshot | None) -> dict[str, Any]:
    db = connect(url)
    try:
        there = list_checkpoints(home)
        _add_branches(db, there)
        lost = _add_lost_examples(db, there)
        queued = _add_jobs(home, db, _runs(there))
        numbers = _add_versions(home, db)
        judged = _add_evaluations(home, db)
        champion, guess = _name_champion(home, db, source)
        notes = tuple(_notes(source, lost, queued, guess))
        events.record(db, "rebuilt", f"the database was remade; {'; '.join(notes)}", champion=champion)
    finally:
        db.close()
    return {
        "snapshot": source.id if source else None,
        "damaged": None,
        "datasets": len(datasets.list_datasets(home)),
        "queued": queued,
        "checkpoints": len(there),
        "versions": numbers,
        "evaluations": judged,
        "champion": champion,
        "notes": notes,
    }


def _notes(source: Snapshot | None, lost: int, queued: int, guess: str | None) -> Iterator[str]:
    since = f"since the snapshot of {source.created}" if source else "from the beginning"
    yield f"not recovered: {since}, rows of the journal ({lost} examples by the checkpoints), samples, events and pins"
    yield "not recovered: files that were submitted and not yet accepted; drop them into the inbox again"
    if queued:
        yield f"{queued} datasets that are not trained to their end wait again, also one that was stopped or cancelled"
    if guess:
        yield guess


def _add_branches(db: Database, there: list[Checkpoint]) -> None:
    """Goings back that only the checkpoints tell of: a branch begins where its first checkpoint's parent is."""
    first: dict[int, Mapping[str, Any]] = {}
    for manifest in (read_manifest(Path(found.path)) for found in there):
        first.setdefault(manifest.get("branch", 0), manifest)
    known, newest = journal.current_branch(db), max(first, default=0)
    from_step = -1
    with db.write() as connection:
        for branch in range(newest, known, -1):
            if branch in first:
                parent = str(first[branch].get("parent") or "")
                number = parent.rpartition("_")[2]
                from_step = int(number) if number.isdigit() else -1
            row = {"branch": branch, "parent": branch - 1, "from_step": from_step, "created": utc_now()}
            connection.execute(tables.branches.insert().values(**row, reason="told by a checkpoint"))


def _add_lost_examples(db: Database, there: list[Checkpoint]) -> int:
    """Notes what each checkpoint holds beyond the journal's rows; returns how much that is in the newest."""
    with db.write() as connection:
        connection.execute(tables.journal_lost.delete())
    spans, rows = journal.spans(db), []
    for found in there:
        branch = read_manifest(Path(found.path)).get("branch", 0)
        if not any(span.holds(branch, found.step) for span in spans):
            continue
        known = journal.examples_by_dataset(db, found.step)
        for dataset, examples in _examples(Path(found.path)).items():
            missing = examples - known.get(dataset, 0)
            rows.append({"branch": branch, "step": found.step, "dataset": dataset, "examples": missing})
    with db.write() as connection:
        for row in rows:
            connection.execute(tables.journal_lost.insert().values(**row))
    return sum(row["examples"] for row in rows if row["step"] == rows[-1]["step"])


def _runs(there: list[Checkpoint]) -> dict[str, dict[str, Any]]:
    """Every run over a file, as far as the newest checkpoint of the newest branch knows."""
    if not there:
        return {}
    newest = max(there, key=lambda found: (read_manifest(Path(found.path)).get("branch", 0), found.step))
    return _trainer_state(Path(newest.path))["runs"]  # type: ignore[no-any-return]


def _examples(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for run in _trainer_state(folder)["runs"].values():
        found[run["dataset"]] = found.get(run["dataset"], 0) + int(run["examples"])
    return found


def _trainer_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    if not path.is_file():
        return {"runs": {}}
    try:
        state: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise IntegrityError("the trainer's state is no JSON", str(path), "move this checkpoint away") from error
    return state


def _add_jobs(home: Home, db: Database, runs: Mapping[str, Mapping[str, Any]]) -> int:
    """A file's row and its job for each dataset without them; what ran waits. Returns how many wait to be trained."""
    known = job_rows.list_jobs(db)
    unfinished = [job for job in known if job.state in job_rows.UNFINISHED]
    for job in unfinished:
        if job.state is not JobState.QUEUED:
            job_rows.set_state(db, job.id, JobState.QUEUED)
    coming = {job_rows.get_payload(db, job.id).get("content_hash") for job in unfinished if job.kind == "ingest"}
    trained = {job.dataset for job in known if job.kind == "train"}
    waiting = 0
    for dataset in datasets.list_datasets(home):
        if dataset.id not in trained and dataset.content_hash not in coming:
            waiting += _add_job(db, dataset, {name: run for name, run in runs.items() if run["dataset"] == dataset.id})
    return waiting


def _add_job(db: Database, dataset: Dataset, runs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the job waits: of its runs one must have come to its end for it to be done."""
    ended = next((name for name, run in runs.items() if _ended(dataset, run)), None)
    run = ended or next(iter(runs), dataset.id)
    job_id = f"train-{run}"
    facts = {"name": dataset.file, "bytes": dataset.bytes, "submitted": dataset.created}
    payload = {"file": dataset.file, "dataset": dataset.id, "run": run, "job": job_id}
    with db.write() as connection:
        job_rows.insert(connection, job_id, "train", Priority.NORMAL, payload)
        keys = {"content_hash": dataset.content_hash, "job": job_id, "dataset": dataset.id}
        upsert(tables.files, connection, **keys, **facts)
    if ended:
        job_rows.set_state(db, job_id, JobState.COMPLETED)
    return ended is None


def _ended(dataset: Dataset, run: Mapping[str, Any]) -> bool:
    """Whether a run stands at the end of an epoch: however many it had, nothing is to be trained twice."""
    usable = dataset.accepted - dataset.held_out - len(run["unusable"])
    consumed = run["examples"] + run.get("skipped", 0)
    return bool(usable and consumed and consumed % usable == 0)


def _add_versions(home: Home, db: Database) -> int:
    """Numbers that were given, by folders, trash and snapshots that name them; returns how many versions are here."""
    there = {version.name: version for version in versions.list_versions(home)}
    named = {Path(entry.origin).name for entry in trash.listing(home)} | {v.parent for v in there.values() if v.parent}
    for found in backups.list_snapshots(home):
        named |= {Path(place).name for place in backups.contents(Path(found.path)).folders}
    with db.write() as connection:
        known = set(connection.execute(sa.select(tables.versions.c.number)).scalars())
        for name in sorted({*there, *named}):
            match = versions.NAME.fullmatch(name)
            if match is None or int(match[1]) in known:
                continue
            weights = there[name].weights_hash if name in there else ""
            row = {"number": int(match[1]), "weights_hash": weights, "created": utc_now()}
            connection.execute(tables.versions.insert().values(**row))
        for name, version in there.items():
            manifest = read_manifest(Path(version.path))
            upsert(tables.version_manifests, connection, version=name, manifest=manifest)
    return len(there)


def _add_evaluations(home: Home, db: Database) -> int:
    """Every evaluation whose row is missing; how the promotion decided on it is not known."""
    with db.read() as connection:
        known = set(connection.execute(sa.select(tables.evaluations.c.id)).scalars())
    folders = sorted(folder for folder in home.evaluations.iterdir() if (folder / MANIFEST).is_file())
    with db.write() as connection:
        for folder in folders:
            if folder.name in known:
                continue
            found = evaluations.load(home, folder.name)
            facts = {"ref": found.ref, "weights_hash": found.weights_hash, "step": found.step}
            verdict = found.verdict.value if found.verdict else None
            upsert(tables.evaluations, connection, id=found.id, verdict=verdict, created=found.created, **facts)
    return len(folders)


def _name_champion(home: Home, db: Database, source: Snapshot | None) -> tuple[str | None, str | None]:
    """The champion, and a sentence where it is a guess: the newest version that was judged since the snapshot."""
    there = versions.list_versions(home)
    named = versions.alias(db)
    since = source.created if source else ""
    judged = [version for version in there if version.evaluation and version.created > since]
    if judged:
        best = judged[-1].name
        versions.set_alias(home, db, versions.CHAMPION, best)
        return best, f"champion is {best}, the newest version that was judged: `stoke promote` names another"
    if named is not None and named not in {version.name for version in there}:
        with db.write() as connection:
            connection.execute(tables.aliases.delete().where(tables.aliases.c.name == versions.CHAMPION))
        return None, f"{named} was the champion and is not here: `stoke promote` names another"
    return named, None
