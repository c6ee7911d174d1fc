"""Numbered migrations of our tables. A published one never changes: a new shape is a new function at the end.

The first creates what `tables.py` holds; a test pins that text, so whoever changes a table is told to freeze it here.
"""

from collections.abc import Callable

import sqlalchemy as sa

from stokehold.core.errors import StokeholdError
from stokehold.store.db.tables import (
    journal_aggregates,
    journal_job,
    journal_lost,
    metadata,
    pins,
    sample_totals,
    samples_matched,
    schema_version,
    skipped,
    token_reports,
    token_windows,
    version_manifests,
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


def _fifth(connection: sa.Connection) -> None:
    """Versions that a person pinned, and what each version was when it was published."""
    for table in (pins, version_manifests):
        table.create(connection, checkfirst=True)


def _sixth(connection: sa.Connection) -> None:
    """What old steps and samples are thinned to."""
    for table in (journal_aggregates, sample_totals):
        table.create(connection, checkfirst=True)


def _seventh(connection: sa.Connection) -> None:
    """What a remade database knows of the rows it lost."""
    journal_lost.create(connection, checkfirst=True)


MIGRATIONS: tuple[Migration, ...] = (_first, _second, _third, _fourth, _fifth, _sixth, _seventh)
"""In order; the schema's version is how many of them were applied."""


def outdated(connection: sa.Connection, migrations: tuple[Migration, ...] = MIGRATIONS) -> int | None:
    """The schema of a database that `migrate` would change, None of a new one and of one that is as it should be."""
    if not sa.inspect(connection).has_table(schema_version.name):
        return None
    found = connection.execute(sa.select(schema_version.c.version)).scalar()
    return found if found is not None and found < len(migrations) else None


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
