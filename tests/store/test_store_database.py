"""The database: durable, shared, migrated, and never on a network disk."""

import hashlib
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateTable

from stokehold.core.errors import StokeholdError
from stokehold.store.db import control, events, tables
from stokehold.store.db.database import Database, connect, network_file_system, upsert
from stokehold.store.db.migrations import MIGRATIONS, migrate
from stokehold.store.home import Home

FIRST_SCHEMA = "e7c99c54f2382530"
"""Start of the SHA-256 of migration 1's text. If it fails, a table changed: add a migration, freeze the first."""

LATER = (
    "skipped",
    "token_windows",
    "token_reports",
    "pins",
    "version_manifests",
    "journal_aggregates",
    "sample_totals",
    "journal_lost",
)
"""Tables of later migrations."""


def test_every_connection_is_wal_and_fully_synchronous(db: Database) -> None:
    for transaction in (db.read, db.write):
        with transaction() as connection:
            pragmas = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
            ]
            assert pragmas == ["wal", 2]


def test_the_file_is_in_wal_mode_before_its_first_table(home: Home) -> None:
    connect(home).close()
    assert sqlite3.connect(home.database).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_write_is_undone_by_an_exception(db: Database) -> None:
    def fail() -> None:
        with db.write() as connection:
            upsert(tables.aliases, connection, name="champion", version="v1", previous=None, updated="now")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    with db.read() as connection:
        assert connection.execute(sa.select(tables.aliases)).all() == []


def test_readers_see_one_state_and_are_not_held_up_by_a_writer(db: Database) -> None:
    with db.read() as reader:
        assert reader.execute(sa.select(sa.func.count()).select_from(tables.events)).scalar() == 0
        events.record(db, "test", "written meanwhile")
        assert reader.execute(sa.select(sa.func.count()).select_from(tables.events)).scalar() == 0
    assert len(events.events(db)) == 1


def test_writers_take_turns(home: Home) -> None:
    """Reading and then writing in one transaction is where a lock taken late fails; here nothing is lost."""
    databases = [connect(home) for _ in range(3)]

    def count(db: Database) -> None:
        for _ in range(40):
            with db.write() as connection:
                row = connection.execute(sa.select(tables.aliases.c.version)).scalar() or "0"
                upsert(tables.aliases, connection, name="n", version=str(int(row) + 1), previous=None, updated="now")

    threads = [threading.Thread(target=count, args=(db,)) for db in databases for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with databases[0].read() as connection:
        assert connection.execute(sa.select(tables.aliases.c.version)).scalar() == "240"
    for db in databases:
        db.close()


def test_a_newer_schema_is_refused_and_kept(home: Home) -> None:
    with connect(home).write() as connection:
        connection.execute(tables.schema_version.update().values(version=len(MIGRATIONS) + 1))
    with pytest.raises(StokeholdError, match="upgrade stokehold"):
        connect(home)
    found = sqlite3.connect(home.database).execute("SELECT version FROM schema_version").fetchone()
    assert found == (len(MIGRATIONS) + 1,)


def test_a_later_migration_runs_once_on_an_older_database(db: Database) -> None:
    def second(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE later (a INTEGER)")

    for _ in range(2):  # the second time there is nothing to do
        with db.write() as connection:
            assert migrate(connection, "here", (*MIGRATIONS, second)) == len(MIGRATIONS) + 1


def test_an_older_database_gets_the_indexes_of_the_status(db: Database) -> None:
    added = {"journal_job": "journal", "samples_matched": "samples"}
    with db.write() as connection:
        for name in added:
            connection.exec_driver_sql(f"DROP INDEX {name}")
        connection.execute(tables.schema_version.update().values(version=1))
        assert migrate(connection, "here") == len(MIGRATIONS)
    inspector = sa.inspect(db.engine)
    for name, table in added.items():
        assert name in {index["name"] for index in inspector.get_indexes(table)}


def test_a_migration_that_fails_changes_nothing(db: Database) -> None:
    def broken(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE later (a INTEGER)")
        connection.exec_driver_sql("no SQL")

    def attempt() -> None:
        with db.write() as connection:
            migrate(connection, "here", (*MIGRATIONS, broken))

    with pytest.raises(sa.exc.OperationalError):
        attempt()
    assert "later" not in sa.inspect(db.engine).get_table_names()
    with db.write() as connection:
        assert migrate(connection, "here") == len(MIGRATIONS)


def test_the_first_migration_is_what_it_was() -> None:
    named = sorted((name, table) for name, table in tables.metadata.tables.items() if name not in LATER)
    text = "".join(str(CreateTable(table).compile(dialect=sqlite.dialect())) for _, table in named)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == FIRST_SCHEMA


def test_the_tables_and_upserts_are_postgresql_too() -> None:
    dialect = postgresql.dialect()
    text = "".join(str(CreateTable(table).compile(dialect=dialect)) for table in tables.metadata.sorted_tables)
    assert "id BIGSERIAL NOT NULL" in text
    insert = postgresql.insert(tables.journal).values(branch=0, step=1)
    statement = insert.on_conflict_do_update(index_elements=["branch", "step"], set_={"loss": 1.0})
    assert "ON CONFLICT (branch, step) DO UPDATE" in str(statement.compile(dialect=dialect))


MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/me/local ext4 rw 0 0
me@host: /mnt/my\\040disk fuse.sshfs rw 0 0
//host/share /srv cifs rw 0 0
tmpfs /tmp tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib", None),
        ("/home/me/work", "nfs4"),
        ("/home/me/local/work", None),
        ("/homework", None),
        ("/mnt/my disk/work", "fuse.sshfs"),
        ("/srv", "cifs"),
        ("/tmp/x", None),
    ],
)
def test_network_file_systems_are_known_by_the_mount_that_holds_the_path(path: str, kind: str | None) -> None:
    assert network_file_system(Path(path), MOUNTS) == kind


def test_a_database_in_memory_is_refused() -> None:
    with pytest.raises(StokeholdError, match="must be a file"):
        connect("sqlite://")


def test_control_keeps_the_newest_request_until_it_was_obeyed(db: Database) -> None:
    assert control.current(db) is None
    control.request(db, "pause", free=True)
    assert (control.current(db), control.frees_memory(db)) == ("pause", True)
    control.request(db, "stop")
    assert (control.current(db), control.frees_memory(db)) == ("stop", False)
    assert not control.done(db, "pause"), "an older request was obeyed: the newer one stays"
    assert control.current(db) == "stop"
    assert control.done(db, "stop")
    assert control.current(db) is None
    control.request(db, "skip")
    control.request(db, None)
    assert control.current(db) is None
    with pytest.raises(StokeholdError, match="no such command"):
        control.request(db, "explode")  # type: ignore[arg-type]


def test_events_are_read_on_from_a_number_and_trimmed(db: Database) -> None:
    numbers = [events.record(db, "even" if n % 2 == 0 else "odd", f"event {n}", n=n) for n in range(10)]
    assert [event.data["n"] for event in events.events(db, limit=3)] == [7, 8, 9]
    assert [event.data["n"] for event in events.events(db, since=numbers[3], limit=2)] == [4, 5]
    assert [event.data["n"] for event in events.events(db, kind="odd")] == [1, 3, 5, 7, 9]
    assert events.trim(db, 4) == 6
    assert events.trim(db, 4) == 0
    assert [event.id for event in events.events(db)] == numbers[6:]
    assert events.record(db, "new", "never a number twice") > numbers[-1]
