"""Numbered migrations of our tables. A published one never changes: a new shape is a new function at the end.

The first creates what `tables.py` holds; a test pins that text, so whoever changes a table is told to freeze it here.
"""

from collections.abc import Callable

import sqlalchemy as sa

from stokehold.core.errors import StokeholdError
from stokehold.store.tables import (
    journal_job,
    metadata,
    samples_matched,
    schema_version,
    skipped,
    token_reports,
    token_windows,
)

Migration = Callable[[sa.Connection], None]


def _first(connection: sa.Connection) -> None:
    metadata.create_all(connection)


def _second(connection: sa.Connection) -> None:
    """Indexes for what the status asks at every look; a fresh database has them from `_first`."""
    for index in (journal_job, samples_matched):
        index.create(connection, checkfirst=True)


def _third(connection: sa.Connection) -> None:
    """Batches that are passed over."""
    skipped.create(connection, checkfirst=True)


def _fourth(connection: sa.Connection) -> None:
    """Token counts and reports, which ingest kept in the dataset's folder before."""
    for table in (token_windows, token_reports):
        table.create(connection, checkfirst=True)


MIGRATIONS: tuple[Migration, ...] = (_first, _second, _third, _fourth)
"""In order; the schema's version is how many of them were applied."""


def migrate(connection: sa.Connection, where: str, migrations: tuple[Migration, ...] = MIGRATIONS) -> int:
    """Applies what is missing inside the caller's write transaction; returns the version.

    Raises `StokeholdError` for a database written by a newer program, before anything is touched.
    """
    schema_version.create(connection, checkfirst=True)
    found = connection.execute(sa.select(schema_version.c.version).with_for_update()).scalar()
    if found is not None and found > len(migrations):
        what = f"the database has schema {found}, this program knows {len(migrations)}"
        raise StokeholdError(what, where, "upgrade stokehold; nothing was changed")
    for migration in migrations[found or 0 :]:
        migration(connection)
    if found is None:
        connection.execute(schema_version.insert().values(version=len(migrations)))
    elif found < len(migrations):
        connection.execute(schema_version.update().values(version=len(migrations)))
    return len(migrations)
