"""A home of an older program: its database is copied, then migrated; its jobs are enqueued afresh, once; never back."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from matrix import every_fault

from stokehold.core.config import Config
from stokehold.core.errors import DiskFullError, IntegrityError, StokeholdError
from stokehold.store import files
from stokehold.store.db import events, jobs, tables
from stokehold.store.db.database import connect
from stokehold.store.db.migrations import MIGRATIONS
from stokehold.store.disk import Fault, FaultyDisk
from stokehold.store.home import Home

SCHEMA_1 = Path(__file__).with_name("schema_1.sql")
"""The tables as the first program made them; what it wrote must open for ever."""

COPY = f"before-schema-{len(MIGRATIONS)}.db"


def write_schema_1(path: Path) -> None:
    """A database as the first program left it, with an event in it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(SCHEMA_1.read_text())
        connection.execute("INSERT INTO schema_version VALUES (1)")
        connection.execute("INSERT INTO events (kind, text, data, created) VALUES ('old', 'from then', '{}', '2026')")


def old_home(root: Path) -> None:
    write_schema_1(Home.create(root, Config()).database)


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT text FROM events").fetchone() == ("from then",)
        return int(connection.execute("SELECT version FROM schema_version").fetchone()[0])


def test_an_old_database_is_copied_then_migrated_and_has_every_table(tmp_path: Path) -> None:
    old_home(tmp_path / "home")
    home = Home.open(tmp_path / "home")
    db = connect(home)
    assert (version(home.backups / COPY), version(home.database)) == (1, len(MIGRATIONS))
    found = sa.inspect(db.engine)
    assert set(found.get_table_names()) >= set(tables.metadata.tables)
    for table in tables.metadata.tables.values():
        assert {c["name"] for c in found.get_columns(table.name)} == {column.name for column in table.columns}
        assert {i["name"] for i in found.get_indexes(table.name)} == {index.name for index in table.indexes}
    assert [event.text for event in events.events(db)] == ["from then"]
    db.close()


def test_a_new_database_and_one_as_it_should_be_are_not_copied(home: Home) -> None:
    connect(home).close()
    connect(home).close()
    assert list(home.backups.iterdir()) == []


def test_a_database_named_by_its_url_is_copied_beside_itself(tmp_path: Path) -> None:
    write_schema_1(tmp_path / "x.db")
    connect(f"sqlite:///{tmp_path / 'x.db'}").close()
    assert version(tmp_path / COPY) == 1


def test_the_copy_has_what_lies_in_the_log_only(tmp_path: Path) -> None:
    """What was committed and not yet moved into the file itself is in the copy, and a later upgrade replaces it."""
    old_home(tmp_path / "home")
    home = Home.open(tmp_path / "home")
    (home.backups / COPY).write_bytes(b"of an upgrade that was taken back")
    with closing(sqlite3.connect(home.database)) as open_elsewhere, open_elsewhere:
        open_elsewhere.execute("UPDATE events SET data = '{\"late\": 1}'")
        open_elsewhere.commit()
        connect(home).close()
    with closing(sqlite3.connect(home.backups / COPY)) as copy:
        assert copy.execute("SELECT data FROM events").fetchone() == ('{"late": 1}',)


def test_a_damaged_database_is_not_migrated(tmp_path: Path) -> None:
    old_home(tmp_path / "home")
    home = Home.open(tmp_path / "home")
    with closing(sqlite3.connect(home.database)) as connection, connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'journal'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with home.database.open("r+b") as stream:
        stream.seek((page - 1) * size)
        stream.write(b"\xff" * 100)
    with pytest.raises(IntegrityError, match="not migrated"):
        connect(home)
    with closing(sqlite3.connect(home.database)) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchone() == (1,)
    assert list(home.backups.iterdir()) == []


def test_no_room_for_the_copy_leaves_everything_as_it_was(tmp_path: Path) -> None:
    old_home(tmp_path / "home")
    home = Home.open(tmp_path / "home", FaultyDisk(Fault("full", 1)))
    with pytest.raises(DiskFullError, match="no space left"):
        connect(home)
    assert version(home.database) == 1
    assert list(home.backups.iterdir()) == []


def upgrade(home: Home) -> None:
    connect(home).close()


def judge(home: Home, _told: str | None) -> str:
    copy, found = home.backups / COPY, version(home.database)
    assert found in (1, len(MIGRATIONS))
    assert found == 1 or version(copy) == 1, "nothing is migrated without a copy"
    assert not copy.exists() or version(copy) == 1
    return "old" if found == 1 else "new"


def test_an_upgrade_broken_off_anywhere_is_old_or_new(tmp_path: Path) -> None:
    counts = every_fault(old_home, upgrade, judge, tmp_path, kinds=("kill", "full", "io", "torn"))
    assert all(counts[kind]["old"] for kind in ("kill", "full", "io"))


def test_jobs_of_the_old_version_are_enqueued_afresh_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "JOBS_VERSION", "0")
    source = home.root / "a.jsonl"
    source.write_text('{"text": "a"}\n')
    with jobs.client(home) as old:
        waiting = old.submit_file(source)
    monkeypatch.undo()
    with jobs.client(home) as client:
        assert client.adopt_old_versions() == [waiting.id]
        assert client.adopt_old_versions() == [], "once"
        (row,) = client._dbos.list_workflows(workflow_ids=[waiting.id])
        assert (row.app_version, row.status) == (jobs.JOBS_VERSION, "ENQUEUED")
        assert len(client.list_jobs()) == 1


def test_manifests_of_the_first_format_are_read_and_newer_ones_refused(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    files.publish(folder, lambda stage: (stage / "a").write_bytes(b"x") and None, {"kind": "dataset"})
    assert files.read_manifest(folder)["format"] == 1
    assert files.verify(folder) == []
    newer = shutil.copytree(folder, tmp_path / "newer")
    text = (newer / files.MANIFEST).read_text().replace('"format": 1', '"format": 2')
    (newer / files.MANIFEST).write_text(text)
    with pytest.raises(StokeholdError, match="upgrade stokehold"):
        files.read_manifest(newer)
