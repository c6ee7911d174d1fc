"""The journal as a curve of at most a thousand points, however long the run: made by the database in one scan."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from stokehold.store.db import journal, tables
from stokehold.store.db.database import Database

POINTS = 1000
COLUMNS = tables.journal.c
SUMS = tables.journal_aggregates.c


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
    """The present lineage's steps with a number above `since`, averaged over equal widths into at most `points`.

    Steps that were thinned to sums weigh as many as they were, at the last of them.
    """
    with db.read() as connection:
        spans = journal.lineage(connection)
        chosen = sa.or_(*(_inside(span, since) for span in spans))
        thinned = sa.and_(SUMS.last_step > since, sa.or_(*map(journal.inside_sums, spans)))
        bounds = [
            connection.execute(query).one()
            for query in (
                sa.select(sa.func.min(COLUMNS.step), sa.func.max(COLUMNS.step)).where(chosen),
                sa.select(sa.func.min(SUMS.first_step), sa.func.max(SUMS.last_step)).where(thinned),
            )
        ]
        first = min((low for low, _ in bounds if low is not None), default=None)
        if first is None:
            return Curve([], 1, 0, spans[0].branch)
        width = -(-(max(high for _, high in bounds if high is not None) - first + 1) // points)
        # Parts begin at the first step, so that there are never more than asked for.
        rows = connection.execute(_query(chosen, first, width)).all()
        if bounds[1][0] is not None:
            rows = [*connection.execute(_query_sums(thinned, first, width)), *rows]
    found = [_point(list(part)) for _, part in groupby(sorted(rows, key=_part), _part)]
    return Curve(found, width, sum(row.rows for row in rows), spans[0].branch)


def _part(row: sa.Row[Any]) -> int:
    return int(row.part)


def _query(chosen: sa.ColumnElement[bool], first: int, width: int) -> sa.Select[Any]:
    return _parts(
        ((COLUMNS.step - first) // width).label("part"),
        sa.func.max(COLUMNS.step).label("step"),
        sa.func.sum(COLUMNS.loss).label("loss"),
        sa.func.min(COLUMNS.loss).label("loss_min"),
        sa.func.max(COLUMNS.loss).label("loss_max"),
        sa.func.sum(COLUMNS.learning_rate).label("learning_rate"),
        sa.func.sum(COLUMNS.grad_norm).label("grad_norm"),
        sa.func.sum(COLUMNS.tokens).label("tokens"),
        sa.func.sum(COLUMNS.seconds).label("seconds"),
        sa.func.max(COLUMNS.created).label("created"),
        sa.func.count().label("rows"),
    ).where(chosen)


def _query_sums(chosen: sa.ColumnElement[bool], first: int, width: int) -> sa.Select[Any]:
    """The same columns, of aggregates: a mean counts once for each of its steps."""
    return _parts(
        ((SUMS.last_step - first) // width).label("part"),
        sa.func.max(SUMS.last_step).label("step"),
        sa.func.sum(SUMS.loss * SUMS.steps).label("loss"),
        sa.func.min(SUMS.loss_min).label("loss_min"),
        sa.func.max(SUMS.loss_max).label("loss_max"),
        sa.func.sum(SUMS.learning_rate * SUMS.steps).label("learning_rate"),
        sa.func.sum(SUMS.grad_norm * SUMS.steps).label("grad_norm"),
        sa.func.sum(SUMS.tokens).label("tokens"),
        sa.func.sum(SUMS.seconds).label("seconds"),
        sa.func.max(SUMS.created).label("created"),
        sa.func.sum(SUMS.steps).label("rows"),
    ).where(chosen)


def _parts(*columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return sa.select(*columns).group_by(sa.literal_column("part")).order_by(sa.literal_column("part"))


def _point(rows: Sequence[sa.Row[Any]]) -> dict[str, Any]:
    """One point of what one width holds: steps, aggregates, or both."""
    count, seconds = sum(row.rows for row in rows), sum(row.seconds for row in rows)
    last = max(rows, key=lambda row: row.step)
    return {
        "step": last.step,
        "loss": sum(row.loss for row in rows) / count,
        "loss_min": min(row.loss_min for row in rows),
        "loss_max": max(row.loss_max for row in rows),
        "learning_rate": sum(row.learning_rate for row in rows) / count,
        "grad_norm": sum(row.grad_norm for row in rows) / count,
        "created": last.created,
        "tokens_per_s": float(sum(row.tokens for row in rows)) / seconds if seconds else None,
    }


def _inside(span: journal.Span, since: int) -> sa.ColumnElement[bool]:
    """One lower bound: of two, SQLite would look up the first and scan for the other."""
    inside = sa.and_(COLUMNS.branch == span.branch, COLUMNS.step > max(span.after, since))
    return inside if span.until is None else sa.and_(inside, COLUMNS.step <= span.until)
