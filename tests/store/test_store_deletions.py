"""What may be deleted, what lies in the trash, and how it comes back."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from matrix import every_fault

from stokehold.core.config import Config
from stokehold.core.errors import NotFoundError, StokeholdError
from stokehold.store import files
from stokehold.store.backup import backups
from stokehold.store.blobs import LINK_BYTES
from stokehold.store.db.database import Database, connect
from stokehold.store.disk import FaultyDisk
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.models import deletions, versions
from stokehold.store.models.checkpoints import publish_checkpoint
from tiny_world import safetensors


def make(home: Home, db: Database, parent: str | None = None, step: int = 100) -> str:
    """A version of a checkpoint of a few bytes."""

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(safetensors(f"weights {step}".encode()))
        (folder / "config.json").write_text("{}")

    source = publish_checkpoint(home, step, write, {})
    return versions.create(home, db, Path(source.path), parent=parent).name


def test_what_is_in_use_is_refused_and_says_why(home: Home, db: Database) -> None:
    for parent in (None, "v0001", None, None, None):
        make(home, db, parent)
    versions.set_alias(home, db, "champion", "v0003")
    versions.set_alias(home, db, "best", "v0003")
    versions.pin(home, db, "v4")
    for name, why in (
        ("v3", "in use as best and champion · v0003"),
        ("v0005", "the newest version stays · v0005"),
        ("v0004", "it is pinned · v0004 · `stoke versions unpin v0004` first"),
        ("v0001", "v0002 was made from it · v0001"),
    ):
        with pytest.raises(StokeholdError, match=why):
            deletions.delete(home, db, name)
    assert len(versions.list_versions(home)) == 5
    assert backups.list_snapshots(home) == [], "what is refused costs no snapshot"
    deletions.delete(home, db, "v0001", despite_children=True)
    versions.unpin(home, db, "v4")
    deletions.delete(home, db, "v4")
    assert [version.name for version in versions.list_versions(home)] == ["v0002", "v0003", "v0005"]
    assert [snapshot.reason for snapshot in backups.list_snapshots(home)] == [
        "before v0001 is deleted",
        "before v0004 is deleted",
    ]


def test_pins_are_by_name_however_it_is_written(home: Home, db: Database) -> None:
    make(home, db)
    assert versions.pin(home, db, "v1") == versions.pin(home, db, "v0001") == "v0001"
    assert versions.pinned(db) == {"v0001"}
    assert versions.unpin(home, db, "v00001") == "v0001"
    assert versions.pinned(db) == set()
    with pytest.raises(NotFoundError, match="not pinned"):
        versions.unpin(home, db, "v1")
    with pytest.raises(NotFoundError, match="no such version"):
        versions.pin(home, db, "v2")


def test_a_deleted_version_comes_back_as_it_was(home: Home, db: Database) -> None:
    make(home, db)
    make(home, db)
    before = {path.name: path.read_bytes() for path in (home.versions / "v0001").iterdir()}
    with pytest.raises(StokeholdError, match="not deleted"):
        deletions.undelete(home, db, "v1")
    deletions.delete(home, db, "v1")
    assert not (home.versions / "v0001").exists()
    assert deletions.undelete(home, db, "v1").name == "v0001"
    assert {path.name: path.read_bytes() for path in (home.versions / "v0001").iterdir()} == before
    with pytest.raises(NotFoundError, match="not in the trash"):
        deletions.undelete(home, db, "v0009")
    deletions.delete(home, db, "v1")
    trash.empty(home)
    assert deletions.undelete(home, db, "v1").name == "v0001", "a week is not over"
    deletions.delete(home, db, "v1")
    trash.empty(home, keep_s=0)
    with pytest.raises(NotFoundError, match="not in the trash"):
        deletions.undelete(home, db, "v1")


def test_what_is_damaged_in_the_trash_does_not_come_back_unseen(home: Home, db: Database) -> None:
    make(home, db)
    make(home, db)
    moved = deletions.delete(home, db, "v1")
    (moved / "config.json").write_text("[]")
    with pytest.raises(StokeholdError, match=r"damaged in the trash: config.json.*versions restore v0001"):
        deletions.undelete(home, db, "v1")
    assert moved.is_dir()


def test_two_at_once_create_and_delete(home: Home, db: Database) -> None:
    """Every number is given once, and of two deletions of one version one is told that it is gone."""
    make(home, db)
    source = home.checkpoints / "step_000000100"
    made, told = list[str](), list[str]()

    def create() -> None:
        own = connect(home)
        made.extend(versions.create(home, own, source).name for _ in range(5))
        own.close()

    def delete() -> None:
        own = connect(home)
        try:
            told.append(deletions.delete(home, own, "v1").name)
        except NotFoundError as error:
            told.append(error.what)
        own.close()

    creating = [threading.Thread(target=create) for _ in range(3)]
    for thread in creating:
        thread.start()
    for thread in creating:
        thread.join()
    assert sorted(made) == [f"v{number:04d}" for number in range(2, 17)]
    deleting = [threading.Thread(target=delete) for _ in range(2)]
    for thread in deleting:
        thread.start()
    for thread in deleting:
        thread.join()
    assert "no such version" in told
    assert len(trash.find(home, home.versions / "v0001")) == 1
    assert not any(files.verify(Path(version.path)) for version in versions.list_versions(home))


def test_a_version_of_a_checkpoint_that_was_pruned_meanwhile_is_refused(home: Home, db: Database) -> None:
    """The manifest was read, and then the folder went to the trash."""
    make(home, db)
    source = home.checkpoints / "step_000000100"

    class Pruning(FaultyDisk):
        def make_folder(self, path: Path) -> None:
            if path.parent == home.versions:
                trash.discard(Home(home.root), source, trash.PRUNED)
            super().make_folder(path)

    for blob in home.blobs.glob("??/*"):
        blob.unlink()
    with pytest.raises(NotFoundError, match=r"taken away meanwhile.*nothing was changed"):
        versions.create(Home(home.root, Pruning()), db, source)
    assert [version.name for version in versions.list_versions(home)] == ["v0001"]
    assert list(home.versions.glob(".*")) == []


def two_versions(root: Path) -> None:
    home = Home.create(root, Config())
    db = connect(home)
    make(home, db)
    make(home, db)
    shutil.rmtree(home.checkpoints / "step_000000100")  # the snapshot before a deletion has less to write
    db.close()


def one_deleted(root: Path) -> None:
    two_versions(root)
    home = Home.open(root)
    db = connect(home)
    deletions.delete(home, db, "v1")
    db.close()


def delete_one(home: Home) -> None:
    db = connect(home)
    if (home.versions / "v0001").exists():
        deletions.delete(home, db, "v1")
    db.close()


def undelete_one(home: Home) -> None:
    db = connect(home)
    if not (home.versions / "v0001").exists():
        deletions.undelete(home, db, "v1")
    db.close()


def whole_where(home: Home) -> str:
    """Whether v0001 is in its place, in the trash, or, which may never be, in neither or both."""
    assert (home.versions / "v0002" / "manifest.json").is_file()
    place, discarded = home.versions / "v0001", trash.find(home, home.versions / "v0001")
    assert place.exists() != bool(discarded), "it is in one place"
    assert files.verify(place if place.exists() else discarded[0]) == []
    return "there" if place.exists() else "deleted"


def judge_delete(home: Home, told: str | None) -> str:
    if any(files.verify(Path(snapshot.path)) for snapshot in backups.list_snapshots(home)):
        return "named"
    return {"there": "old", "deleted": "new"}[whole_where(home)]


def judge_undelete(home: Home, told: str | None) -> str:
    return {"there": "new", "deleted": "old"}[whole_where(home)]


def test_deleting_under_every_fault(tmp_path: Path) -> None:
    counts = every_fault(two_versions, delete_one, judge_delete, tmp_path)
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]


def test_undeleting_under_every_fault(tmp_path: Path) -> None:
    counts = every_fault(one_deleted, undelete_one, judge_undelete, tmp_path)
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]


def create_one(home: Home) -> None:
    db = connect(home)
    if not versions.list_versions(home):
        versions.create(home, db, home.checkpoints / "step_000000100")
    db.close()


def one_checkpoint(root: Path) -> None:
    home = Home.create(root, Config())
    large = safetensors(os.urandom(LINK_BYTES))

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(large)
        (folder / "config.json").write_text('{"architectures": []}')

    publish_checkpoint(home, 100, write, {})
    connect(home).close()


def judge_create(home: Home, told: str | None) -> str:
    assert not files.verify(home.checkpoints / "step_000000100") or told is None
    there = versions.list_versions(home)
    if not there:
        damaged = list(home.versions.iterdir())
        assert all(map(files.verify, damaged))
        return "named" if damaged else "old"
    return "named" if versions.verify(home, Path(there[0].path)) else "new"


def test_creating_under_every_fault(tmp_path: Path) -> None:
    counts = every_fault(one_checkpoint, create_one, judge_create, tmp_path)
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]


def test_nothing_large_is_read_or_written_to_make_a_version(home: Home, db: Database) -> None:
    """The weights are named by the hash that the checkpoint states: with content that nobody can have read."""
    one = home.checkpoints / "step_000000100"

    def write(folder: Path) -> None:
        weights = 3 * 1024**3
        header = json.dumps({"w": {"dtype": "U8", "shape": [weights], "data_offsets": [0, weights]}}).encode()
        with (folder / "model.safetensors").open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            stream.truncate(8 + len(header) + weights)
        (folder / "config.json").write_text("{}")

    stated = "f" * 64
    publish_checkpoint(home, 100, write, {}, {"model.safetensors": stated})
    disk = FaultyDisk()
    made = versions.create(Home(home.root, disk), db, one)
    assert made.weights_hash == stated
    assert not [
        change for change in disk.changes if "model.safetensors" in change and change.startswith(("write", "copy"))
    ]
    assert sum(path.stat().st_blocks for path in home.root.rglob("*") if path.is_file()) * 512 < 2 * 1024**2
