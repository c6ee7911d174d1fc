"""Every optimiser step, once; old ones as sums of a hundred; and what the model went through when it was taken back.

A row is keyed by (branch, step): a step repeated after a kill overwrites itself, a step after going back stands
beside the one it replaced. The lineage of a branch is its own rows and, up to where it began, its parent's lineage.
A lineage is read span by span: their steps follow one another, and each is one range of the key, however long the run.
PostgreSQL's sum of whole numbers is a `Decimal`, so sums are made whole numbers again here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa

from stokehold.core.records import Step
from stokehold.store.db import tables
from stokehold.store.db.database import Database, upsert
from stokehold.store.files import utc_now

COLUMNS = tables.journal.c
SUMS = tables.journal_aggregates.c


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


def first_step(db: Database, job_id: str) -> int | None:
    """The number of a job's first step in the present lineage, thinned ones included."""
    with db.read() as connection:
        for span in reversed(lineage(connection)):
            query = sa.select(sa.func.min(COLUMNS.step)).where(COLUMNS.job == job_id, _inside(span))
            thinned = sa.select(sa.func.min(SUMS.first_step)).where(SUMS.job == job_id, inside_sums(span))
            found = [step for one in (query, thinned) if (step := connection.execute(one).scalar()) is not None]
            if found:
                return int(min(found))
    return None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over steps, each of them counted whether it still has a row of its own or not.

    `loss` is of the newest step, None where that has none any more.
    """

    steps: int
    examples: int
    tokens: int
    seconds: float
    loss: float | None


def job_totals(db: Database, job_ids: Sequence[str]) -> Totals:
    """Over every step of these jobs in the present lineage."""
    steps = examples = tokens = 0
    seconds, newest = 0.0, (-1, None)
    with db.read() as connection:
        for span in lineage(connection):
            for query in (_totals(COLUMNS, _inside(span), job_ids), _totals(SUMS, inside_sums(span), job_ids)):
                row = connection.execute(query).one()
                steps, seconds = steps + row.steps, seconds + (row.seconds or 0.0)
                examples, tokens = examples + int(row.examples or 0), tokens + int(row.tokens or 0)
            last = sa.select(COLUMNS.step, COLUMNS.loss).where(COLUMNS.job.in_(job_ids), _inside(span))
            found = connection.execute(last.order_by(COLUMNS.step.desc()).limit(1)).one_or_none()
            if found is not None and found.step > newest[0]:
                newest = (found.step, found.loss)
    return Totals(steps, examples, tokens, seconds, newest[1])


def examples_by_dataset(db: Database, until_step: int) -> dict[str, int]:
    """Examples that each dataset gave up to this step of the present lineage; what the ledger is checked against."""
    found: Counter[str] = Counter()
    with db.read() as connection:
        for span in lineage(connection):
            rows = sa.select(COLUMNS.dataset, sa.func.sum(COLUMNS.examples).label("examples"))
            thinned = sa.select(SUMS.dataset, sa.func.sum(SUMS.examples).label("examples"))
            rows = rows.where(_inside(span), COLUMNS.step <= until_step).group_by(COLUMNS.dataset)
            thinned = thinned.where(inside_sums(span), SUMS.last_step <= until_step).group_by(SUMS.dataset)
            for query in (rows, thinned):
                found.update({row.dataset: int(row.examples) for row in connection.execute(query)})
        found.update(_lost(connection, until_step))
    return dict(found)


def _lost(connection: sa.Connection, until_step: int) -> dict[str, int]:
    """Examples without a row because the database was remade, in the newest checkpoint of its that counts here."""
    lost = tables.journal_lost
    rows = connection.execute(sa.select(lost).where(lost.c.step <= until_step).order_by(lost.c.step)).all()
    inside = [row for row in rows if any(span.holds(row.branch, row.step) for span in lineage(connection))]
    return {row.dataset: row.examples for row in inside if row.step == inside[-1].step}


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
        return branch_off(connection, lineage(connection)[0].branch, from_step, reason)


def branch_off(connection: sa.Connection, parent: int, from_step: int, reason: str) -> int:
    """Begins a branch at a step of any other, inside the caller's transaction; returns its number."""
    branch = lineage(connection)[0].branch + 1
    row = {"branch": branch, "parent": parent, "from_step": from_step, "reason": reason, "created": utc_now()}
    connection.execute(tables.branches.insert().values(**row))
    return branch


