"""Batches that a run passes over because they spoilt a step. Kept for ever: a resumed run must pass over them too."""

from collections.abc import Sequence

import sqlalchemy as sa

from stokehold.store.db import tables
from stokehold.store.db.database import Database, upsert
from stokehold.store.files import utc_now

COLUMNS = tables.skipped.c


def record(
    db: Database, run: str, key: str, step: int, branch: int, examples: int, rows: Sequence[str], reason: str
) -> int:
    """Writes one down; returns how many of this run, this one included, stood in the way of the same step.

    A new step between two of them raises the step number, so these are those in a row.
    """
    values = {"step": step, "branch": branch, "examples": examples, "rows": list(rows), "reason": reason}
    with db.write() as connection:
        upsert(tables.skipped, connection, run=run, key=key, **values, created=utc_now())
        same = sa.select(sa.func.count()).where(COLUMNS.run == run, COLUMNS.step == step, COLUMNS.examples > 0)
        return int(connection.execute(same).scalar_one())


def rows(db: Database, runs: Sequence[str]) -> frozenset[str]:
    """Ids of the rows that these runs passed over, in any epoch."""
    with db.read() as connection:
        found = connection.execute(sa.select(COLUMNS.rows).where(COLUMNS.run.in_(runs))).scalars()
        return frozenset(row for ids in found for row in ids)


def forget(db: Database, run: str, step: int) -> None:
    """Takes back what was passed over at this step: it was not the batches that were at fault."""
    with db.write() as connection:
        connection.execute(tables.skipped.delete().where(COLUMNS.run == run, COLUMNS.step == step))


def keys(db: Database, run: str) -> frozenset[str]:
    """What this run passes over."""
    with db.read() as connection:
        return frozenset(connection.execute(sa.select(COLUMNS.key).where(COLUMNS.run == run)).scalars())
