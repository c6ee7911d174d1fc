"""Snapshots: consistent, cheap, whole or not there, and worth something after the folders are gone."""

import shutil
import sqlite3
from pathlib import Path

import orjson
import pytest
from matrix import every_fault

from journal_step import journal_step
from stokehold.core.config import Config
from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.store.backup import backups
from stokehold.store.backup.backups import CONTENTS, contents, find_snapshot, list_snapshots, snapshot, verify_snapshot
from stokehold.store.blobs import BlobStore
from stokehold.store.db import journal
from stokehold.store.db.database import Database, connect
from stokehold.store.db.dumps import FILES, fault
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home
from stokehold.store.judged.suites import save_suite
from stokehold.store.models import checkpoints, versions

LARGE = 2 * 1024 * 1024


def tensors(size: int, content: bytes = b"w") -> bytes:
    """A safetensors file with one tensor of bytes."""
    header = orjson.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    return len(header).to_bytes(8, "little") + header + content * size


def weights(folder: Path, fill: bytes = b"w") -> None:
    (folder / "model.safetensors").write_bytes(tensors(LARGE, fill))
    (folder / "config.json").write_text("{}")
    (folder / "trainer.json").write_text('{"step": 1, "runs": {}}')


def fill(home: Home, db: Database) -> None:
    journal.append(db, journal_step(1))
    checkpoints.publish_checkpoint(home, 1, weights, {"datasets": ["d"]})
    versions.create(home, db, checkpoints.checkpoint_folder(home, 1))
    save_suite(home, "frozen", [{"id": "1"}])


def test_a_snapshot_names_everything_and_survives_every_folder(home: Home, db: Database) -> None:
    fill(home, db)
    taken = snapshot(home, db, "why not")
    named = contents(Path(taken.path))
    assert sorted(named.folders) == ["checkpoints/step_000000001", "versions/v0001"]
    assert [entry.path for entry in named.files] == ["suites/frozen.jsonl"]
    assert (taken.reason, taken.missing, taken.folders) == ("why not", (), 2)
    for shelf in (home.checkpoints, home.versions, home.suites):
        shutil.rmtree(shelf)
        shelf.mkdir()
    assert verify_snapshot(home, taken) == []
    assert find_snapshot(home) == taken
    assert list_snapshots(home) == [taken]


def test_a_second_snapshot_costs_the_database_and_no_content(home: Home, db: Database) -> None:
    fill(home, db)
    first = snapshot(home, db, "one")
    before = BlobStore(home.blobs).hashes()
    second = snapshot(home, db, "two")
    assert BlobStore(home.blobs).hashes() == before
    assert second.bytes == first.bytes
    large = checkpoints.checkpoint_folder(home, 1) / "model.safetensors"
    blob = next(e.blake3 for e in contents(Path(first.path)).entries() if e.path == "model.safetensors")
    assert large.samefile(BlobStore(home.blobs).path(blob)), "large files are linked, not copied"


def test_a_plain_file_is_read_again_only_when_it_changed(home: Home, db: Database) -> None:
    save_suite(home, "frozen", [{"id": "1"}])
    (before,) = contents(Path(snapshot(home, db, "one").path)).files
    (same,) = contents(Path(snapshot(home, db, "two").path)).files
    assert same == before
    save_suite(home, "frozen", [{"id": "2"}])
    (after,) = contents(Path(snapshot(home, db, "three").path)).files
    assert after.blake3 != before.blake3


@pytest.mark.parametrize("damage", [b"{", None])
def test_a_damaged_list_in_the_newest_snapshot_costs_reading_and_no_backup(
    home: Home, db: Database, damage: bytes | None
) -> None:
    save_suite(home, "frozen", [{"id": "1"}])
    first = snapshot(home, db, "one")
    (before,) = contents(Path(first.path)).files
    path = Path(first.path) / CONTENTS
    path.unlink() if damage is None else path.write_bytes(damage)
    taken = snapshot(home, db, "two")
    assert contents(Path(taken.path)).files == (before,)
    assert verify_snapshot(home, taken) == []


