"""Evaluations as immutable folders `evaluations/<id>/`, with their completions beside the record."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.records import Evaluation, SuiteResult, SuiteState, Verdict
from stokehold.store.db import tables
from stokehold.store.db.database import Database, upsert
from stokehold.store.files import MANIFEST, publish, read_manifest
from stokehold.store.home import Home

COLUMNS = tables.evaluations.c


def evaluation_folder(home: Home, evaluation_id: str) -> Path:
    """Where this evaluation is or would be."""
    return home.evaluations / evaluation_id


def save(home: Home, db: Database, evaluation: Evaluation, write: Callable[[Path], None]) -> Evaluation:
    """Publishes what `write(folder)` makes (completions.jsonl, …) with the record, then lists it in the database.

    The record's `path` is set here. An id that is there already keeps its content and is listed again.
    """
    folder = evaluation_folder(home, evaluation.id)
    record = replace(evaluation, path=str(folder))
    if not folder.exists():
        publish(folder, write, {"kind": "evaluation", "evaluation": asdict(record)}, disk=home.disk)
    saved = load(home, evaluation.id)
    with db.write() as connection:
        upsert(
            tables.evaluations,
            connection,
            id=saved.id,
            ref=saved.ref,
            weights_hash=saved.weights_hash,
            step=saved.step,
            verdict=saved.verdict.value if saved.verdict else None,
            created=saved.created,
        )
    return saved


def load(home: Home, evaluation_id: str) -> Evaluation:
    """The record of a published evaluation, or `NotFoundError`."""
    folder = evaluation_folder(home, evaluation_id)
    if not (folder / MANIFEST).is_file():
        raise NotFoundError("no such evaluation", evaluation_id, "`stoke evaluate` makes one")
    record = read_manifest(folder)["evaluation"]
    suites = {name: _suite(result) for name, result in record["suites"].items()}
    verdict = Verdict(record["verdict"]) if record["verdict"] else None
    return Evaluation(**record | {"suites": suites, "verdict": verdict, "path": str(folder)})


def find(home: Home, evaluation_id: str) -> Evaluation | None:
    """The record of a published evaluation, None where it is gone."""
    return load(home, evaluation_id) if (evaluation_folder(home, evaluation_id) / MANIFEST).is_file() else None


def latest_for(home: Home, db: Database, weights_hash: str) -> Evaluation | None:
    """The newest evaluation of exactly these weights."""
    found = list_evaluations(home, db, weights_hash, limit=1)
    return found[0] if found else None


def list_evaluations(
    home: Home, db: Database, weights_hash: str | None = None, limit: int | None = None, until: int | None = None
) -> list[Evaluation]:
    """Evaluations, newest first; rows whose folder is gone are passed over. `until` leaves out those of later steps."""
    return [found for i in _ids(db, weights_hash, limit, until) if (found := find(home, i)) is not None]


def list_readable(home: Home, db: Database, limit: int) -> tuple[list[Evaluation], dict[str, str]]:
    """As `list_evaluations`, for those who only show them: the damaged ones are apart, each id with what is wrong."""
    found, damaged = [], {}
    for evaluation_id in _ids(db, None, limit, None):
        try:
            evaluation = find(home, evaluation_id)
        except IntegrityError as error:
            damaged[evaluation_id] = error.what
            continue
        if evaluation is not None:
            found.append(evaluation)
    return found, damaged


def _ids(db: Database, weights_hash: str | None, limit: int | None, until: int | None) -> list[str]:
    """Newest first."""
    query = sa.select(COLUMNS.id).order_by(COLUMNS.created.desc(), COLUMNS.id.desc()).limit(limit)
    if weights_hash is not None:
        query = query.where(COLUMNS.weights_hash == weights_hash)
    if until is not None:
        query = query.where(sa.func.coalesce(COLUMNS.step, 0) <= until)
    with db.read() as connection:
        return list(connection.execute(query).scalars())


def record_decision(db: Database, evaluation_id: str, verdict: Verdict | None, decision: str) -> None:
    """Notes how the evaluation compared with the champion of its time and what was done; the folder stays as it was."""
    values = {"verdict": verdict.value if verdict else None, "decision": decision}
    with db.write() as connection:
        connection.execute(tables.evaluations.update().where(COLUMNS.id == evaluation_id).values(**values))


def decided(db: Database, evaluation_id: str) -> tuple[Verdict | None, str | None]:
    """The verdict and the decision noted; None for what was not noted yet."""
    query = sa.select(COLUMNS.verdict, COLUMNS.decision).where(COLUMNS.id == evaluation_id)
    with db.read() as connection:
        row = connection.execute(query).one_or_none()
    return (Verdict(row.verdict) if row and row.verdict else None, row.decision if row else None)


def decisions_before(db: Database, evaluation: Evaluation) -> list[tuple[str, Verdict | None, str]]:
    """(id, verdict against the champion of its time, decision) of every other evaluation up to this one that led to a
    decision, newest first."""
    query = sa.select(COLUMNS.id, COLUMNS.verdict, COLUMNS.decision).where(
        COLUMNS.created <= evaluation.created, COLUMNS.id != evaluation.id, COLUMNS.decision.is_not(None)
    )
    with db.read() as connection:
        rows = connection.execute(query.order_by(COLUMNS.created.desc(), COLUMNS.id.desc())).all()
    return [(row.id, Verdict(row.verdict) if row.verdict else None, row.decision) for row in rows]


def _suite(result: Mapping[str, Any]) -> SuiteResult:
    interval = result["exact_ci"]
    typed = {"state": SuiteState(result["state"]), "exact_ci": tuple(interval) if interval else None}
    return SuiteResult(**dict(result) | typed)