def spans(db: Database) -> list[Span]:
    """The present lineage, newest branch first."""
    with db.read() as connection:
        return lineage(connection)


def lineage(connection: sa.Connection, branch: int | None = None) -> list[Span]:
    """As `spans`, inside a transaction; of any branch to its end."""
    rows = connection.execute(sa.select(tables.branches)).all()
    newest = max((row.branch for row in rows), default=0)
    return _spans({row.branch: (row.parent, row.from_step) for row in rows}, newest if branch is None else branch)


def last_in_common(db: Database, branch: int, step: int) -> int:
    """The last step that the present lineage shares with the one that ends at `step` of `branch`."""
    with db.read() as connection:
        here, there = lineage(connection), lineage(connection, branch)
    common = -1
    for ours, theirs in zip(reversed(here), reversed(there), strict=False):
        if (ours.branch, ours.after) != (theirs.branch, theirs.after):
            break
        common = min(step if end is None else end for end in (ours.until, theirs.until))
    return min(common, step)


def jobs_after(db: Database, step: int, branch: int | None = None) -> set[str]:
    """The jobs with a step after `step` in the present lineage, or in that of a branch."""
    with db.read() as connection:
        inside = sa.or_(*map(_inside, _above(lineage(connection, branch), step)))
        return set(connection.execute(sa.select(COLUMNS.job).where(inside).distinct()).scalars())


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


def sample_counts(db: Database) -> tuple[int, int]:
    """(all in-training samples there ever were, those that matched)."""
    matched, totals = tables.samples.c.matched, tables.sample_totals.c
    found: Counter[bool] = Counter()
    with db.read() as connection:
        counted = sa.select(matched, sa.func.count().label("samples")).group_by(matched)
        for query in (counted, sa.select(totals.matched, totals.samples)):
            found.update({bool(row.matched): row.samples for row in connection.execute(query)})
    return found.total(), found[True]


def latest_samples(db: Database, limit: int) -> list[TrainingSample]:
    """The newest in-training samples, newest first."""
    with db.read() as connection:
        query = sa.select(tables.samples).order_by(tables.samples.c.id.desc()).limit(limit)
        return [
            TrainingSample(r.step, r.branch, r.prompt, r.gold, r.answer, bool(r.matched), r.created)
            for r in connection.execute(query)
        ]


def _spans(branches: Mapping[int, tuple[int, int]], branch: int) -> list[Span]:
    """Newest first, from (parent, from_step) by branch; 0 has neither."""
    found: list[Span] = []
    until: int | None = None
    while True:
        parent, from_step = branches.get(branch, (0, -1))
        if until is None or from_step < until:
            found.append(Span(branch, from_step, until))
            until = from_step
        if branch == 0:
            return found
        branch = parent


def _above(ranges: Sequence[Span], since: int | None) -> list[Span]:
    """The parts of `ranges` above `since`. SQLite seeks to one lower bound only, so each part has just one."""
    if since is None:
        return list(ranges)
    higher = (replace(span, after=max(span.after, since)) for span in ranges)
    return [span for span in higher if span.until is None or span.after < span.until]


def _inside(span: Span) -> sa.ColumnElement[bool]:
    inside = sa.and_(COLUMNS.branch == span.branch, COLUMNS.step > span.after)
    return inside if span.until is None else sa.and_(inside, COLUMNS.step <= span.until)


def inside_sums(span: Span) -> sa.ColumnElement[bool]:
    """Aggregates of a span: they never lie across the ends of one."""
    inside = sa.and_(SUMS.branch == span.branch, SUMS.first_step > span.after)
    return inside if span.until is None else sa.and_(inside, SUMS.last_step <= span.until)


def _totals(column: Any, inside: sa.ColumnElement[bool], job_ids: Sequence[str]) -> sa.Select[Any]:
    counted = sa.func.count() if column is COLUMNS else sa.func.coalesce(sa.func.sum(column.steps), 0)
    sums = [sa.func.sum(column[name]).label(name) for name in ("examples", "tokens", "seconds")]
    return sa.select(counted.label("steps"), *sums).where(column.job.in_(job_ids), inside)


def _step(row: sa.Row[tuple[object, ...]]) -> Step:
    return Step(**row._mapping)
