"""A database remade from the folders: nothing trains twice, the ledger adds up, and what is lost is said."""

import json
from pathlib import Path

import pytest
from matrix import every_fault
from test_store_backups import tensors

from journal_step import journal_step
from stokehold.core.config import Config
from stokehold.core.errors import BusyError, DuplicateError, StokeholdError
from stokehold.core.records import Dataset, JobState
from stokehold.store.backup import backups
from stokehold.store.blobs import BlobStore
from stokehold.store.datasets import save_dataset
from stokehold.store.db import events, job_rows, journal
from stokehold.store.db.database import Database, connect
from stokehold.store.db.jobs import JobsClient
from stokehold.store.db.rebuild import rebuild
from stokehold.store.home import Home
from stokehold.store.models import checkpoints, versions

ROWS = 10


def accept(home: Home, name: str) -> Dataset:
    path = home.root / f"{name}.jsonl"
    path.write_text(f'{{"{name}": 1}}\n')
    content = BlobStore(home.blobs).add(path)
    record = Dataset(content[:16], content, path.name, path.stat().st_size, ROWS, 0, 0, "2026-01-01T00:00:00Z", ())
    return save_dataset(home, record, lambda folder: (folder / "rows.jsonl").write_text("x"))


def save(home: Home, number: int, runs: dict[str, tuple[Dataset, int]], branch: int = 0, parent: int = 0) -> None:
    told = {
        name: {"dataset": dataset.id, "examples": examples, "skipped": 0, "unusable": []}
        for name, (dataset, examples) in runs.items()
    }

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(tensors(number))
        (folder / "trainer.json").write_text(json.dumps({"step": number, "runs": told}))

    facts = {"branch": branch, "parent": f"step_{parent:09}" if parent else None}
    checkpoints.publish_checkpoint(home, number, write, facts)


def lose(home: Home) -> None:
    for path in home.root.glob("stoke.db*"):
        path.unlink()


def test_a_lost_database_is_remade_and_nothing_trains_twice(home: Home) -> None:
    done, half, waiting = (accept(home, name) for name in ("done", "half", "waiting"))
    save(home, 5, {"a": (done, ROWS), "b": (half, 4)})
    db = connect(home)
    versions.create(home, db, checkpoints.checkpoint_folder(home, 5), evaluation="e1")
    db.close()
    lose(home)
    made = rebuild(home)
    assert (made.datasets, made.queued, made.checkpoints, made.versions) == (3, 2, 1, 1)
    assert made.champion == "v0001"
    assert any("newest version that was judged" in note for note in made.notes)
    with JobsClient(home) as client:
        states = {job.dataset: (job.id, job.state) for job in client.list_jobs()}
        assert states[done.id] == ("train-a", JobState.COMPLETED)
        assert states[half.id] == ("train-b", JobState.QUEUED)
        assert states[waiting.id] == (f"train-{waiting.id}", JobState.QUEUED)
        with pytest.raises(DuplicateError, match="already trained"):
            client.submit_file(home.root / "done.jsonl")
        assert sorted(client.reconcile()) == sorted(["train-b", f"train-{waiting.id}"])
        assert client.reconcile() == [], "each of them once"
        assert journal.examples_by_dataset(client.db, 5) == {done.id: ROWS, half.id: 4}
        assert events.events(client.db)[-1].kind == "rebuilt"
        assert versions.create(home, client.db, checkpoints.checkpoint_folder(home, 5)).name == "v0002"


def test_going_back_is_known_from_the_checkpoints(home: Home) -> None:
    data = accept(home, "data")
    save(home, 3, {"a": (data, 3)})
    save(home, 7, {"a": (data, 7)}, branch=2, parent=3)
    rebuild(home)
    db = connect(home)
    assert checkpoints.latest(home, db).checkpoint == checkpoints.load_checkpoint(
        checkpoints.checkpoint_folder(home, 7)
    )
    assert journal.current_branch(db) == 2
    assert [journal.examples_by_dataset(db, number) for number in (3, 7)] == [{data.id: 3}, {data.id: 7}]


