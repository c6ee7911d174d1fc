"""The journal as a curve of at most a thousand points, however long the run: made by the database in one scan."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from stokehold.store import journal, tables
from stokehold.store.database import Database

POINTS = 1000
COLUMNS = tables.journal.c


@dataclass(frozen=True, slots=True)
class Curve:
    """Points in order of `step`; each stands for `width` steps.

    A point has `step` (the last of its steps), `loss` with `loss_min` and `loss_max`, `learning_rate`, `grad_norm`
    (means over its steps), `tokens_per_s` and `created` (of the last). `steps` counts the journal rows behind it.
    """

    points: list[dict[str, Any]]
    width: int
    steps: int
    branch: int


def read_curve(db: Database, since: int = -1, points: int = POINTS) -> Curve:
    """The present lineage's steps with a number above `since`, averaged over equal widths into at most `points`."""
    with db.read() as connection:
        spans = journal.lineage(connection)
        chosen = sa.or_(*(_inside(span, since) for span in spans))
        first, last = connection.execute(
            sa.select(sa.func.min(COLUMNS.step), sa.func.max(COLUMNS.step)).where(chosen)
        ).one()
        if first is None:
            return Curve([], 1, 0, spans[0].branch)
        width = -(-(last - first + 1) // points)
        # Parts begin at the first step, so that there are never more than asked for.
        rows = connection.execute(_query(chosen, first, width)).all()
    found = [_point(row) for row in rows]
    return Curve(found, width, sum(row.rows for row in rows), spans[0].branch)


def _query(chosen: sa.ColumnElement[bool], first: int, width: int) -> sa.Select[Any]:
    return (
        sa.select(
            ((COLUMNS.step - first) // width).label("part"),
            sa.func.max(COLUMNS.step).label("step"),
            sa.func.avg(COLUMNS.loss).label("loss"),
            sa.func.min(COLUMNS.loss).label("loss_min"),
            sa.func.max(COLUMNS.loss).label("loss_max"),
            sa.func.avg(COLUMNS.learning_rate).label("learning_rate"),
            sa.func.avg(COLUMNS.grad_norm).label("grad_norm"),
            sa.func.sum(COLUMNS.tokens).label("tokens"),
            sa.func.sum(COLUMNS.seconds).label("seconds"),
            sa.func.max(COLUMNS.created).label("created"),
            sa.func.count().label("rows"),
        )
        .where(chosen)
        .group_by(sa.literal_column("part"))
        .order_by(sa.literal_column("part"))
    )


def _point(row: sa.Row[Any]) -> dict[str, Any]:
    named = ("step", "loss", "loss_min", "loss_max", "learning_rate", "grad_norm", "created")
    rate = float(row.tokens) / row.seconds if row.seconds else None
    return {name: getattr(row, name) for name in named} | {"tokens_per_s": rate}


def _inside(span: journal.Span, since: int) -> sa.ColumnElement[bool]:
    """One lower bound: of two, SQLite would look up the first and scan for the other."""
    inside = sa.and_(COLUMNS.branch == span.branch, COLUMNS.step > max(span.after, since))
    return inside if span.until is None else sa.and_(inside, COLUMNS.step <= span.until)
