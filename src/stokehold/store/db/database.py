"""One database for our tables and DBOS's: SQLite in WAL mode beside the content, or PostgreSQL by its URL.

A write transaction holds the write lock from its first statement (`BEGIN IMMEDIATE`), so that it never fails half
way for another writer; it waits up to `BUSY_TIMEOUT_MS` for its turn. Every commit is on disk before it returns.
"""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from stokehold.core.errors import DiskFullError, IntegrityError, StokeholdError
from stokehold.store.db.migrations import MIGRATIONS, migrate, outdated
from stokehold.store.db.postgresql import dump_postgresql
from stokehold.store.disk import DISK, Disk
from stokehold.store.files import STAGING, refusals
from stokehold.store.home import Home

BUSY_TIMEOUT_MS = 30_000

NETWORK_TYPES = re.compile(
    r"nfs4?|cifs|smb\d?|smbfs|9p|afs|ceph|glusterfs|lustre|beegfs|gfs2|ocfs2|ncpfs|davfs"
    r"|fuse\.(sshfs|glusterfs|s3fs|rclone|davfs|ceph|goofys)"
)
"""File systems on which WAL's shared memory and locks do not hold (sqlite.org/wal.html, "over a network")."""

MOUNTS = Path("/proc/mounts")

FULL = re.compile(r"database or disk is full|No space left on device", re.IGNORECASE)
"""How SQLite and PostgreSQL say it."""


class Database:
    """An open database with current tables. One per process; threads may share it, forked children may not."""

    def __init__(self, url: str) -> None:
        self.url, self.place = url, sa.make_url(url).render_as_string(hide_password=True)
        self.engine = _engine(url)
        self._writer = self.engine.execution_options(stokehold_write=True)

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One write transaction: committed at the end of the block, undone by an exception.

        Raises DiskFullError where there is no room for it.
        """
        try:
            with self._writer.begin() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            if FULL.search(str(error.orig)):
                raise DiskFullError("no space left for the database", self.place, "make room") from error
            raise

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view; writers are neither waited for nor held up."""
        with self.engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Lets go of every connection."""
        self.engine.dispose()


def connect(target: Home | str) -> Database:
    """Opens the database of a home, or of an SQLAlchemy URL, creating and migrating our tables.

    What an older program made is copied first, as `before-schema-N`: into `backups/` of the home, or beside the file
    (SQLite's backup API; `pg_dump` for a home on PostgreSQL). With SQLite both are under one write lock, so nothing is
    written between them, and of two processes that begin at once the second finds it done; PostgreSQL's dump is the
    state of the moment it began, and the migration is one transaction.

    Raises `StokeholdError` on a network file system, where WAL is refused, for a newer schema, and where no good copy
    can be made; then nothing was changed.
    """
    database = Database(target if isinstance(target, str) else database_url(target))
    with database.write() as connection:
        if (found := outdated(connection)) is not None:
            _keep_old(database, target, found)
        migrate(connection, database.place)
    return database


def _keep_old(database: Database, target: Home | str, schema: int) -> None:
    """The copy that `connect` makes before a migration; none of a bare PostgreSQL URL, which has no folder for it."""
    name = f"before-schema-{len(MIGRATIONS)}"
    if database.engine.dialect.name == "sqlite":
        path = Path(database.engine.url.database or "")
        folder, disk = (path.parent, DISK) if isinstance(target, str) else (target.backups, target.disk)
        keep_before(path, folder / f"{name}.db", schema, disk)
    elif isinstance(target, Home):
        keep_before_postgresql(database.url, target.backups / f"{name}.pgdump", target.disk)


def keep_before_postgresql(url: str, target: Path, disk: Disk) -> None:
    """Dumps a PostgreSQL database to `target`, whole or not at all; StokeholdError where `pg_dump` fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = target.with_name(f"{STAGING}{target.name}-{uuid4().hex}")
    with refusals(target):
        try:
            dump_postgresql(url, stage)
            disk.sync(stage)
            disk.rename(stage, target)
            disk.sync(target.parent)
        finally:
            stage.unlink(missing_ok=True)


def keep_before(database: Path, target: Path, schema: int, disk: Disk) -> None:
    """Copies an SQLite file as of its last commit to `target`, whole or not at all; the copy is read before it is one.

    Raises `DiskFullError` where there is no room and `IntegrityError` for a damaged database.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = target.with_name(f"{STAGING}{target.name}-{uuid4().hex}")
    with refusals(target):
        try:
            _copy(database, stage, schema)
            disk.sync(stage)
            disk.rename(stage, target)
            disk.sync(target.parent)
        except sqlite3.DatabaseError as error:
            if FULL.search(str(error)):
                raise DiskFullError("no room to copy the database first", str(target), "make room") from error
            raise _not_copied(database, str(error)) from error
        finally:
            stage.unlink(missing_ok=True)


def _copy(database: Path, stage: Path, schema: int) -> None:
    with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(stage)) as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, whatever becomes of what lies beside it
        said = str(copy.execute("PRAGMA integrity_check(1)").fetchone()[0])
        if said != "ok" or copy.execute("SELECT version FROM schema_version").fetchone() != (schema,):
            raise _not_copied(database, said)


def _not_copied(database: Path, why: str) -> IntegrityError:
    what = f"the database is not migrated, for it cannot be copied whole: {why}"
    return IntegrityError(what, str(database), "`stoke doctor --rebuild` remakes it")


def database_url(home: Home) -> str:
    """The URL that the home's settings name, or that of its own SQLite file."""
    return home.config().store.database_url or f"sqlite:///{home.database}"


def prepare_sqlite(path: Path) -> None:
    """Creates the file in WAL mode: the mode is a property of the file and must precede its first table."""
    if kind := network_file_system(path.absolute().parent):
        raise StokeholdError(
            f"the database would lie on a network file system ({kind})",
            str(path),
            "keep the home on a local disk, or set store.database_url to a PostgreSQL server",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000)
    try:
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    finally:
        connection.close()
    if mode != "wal":
        raise StokeholdError(f"SQLite refuses WAL mode here (it says {mode})", str(path), "use a local disk")


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """Type of the network file system that `path` lies on, or None. `mounts` is text in the form of /proc/mounts."""
    if mounts is None:
        if not MOUNTS.exists():  # not Linux: SQLite's own refusal of WAL is what remains
            return None
        mounts = MOUNTS.read_text()
    place, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1])
        if len(point) >= len(place) and Path(os.path.realpath(path)).is_relative_to(point):
            place, kind = point, fields[2]
    return kind if NETWORK_TYPES.fullmatch(kind) else None


def upsert(table: sa.Table, connection: sa.Connection, **values: Any) -> None:
    """Inserts a row, or overwrites the one with the same primary key."""
    keys = [column.name for column in table.primary_key]
    others = {name: value for name, value in values.items() if name not in keys}
    build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(build(table).values(**values).on_conflict_do_update(index_elements=keys, set_=others))


def _engine(url: str) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    if not parsed.database or parsed.database == ":memory:":
        raise StokeholdError("the database must be a file", url, "several processes share it")
    prepare_sqlite(Path(parsed.database))
    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not guessed by the driver
        pragmas(connection)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("stokehold_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def pragmas(connection: Any) -> None:
    """What every SQLite connection of ours and of DBOS is set to."""
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
