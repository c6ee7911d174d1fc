"""What a dataset's tokens look like: counted window by window while it is trained, so that a kill loses none.

The counts of a window are written as it is begun; once all are there the report is written and they go.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from stokehold.core.records import TokenReport, WindowTokens
from stokehold.store.db import tables
from stokehold.store.db.database import Database, upsert
from stokehold.store.files import utc_now

WINDOWS = tables.token_windows.c


@dataclass(frozen=True, slots=True)
class Reported:
    """A dataset's token report; `warning` says what is suspicious in its mask, with rendered `examples` to look at."""

    report: TokenReport
    warning: str | None = None
    examples: tuple[str, ...] = ()


def add_window(db: Database, dataset: str, tokens: WindowTokens) -> None:
    """Writes a window's counts; the same window again changes nothing."""
    values = {"lengths": list(tokens.lengths), "trained": tokens.trained, "conversations": tokens.conversations}
    with db.write() as connection:
        keys = {"dataset": dataset, "window_rows": tokens.window_rows, "window": tokens.window}
        upsert(tables.token_windows, connection, **keys, **values)


def known_windows(db: Database, dataset: str, window_rows: int) -> set[int]:
    """Numbers of the windows of this size that were counted."""
    with db.read() as connection:
        query = sa.select(WINDOWS.window).where(WINDOWS.dataset == dataset, WINDOWS.window_rows == window_rows)
        return set(connection.execute(query).scalars())


def windows(db: Database, dataset: str, window_rows: int) -> list[WindowTokens]:
    """The counts of the windows of this size, in order: memory for one integer a row."""
    query = sa.select(tables.token_windows).where(WINDOWS.dataset == dataset, WINDOWS.window_rows == window_rows)
    with db.read() as connection:
        return [
            WindowTokens(row.window_rows, row.window, tuple(row.lengths), row.trained, row.conversations)
            for row in connection.execute(query.order_by(WINDOWS.window))
        ]


def save(db: Database, dataset: str, reported: Reported) -> None:
    """Writes the report, and drops the counts it was made from."""
    with db.write() as connection:
        facts = {"report": asdict(reported.report), "warning": reported.warning, "examples": list(reported.examples)}
        upsert(tables.token_reports, connection, dataset=dataset, **facts, created=utc_now())
        connection.execute(tables.token_windows.delete().where(WINDOWS.dataset == dataset))


def load(db: Database, dataset: str) -> Reported | None:
    """The dataset's report; None while it is not finished."""
    return load_many(db, [dataset]).get(dataset)


def load_many(db: Database, datasets: Sequence[str]) -> dict[str, Reported]:
    """The reports that are finished, by dataset."""
    with db.read() as connection:
        query = sa.select(tables.token_reports).where(tables.token_reports.c.dataset.in_(datasets))
        return {
            row.dataset: Reported(TokenReport(**row.report), row.warning, tuple(row.examples))
            for row in connection.execute(query)
        }