def test_it_begins_with_the_newest_good_snapshot(home: Home, db: Database) -> None:
    data = accept(home, "data")
    save(home, 1, {"a": (data, 3)})
    journal.append(db, journal_step(1))
    with db.write() as connection:
        connection.exec_driver_sql(f"update journal set dataset = '{data.id}'")
    versions.create(home, db, checkpoints.checkpoint_folder(home, 1))
    versions.set_alias(home, db, "champion", "v0001")
    taken = backups.snapshot(home, db, "good")
    (Path(backups.snapshot(home, db, "bad").path) / "stoke.db").write_bytes(b"no")
    save(home, 9, {"a": (data, 8)})
    db.close()
    home.database.write_bytes(b"not a database at all" * 100)
    made = rebuild(home)
    assert (made.snapshot, made.champion) == (taken.id, "v0001")
    assert made.damaged is not None
    assert (Path(made.damaged) / "stoke.db").read_bytes().startswith(b"not a database")
    db = connect(home)
    assert [found.step for found in journal.steps(db)] == [1]
    assert journal.examples_by_dataset(db, 9) == {data.id: 8}
    assert journal.examples_by_dataset(db, 1) == {data.id: 3}
    assert [job.state for job in job_rows.list_jobs(db)] == [JobState.QUEUED]


def test_a_healthy_database_and_a_running_home_are_refused(home: Home, db: Database) -> None:
    journal.append(db, journal_step(1))
    with pytest.raises(StokeholdError, match="healthy"):
        rebuild(home)
    with home.lock("trainer", "training"), pytest.raises(BusyError):
        rebuild(home)


def test_one_that_was_made_anew_by_a_look_is_no_healthy_one(home: Home) -> None:
    accept(home, "data")
    connect(home).close()
    assert rebuild(home).queued == 1


def test_a_number_of_a_version_in_the_trash_is_not_given_again(home: Home, db: Database) -> None:
    save(home, 1, {})
    for _ in range(3):
        versions.create(home, db, checkpoints.checkpoint_folder(home, 1))
    (home.trash / "1-v0003").mkdir()
    (home.versions / "v0003").rename(home.trash / "1-v0003")
    (home.trash / "1-v0003.json").write_text('{"origin": "versions/v0003", "reason": "deleted", "created": ""}')
    db.close()
    lose(home)
    rebuild(home)
    assert versions.create(home, connect(home), checkpoints.checkpoint_folder(home, 1)).name == "v0004"


WRECK = b"not a database at all" * 100


def wrecked(root: Path) -> None:
    """A home whose database is lost, with a snapshot of before its last checkpoint."""
    home = Home.create(root, Config())
    data, db = accept(home, "data"), connect(home)
    save(home, 1, {"a": (data, 3)})
    journal.append(db, journal_step(1))
    versions.create(home, db, checkpoints.checkpoint_folder(home, 1))
    versions.set_alias(home, db, "champion", "v0001")
    backups.snapshot(home, db, "good")
    save(home, 9, {"a": (data, 8)})
    db.close()
    lose(home)
    home.database.write_bytes(WRECK)


def remake(home: Home) -> None:
    if not home.database.exists() or home.database.read_bytes() == WRECK:
        rebuild(home)


def remade(home: Home, _told: str | None) -> str:
    """The wreck is never thrown away; there is a database with all of it, or none."""
    places = (home.database, *home.backups.glob("damaged-*/stoke.db"))
    assert [path for path in places if path.is_file() and path.read_bytes() == WRECK]
    if not home.database.exists() or home.database.read_bytes() == WRECK:
        return "old"
    db = connect(home)
    try:
        assert versions.alias(db) == "v0001"
        assert [found.step for found in journal.steps(db)] == [1]
        assert [job.state for job in job_rows.list_jobs(db)] == [JobState.QUEUED]
        with db.read() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    finally:
        db.close()
    return "new"


def test_remaking_under_every_fault(tmp_path: Path) -> None:
    counts = every_fault(wrecked, remake, remade, tmp_path)
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]
