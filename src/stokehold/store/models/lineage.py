"""What the present weights went through: the files they were trained on, and the evaluations on the way.

Both are read from what is kept for good: the journal with its sums of old steps, and the records of evaluations. What
was trained and taken back is not in these weights, and neither are its evaluations.
"""

from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from stokehold.core.errors import IntegrityError
from stokehold.core.records import Evaluation, Trained
from stokehold.store.db import job_rows, journal, tables
from stokehold.store.db.database import Database
from stokehold.store.files import MANIFEST, read_manifest
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints


def trained_files(db: Database) -> list[Trained]:
    """Every job with a step in the present lineage, in order of its first one."""
    found: dict[str, Trained] = {}
    names = {job.id: job.file or job.id for job in job_rows.list_jobs(db)}
    with db.read() as connection:
        for span in journal.lineage(connection):
            for query in (_rows(span), _sums(span)):
                for row in connection.execute(query):
                    joules = float(row.joules) if row.measured == row.steps else None
                    known = {"job": row.job, "dataset": row.dataset, "first": row.first, "last": row.last}
                    known |= {"steps": row.steps, "tokens": int(row.tokens), "seconds": row.seconds, "joules": joules}
                    part = Trained(file=names.get(row.job, row.job), **known)
                    found[row.job] = _joined(found[row.job], part) if row.job in found else part
    return sorted(found.values(), key=lambda file: (file.first, file.job))


def judged(home: Home, db: Database) -> list[Evaluation]:
    """Evaluations of the base, as step 0, and of steps of the present lineage, in order of step and time.

    An evaluation states its step and no branch: these weights were first judged while the branch of their time was
    trained.
    """
    every = evaluations.list_evaluations(home, db)
    first = {e.weights_hash: e.created for e in every}  # newest first, so the oldest stays
    base = _base_weights(home)
    found = [replace(e, step=0) for e in every if e.weights_hash == base]
    branches = _branches(db)
    common: dict[tuple[int, int], int] = {}
    for evaluation in every:
        if evaluation.step is None or evaluation.weights_hash == base:
            continue
        branch = max((b for b, created in branches if created <= first[evaluation.weights_hash]), default=0)
        place = (branch, evaluation.step)
        if place not in common:
            common[place] = journal.last_in_common(db, branch, evaluation.step)
        if common[place] == evaluation.step:
            found.append(evaluation)
    return sorted(found, key=lambda e: (e.step or 0, e.created))


def _joined(one: Trained, other: Trained) -> Trained:
    known = one.joules is not None and other.joules is not None
    return replace(
        one,
        first=min(one.first, other.first),
        last=max(one.last, other.last),
        steps=one.steps + other.steps,
        tokens=one.tokens + other.tokens,
        seconds=one.seconds + other.seconds,
        joules=(one.joules or 0.0) + (other.joules or 0.0) if known else None,
    )


def _rows(span: journal.Span) -> sa.Select[Any]:
    c = journal.COLUMNS
    inside = [c.branch == span.branch, c.step > span.after]
    inside += [] if span.until is None else [c.step <= span.until]
    return (
        sa.select(
            c.job,
            sa.func.max(c.dataset).label("dataset"),
            sa.func.min(c.step).label("first"),
            sa.func.max(c.step).label("last"),
            sa.func.count().label("steps"),
            sa.func.sum(c.tokens).label("tokens"),
            sa.func.sum(c.seconds).label("seconds"),
            sa.func.sum(c.joules).label("joules"),
            sa.func.count(c.joules).label("measured"),
        )
        .where(*inside)
        .group_by(c.job)
    )


def _sums(span: journal.Span) -> sa.Select[Any]:
    """The same of steps that have no row of their own any more."""
    c = journal.SUMS
    return (
        sa.select(
            c.job,
            sa.func.max(c.dataset).label("dataset"),
            sa.func.min(c.first_step).label("first"),
            sa.func.max(c.last_step).label("last"),
            sa.func.sum(c.steps).label("steps"),
            sa.func.sum(c.tokens).label("tokens"),
            sa.func.sum(c.seconds).label("seconds"),
            sa.func.sum(c.joules).label("joules"),
            sa.func.sum(c.joules_steps).label("measured"),
        )
        .where(journal.inside_sums(span))
        .group_by(c.job)
    )


def _branches(db: Database) -> list[tuple[int, str]]:
    with db.read() as connection:
        rows = connection.execute(sa.select(tables.branches.c.branch, tables.branches.c.created))
        return [(row.branch, row.created) for row in rows]


def _base_weights(home: Home) -> str | None:
    folder = home.root / home.config().model.base
    if not home.config().model.base or not (folder / MANIFEST).is_file():
        return None
    try:
        return checkpoints.weights_hash(read_manifest(folder)["files"])
    except IntegrityError:
        return None  # `stoke doctor` tells of a damaged base; it has no evaluation to show