def test_the_copy_is_of_one_moment_and_of_committed_rows(home: Home, db: Database) -> None:
    journal.append(db, journal_step(1))
    with db.write() as connection:
        connection.exec_driver_sql("delete from journal")
        taken = snapshot(home, db, "in the middle of a transaction")
    with sqlite3.connect(Path(taken.path) / FILES["sqlite"]) as copy:
        assert copy.execute("select count(*) from journal").fetchone() == (1,)


def test_a_damaged_database_has_no_snapshot(home: Home, db: Database) -> None:
    with db.write() as connection:
        connection.exec_driver_sql("create table fat (x)")
        connection.exec_driver_sql("insert into fat values (randomblob(3000)), (randomblob(3000)), (randomblob(3000))")
    db.close()
    with sqlite3.connect(home.database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with home.database.open("r+b") as stream:
        stream.seek(home.database.stat().st_size - 9000)
        stream.write(b"\xff" * 9000)
    assert fault(home.database)
    with pytest.raises(IntegrityError, match="--rebuild"):
        snapshot(home, connect(home), "x")
    assert list_snapshots(home) == []


def test_files_that_wait_in_the_queue_are_in_it(home: Home) -> None:
    path = home.inbox / "a.jsonl"
    path.write_text("{}\n")
    with JobsClient(home) as client:
        client.submit_file(path)
        taken = snapshot(home, client.db, "x")
    (queued,) = contents(Path(taken.path)).queued
    assert (home.root / queued.path).read_text() == "{}\n"


def test_what_is_damaged_is_named_and_keeps_the_rest_from_nothing(home: Home, db: Database) -> None:
    fill(home, db)
    checkpoints.publish_checkpoint(home, 2, lambda folder: weights(folder, b"z"), {})
    (checkpoints.checkpoint_folder(home, 2) / "model.safetensors").unlink()
    taken = snapshot(home, db, "x")
    assert [name.split(": ")[0] for name in taken.missing] == ["checkpoints/step_000000002/model.safetensors"]
    assert taken.folders == 2


@pytest.mark.parametrize("name", ["stoke.db", CONTENTS, "stoke.toml", "manifest.json"])
def test_a_changed_file_of_a_snapshot_is_found(home: Home, db: Database, name: str) -> None:
    taken = snapshot(home, db, "x")
    (Path(taken.path) / name).write_bytes(b"no")
    assert [bad.path for bad in verify_snapshot(home, taken)] == [name]


def test_a_changed_blob_is_found(home: Home, db: Database) -> None:
    fill(home, db)
    taken = snapshot(home, db, "x")
    path = checkpoints.checkpoint_folder(home, 1) / "model.safetensors"
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(b"!")
    assert [bad.reason for bad in verify_snapshot(home, taken)] == ["content changed"]


def test_an_unknown_snapshot_names_those_there_are(home: Home, db: Database) -> None:
    with pytest.raises(NotFoundError, match="backup run"):
        find_snapshot(home)
    taken = snapshot(home, db, "x")
    with pytest.raises(NotFoundError, match=taken.id):
        find_snapshot(home, "20200101T000000Z-000000")
    assert backups.newest(home) == taken


def prepared(root: Path) -> None:
    home = Home.create(root, Config())
    db = connect(home)
    fill(home, db)
    db.close()


def take(home: Home) -> None:
    if list_snapshots(home):
        return
    db = connect(home)
    snapshot(home, db, "matrix")
    db.close()


def taken(home: Home, _told: str | None) -> str:
    found = list_snapshots(home)
    if not found:
        return "old"
    return "named" if verify_snapshot(home, found[0]) else "new"


def test_every_fault_leaves_a_whole_snapshot_or_none(tmp_path: Path) -> None:
    counts = every_fault(prepared, take, taken, tmp_path)
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]
    assert set(counts["flip"]) <= {"named", "new", "old"}
