"""One consistent copy of the database in a file, and back: SQLite's backup API, or `pg_dump` and `pg_restore`.

Both see one moment of the database and hold up no writer. A copy is checked before it is called one: a damaged
database has no backup, it has `stoke doctor --rebuild`.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from stokehold.core.errors import DiskFullError, IntegrityError, StokeholdError
from stokehold.store.db.database import Database
from stokehold.store.db.postgresql import dump_postgresql, run_client
from stokehold.store.disk import Disk
from stokehold.store.files import hash_file

FILES = {"sqlite": "stoke.db", "postgresql": "stoke.pgdump"}
"""Name of the copy by the kind of database."""

SCRATCH = "database.copying"


def dump(db: Database, folder: Path, disk: Disk) -> tuple[str, str]:
    """Writes the copy into `folder`; returns its name and its BLAKE3, taken of what was read from the database.

    Raises `IntegrityError` for a damaged database, `DiskFullError` where there is no room.
    """
    kind = db.engine.dialect.name
    if kind not in FILES:
        raise StokeholdError("no backup of this kind of database", db.place, "use SQLite or PostgreSQL")
    scratch = folder / SCRATCH
    try:
        _copy_sqlite(db, scratch) if kind == "sqlite" else dump_postgresql(db.url, scratch)
        digest = disk.copy(scratch, folder / FILES[kind])
    finally:
        scratch.unlink(missing_ok=True)
    return FILES[kind], digest


def fault(path: Path) -> str | None:
    """What is wrong with an SQLite file that nobody has open, or None; reads it whole."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as connection:
            found = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if found == ["ok"] else str(found[0])


def restore_sqlite(copy: Path, target: Path, disk: Disk) -> None:
    """Puts a copy where a database is expected; `IntegrityError` for a damaged one, or one that the disk changed."""
    if disk.copy(copy, target) != hash_file(target):
        raise IntegrityError(
            "the disk changed the copy of the database", str(target), "look at the disk; then repeat it"
        )
    if why := fault(target):
        raise IntegrityError(f"the copy of the database is damaged: {why}", str(copy), "use another snapshot")


def restore_postgresql(copy: Path, url: str) -> None:
    """Fills an empty PostgreSQL database, in one transaction: all of the copy, or nothing.

    Raises `StokeholdError` where it has tables already.
    """
    engine = sa.create_engine(url)
    place = sa.make_url(url).render_as_string(hide_password=True)
    try:
        inspector = sa.inspect(engine)
        if inspector.get_table_names() or "dbos" in inspector.get_schema_names():
            raise StokeholdError("the database is not empty", place, "create a new one and give its URL")
    finally:
        engine.dispose()
    run_client("pg_restore", url, "--no-owner", "--no-acl", "--single-transaction", "--exit-on-error", str(copy))


def _copy_sqlite(db: Database, target: Path) -> None:
    source = db.engine.url.database
    assert source is not None  # `Database` refuses one in memory
    try:
        with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, readable where nothing may be written beside it
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise DiskFullError("no space left for a copy of the database", str(target), "make room") from error
        raise
    except sqlite3.DatabaseError as error:
        raise _damaged(db, str(error)) from error
    if why := fault(target):
        raise _damaged(db, why)


def _damaged(db: Database, why: str) -> IntegrityError:
    return IntegrityError(f"the database is damaged: {why}", db.place, "`stoke doctor --rebuild` remakes it")
