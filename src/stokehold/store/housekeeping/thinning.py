"""Rows that grow with time, thinned: old steps become sums of a hundred, old samples become a count, the rest goes.

One transaction for each thousand steps, so that a trainer never waits long for the database, and a kill leaves whole
ones. Nothing is thinned that a checkpoint could replay, nor the newest steps of the run. An aggregate never lies across
a step that a branch began at or may begin at, so it belongs to a lineage as a whole or not at all.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from stokehold.core.errors import IntegrityError
from stokehold.store.db import events, tables
from stokehold.store.db.database import Database
from stokehold.store.files import read_manifest
from stokehold.store.home import Home
from stokehold.store.models import checkpoints

STEPS = 100
"""Most steps that become one row; also the grid on which they are cut."""

NEWEST_STEPS = 2000
"""Steps before the last that stay whatever their age: what status, forecasts and alerts look at."""

BATCH_STEPS = 1000
"""Steps that one transaction thins."""

COLUMNS = tables.journal.c
SUMS = ("tokens", "loss_tokens", "examples")
MEANS = ("loss", "learning_rate", "grad_norm")


@dataclass(frozen=True, slots=True)
class Thinned:
    """What was, or would be, thinned: steps and the aggregates they became, samples and events that went."""

    steps: int
    aggregates: int
    samples: int
    events: int


def thin(
    home: Home, db: Database, now: datetime, days: int, dry_run: bool = False, newest: int = NEWEST_STEPS
) -> Thinned:
    """Thins what is older than `days`; with `dry_run` it is only counted. May be repeated at any time.

    The `newest` steps stay whatever their age.
    """
    before = _text(now - timedelta(days=days))
    steps = aggregates = 0
    edges = _edges(home, db)
    for branch, until in _ranges(home, db, newest):
        at: int | None = -1
        while at is not None:
            count, made, at = _thin_some(db, branch, at, until, before, edges, dry_run)
            steps, aggregates = steps + count, aggregates + made
    samples = _thin_samples(db, before, dry_run)
    gone = events.older(db, before) if dry_run else events.trim_older(db, before)
    return Thinned(steps, aggregates, samples, gone)


def aggregate(rows: Sequence[sa.Row[Any]]) -> dict[str, Any]:
    """One row of `journal_aggregates` from steps of one branch, job and dataset that follow one another."""
    joules = [row.joules for row in rows if row.joules is not None]
    entropies = [row.token_entropy for row in rows if row.token_entropy is not None]
    last = rows[-1]
    return {
        "branch": last.branch,
        "first_step": rows[0].step,
        "last_step": last.step,
        "steps": len(rows),
        "job": last.job,
        "dataset": last.dataset,
        **{name: sum(getattr(row, name) for row in rows) for name in SUMS},
        "seconds": math.fsum(row.seconds for row in rows),
        "joules": math.fsum(joules) if joules else None,
        "joules_steps": len(joules),
        **{name: math.fsum(getattr(row, name) for row in rows) / len(rows) for name in MEANS},
        "loss_min": min(row.loss for row in rows),
        "loss_max": max(row.loss for row in rows),
        "grad_norm_max": max(row.grad_norm for row in rows),
        "token_entropy": math.fsum(entropies) / len(entropies) if entropies else None,
        "created": last.created,
    }


def groups(rows: Sequence[sa.Row[Any]], edges: Sequence[int]) -> Iterator[list[sa.Row[Any]]]:
    """Rows of one branch in order, cut where job, dataset or the hundred change, after each edge, and at a gap."""
    cuts = sorted(edges)

    def part(numbered: tuple[int, sa.Row[Any]]) -> tuple[Any, ...]:
        place, row = numbered
        return (row.step - 1) // STEPS, row.job, row.dataset, bisect_left(cuts, row.step), row.step - place

    for _, found in groupby(enumerate(rows), part):
        yield [row for _, row in found]


def _ranges(home: Home, db: Database, newest: int) -> list[tuple[int, int]]:
    """(branch, the last of its steps that may be thinned), none where nothing may."""
    resumable = _oldest_resumable(home)
    if resumable is None:
        return []
    with db.read() as connection:
        last = connection.execute(sa.select(sa.func.max(COLUMNS.step))).scalar()
        branches = connection.execute(sa.select(COLUMNS.branch).distinct().order_by(COLUMNS.branch)).scalars().all()
    bound = min(resumable, (last or 0) - newest)
    return [(branch, bound) for branch in branches] if bound > 0 else []


def _oldest_resumable(home: Home) -> int | None:
    """The lowest step that training may go on from; None while there is no checkpoint."""
    return min((checkpoint.step for checkpoint in checkpoints.list_checkpoints(home)), default=None)


def _edges(home: Home, db: Database) -> list[int]:
    """Steps after which a branch began, and those that training may yet be taken back to: evaluated ones, versions."""
    with db.read() as connection:
        found = set(connection.execute(sa.select(tables.branches.c.from_step)).scalars())
        found |= set(connection.execute(sa.select(tables.evaluations.c.step)).scalars())
    for shelf in (home.versions, home.checkpoints, home.trash):
        for folder in shelf.iterdir():
            try:
                found.add(read_manifest(folder).get("step"))
            except IntegrityError:
                continue  # no published folder
    return [step for step in found if step is not None]


def _thin_some(
    db: Database, branch: int, after: int, until: int, before: str, edges: Sequence[int], dry_run: bool
) -> tuple[int, int, int | None]:
    """Thins the next steps above `after`; how many, what they became, and where to go on (None at the end).

    The last group of a full batch is left to the next, where it may go on.
    """
    inside = sa.and_(COLUMNS.branch == branch, COLUMNS.step > after, COLUMNS.step <= until, COLUMNS.created < before)
    with db.read() if dry_run else db.write() as connection:
        query = sa.select(tables.journal).where(inside).order_by(COLUMNS.step).limit(BATCH_STEPS)
        rows = connection.execute(query).all()
        found = list(groups(rows, edges))
        if len(rows) == BATCH_STEPS and len(found) > 1:
            found.pop()
        if not found:
            return 0, 0, None
        last = found[-1][-1].step
        if not dry_run:
            connection.execute(tables.journal_aggregates.insert(), [aggregate(group) for group in found])
            connection.execute(tables.journal.delete().where(inside, COLUMNS.step <= last))
    return sum(map(len, found)), len(found), last if len(rows) == BATCH_STEPS else None


def _thin_samples(db: Database, before: str, dry_run: bool) -> int:
    """Drops old samples and adds them to the totals."""
    column, totals = tables.samples.c, tables.sample_totals
    old = column.created < before
    counted = sa.select(column.matched, sa.func.count().label("samples")).where(old).group_by(column.matched)
    with db.read() if dry_run else db.write() as connection:
        found = connection.execute(counted).all()
        if dry_run or not found:
            return sum(row.samples for row in found)
        for row in found:
            mine = totals.c.matched == row.matched
            more = totals.update().where(mine).values(samples=totals.c.samples + row.samples)
            if connection.execute(more).rowcount == 0:
                connection.execute(totals.insert().values(matched=row.matched, samples=row.samples))
        connection.execute(tables.samples.delete().where(old))
    return sum(row.samples for row in found)


def _text(when: datetime) -> str:
    """As `utc_now` writes it; text order is time order."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
