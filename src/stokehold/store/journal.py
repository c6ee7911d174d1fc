"""Every optimiser step, once, for ever; and what the model went through when it was taken back.

A row is keyed by (branch, step): a step repeated after a kill overwrites itself, a step after going back stands
beside the one it replaced. The lineage of a branch is its own rows and, up to where it began, those of its parent.
A lineage is read span by span: their steps follow one another, and each is one range of the key, however long the run.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import sqlalchemy as sa

from stokehold.core.records import Step
from stokehold.store import tables
from stokehold.store.database import Database, upsert
from stokehold.store.files import utc_now

COLUMNS = tables.journal.c


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """What the model answered during training to a row it is trained on; `match` is exact after stripping."""

    step: int
    branch: int
    prompt: str
    gold: str
    answer: str
    match: bool
    created: str


@dataclass(frozen=True, slots=True)
class Span:
    """A branch's part of a lineage: its steps in (after, until]; `until` None has no end."""

    branch: int
    after: int
    until: int | None

    def holds(self, branch: int, step: int) -> bool:
        """Whether that branch's step belongs to this span."""
        return branch == self.branch and step > self.after and (self.until is None or step <= self.until)


def append(db: Database, step: Step, connection: sa.Connection | None = None) -> None:
    """Writes the step; the same step of the same branch is overwritten. Durable when it returns.

    With a `connection` it becomes part of that transaction instead.
    """
    values = asdict(step) | {"components": dict(step.components)}
    if connection is not None:
        upsert(tables.journal, connection, **values)
        return
    with db.write() as own:
        upsert(tables.journal, own, **values)


def steps(
    db: Database, since: int | None = None, branch: int | None = None, limit: int | None = None, every: int = 1
) -> list[Step]:
    """Steps in order with a number above `since`, of the present lineage or of exactly one `branch`.

    `limit` keeps the first so many; `every` = n keeps steps whose number divides by n (for drawing a long run).
    """
    found: list[Step] = []
    with db.read() as connection:
        ranges = lineage(connection)[::-1] if branch is None else [Span(branch, -1, None)]
        for span in _above(ranges, since):
            left = None if limit is None else limit - len(found)
            query = sa.select(tables.journal).where(_inside(span)).order_by(COLUMNS.step).limit(left)
            if every > 1:
                query = query.where(COLUMNS.step % every == 0)
            found += map(_step, connection.execute(query))
    return found


def job_steps(db: Database, job_id: str) -> list[Step]:
    """Every step of one job in the present lineage, in order."""
    found: list[Step] = []
    with db.read() as connection:
        for span in reversed(lineage(connection)):
            query = sa.select(tables.journal).where(COLUMNS.job == job_id, _inside(span)).order_by(COLUMNS.step)
            found += map(_step, connection.execute(query))
    return found


def first_step(db: Database, job_id: str) -> int | None:
    """The number of a job's first step in the present lineage."""
    with db.read() as connection:
        for span in reversed(lineage(connection)):
            query = sa.select(sa.func.min(COLUMNS.step)).where(COLUMNS.job == job_id, _inside(span))
            found: int | None = connection.execute(query).scalar()
            if found is not None:
                return found
    return None


def last_step(db: Database) -> Step | None:
    """The newest step of the present lineage."""
    with db.read() as connection:
        for span in lineage(connection):
            query = sa.select(tables.journal).where(_inside(span)).order_by(COLUMNS.step.desc()).limit(1)
            row = connection.execute(query).one_or_none()
            if row is not None:
                return _step(row)
    return None


def find_step(db: Database, branch: int, step: int) -> Step | None:
    """The row of exactly this step of this branch."""
    with db.read() as connection:
        query = sa.select(tables.journal).where(COLUMNS.branch == branch, COLUMNS.step == step)
        row = connection.execute(query).one_or_none()
        return None if row is None else _step(row)


def current_branch(db: Database) -> int:
    """The number that new steps carry; 0 until the first going back."""
    with db.read() as connection:
        return lineage(connection)[0].branch


def new_branch(db: Database, from_step: int, reason: str) -> int:
    """Goes back to `from_step` of the present lineage: later rows stay, but no longer belong to it."""
    with db.write() as connection:
        parent = lineage(connection)[0].branch
        connection.execute(
            tables.branches.insert().values(
                branch=parent + 1, parent=parent, from_step=from_step, reason=reason, created=utc_now()
            )
        )
    return parent + 1


def spans(db: Database) -> list[Span]:
    """The present lineage, newest branch first."""
    with db.read() as connection:
        return lineage(connection)


def lineage(connection: sa.Connection) -> list[Span]:
    """As `spans`, inside a transaction."""
    rows = connection.execute(sa.select(tables.branches).order_by(tables.branches.c.branch.desc())).all()
    return _spans([(row.branch, row.from_step) for row in rows])


def add_sample(db: Database, step: int, prompt: str, gold: str, answer: str, match: bool) -> None:
    """Keeps one in-training sample."""
    with db.write() as connection:
        connection.execute(
            tables.samples.insert().values(
                branch=lineage(connection)[0].branch,
                step=step,
                prompt=prompt,
                gold=gold,
                answer=answer,
                matched=match,
                created=utc_now(),
            )
        )


def latest_sample(db: Database) -> TrainingSample | None:
    """The newest in-training sample."""
    found = latest_samples(db, 1)
    return found[0] if found else None


def latest_samples(db: Database, limit: int) -> list[TrainingSample]:
    """The newest in-training samples, newest first."""
    with db.read() as connection:
        query = sa.select(tables.samples).order_by(tables.samples.c.id.desc()).limit(limit)
        return [
            TrainingSample(r.step, r.branch, r.prompt, r.gold, r.answer, bool(r.matched), r.created)
            for r in connection.execute(query)
        ]


def _spans(branches: Sequence[tuple[int, int]]) -> list[Span]:
    """Newest first, from (branch, from_step) newest first; each branch's parent is the one before it."""
    found: list[Span] = []
    until: int | None = None
    for branch, from_step in [*branches, (0, -1)]:
        if until is None or from_step < until:
            found.append(Span(branch, from_step, until))
            until = from_step
    return found


def _above(ranges: Sequence[Span], since: int | None) -> list[Span]:
    """The parts of `ranges` above `since`. SQLite seeks to one lower bound only, so each part has just one."""
    if since is None:
        return list(ranges)
    higher = (replace(span, after=max(span.after, since)) for span in ranges)
    return [span for span in higher if span.until is None or span.after < span.until]


def _inside(span: Span) -> sa.ColumnElement[bool]:
    inside = sa.and_(COLUMNS.branch == span.branch, COLUMNS.step > span.after)
    return inside if span.until is None else sa.and_(inside, COLUMNS.step <= span.until)


def _step(row: sa.Row[tuple[object, ...]]) -> Step:
    return Step(**row._mapping)
