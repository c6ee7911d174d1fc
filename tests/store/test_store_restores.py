"""A damaged folder is made whole from wherever its content is, and the damaged one is kept."""

import os
import shutil
from pathlib import Path

import pytest
from matrix import every_fault

from stokehold.core.config import Config, describe, parse_config
from stokehold.core.errors import IntegrityError, NotFoundError, StokeholdError
from stokehold.store import files
from stokehold.store.backup import backups, offsite
from stokehold.store.blobs import LINK_BYTES, BlobStore
from stokehold.store.db.database import Database, connect
from stokehold.store.disk import FaultyDisk
from stokehold.store.files import MANIFEST
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.models import deletions, restores, versions
from stokehold.store.models.checkpoints import publish_checkpoint
from stokehold.store.models.verification import verify_all
from tiny_world import safetensors

WEIGHTS = "model.safetensors"


def make(home: Home, db: Database, weights: bytes) -> Path:
    """A version of a checkpoint with these weights."""

    def write(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(safetensors(weights))
        (folder / "config.json").write_text("{}")

    source = publish_checkpoint(home, 100, write, {})
    return Path(versions.create(home, db, Path(source.path)).path)


def damage(path: Path) -> None:
    """Other content of the same size, in a file of its own: what shares the old one keeps it."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + b"!")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


DAMAGES = {
    "weights": lambda folder: damage(folder / WEIGHTS),
    "configuration": lambda folder: damage(folder / "config.json"),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "half a manifest": lambda folder: os.truncate(folder / MANIFEST, 40),
    "no folder": shutil.rmtree,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_version_is_made_whole_bit_for_bit(home: Home, db: Database, how: str) -> None:
    folder = make(home, db, b"weights")
    before = content(folder)
    DAMAGES[how](folder)
    damaged = content(folder) if folder.exists() else None
    done = restores.restore(home, db, "v1")
    assert (done.name, content(folder)) == ("v0001", before)
    assert done.was
    if damaged is None:
        assert done.kept_previous is None
    else:
        assert content(Path(str(done.kept_previous))) == damaged
    assert restores.restore(home, db, "v0001").kept_previous is None, "whole: nothing to do"


def test_a_bad_blob_is_mended_from_the_checkpoint_that_has_the_same_content(home: Home, db: Database) -> None:
    folder = make(home, db, b"weights")
    digest = files.hash_file(folder / WEIGHTS)
    blobs = BlobStore(home.blobs)
    damage(folder / WEIGHTS)
    damage(blobs.path(digest))
    restores.restore(home, db, "v1")
    assert files.verify(folder) == []
    assert blobs.verify(digest) is None


def test_content_that_is_nowhere_is_named_and_nothing_changes(home: Home, db: Database) -> None:
    """Large files that are links share one fate, and it is told who shares it."""
    folder = make(home, db, bytes(LINK_BYTES))
    shared = folder / WEIGHTS
    shared.chmod(0o644)
    with shared.open("r+b") as stream:  # in place: whoever shares the content shares this too
        stream.seek(LINK_BYTES // 2)
        stream.write(b"!")
    if files.verify(home.checkpoints / "step_000000100") == []:
        pytest.skip("this file system shares by reflink: the checkpoint's content is its own")
    with pytest.raises(IntegrityError, match=r"content of model.safetensors is damaged.*nothing was changed"):
        restores.restore(home, db, "v1")
    assert files.verify(folder)[0].path == WEIGHTS
    assert trash.listing(home) == []
    assert {each.name: bool(each.bad) for each in verify_all(home, lambda done, total: None)} == {
        "step_000000100": True,
        "v0001": True,
    }


def test_who_shares_the_damaged_file_is_told(home: Home, db: Database) -> None:
    folder = make(home, db, bytes(LINK_BYTES))
    good = shutil.copy(folder / WEIGHTS, home.root / "good")
    shared = folder / WEIGHTS
    if not shared.samefile(home.checkpoints / "step_000000100" / WEIGHTS):
        pytest.skip("this file system shares by reflink")
    shared.chmod(0o644)
    with shared.open("r+b") as stream:  # in place: whoever shares the content shares this too
        stream.seek(LINK_BYTES // 2)
        stream.write(b"!")
    digest = files.hash_file(Path(good))
    BlobStore(home.blobs).mend(Path(good), digest)
    done = restores.restore(home, db, "v1")
    assert done.still_damaged == ("step_000000100",)
    assert restores.restore(home, db, "step:100").still_damaged == ()
    assert all(not each.bad for each in verify_all(home, lambda done, total: None))


def test_the_second_location_of_the_backups_has_what_the_home_has_not(home: Home, db: Database, tmp_path: Path) -> None:
    folder = make(home, db, b"weights")
    before = content(folder)
    place = tmp_path / "backup"
    home.write_config(describe(parse_config({"store": {"backup_to": str(place)}})))
    offsite.run(home, db, "test", str(place))
    digest = files.hash_file(folder / WEIGHTS)
    for path in (folder, home.checkpoints / "step_000000100"):
        shutil.rmtree(path)
    BlobStore(home.blobs).path(digest).unlink()
    restores.restore(home, db, "v1")
    assert content(folder) == before


def test_a_snapshot_tells_what_a_version_was_when_the_database_does_not(home: Home, db: Database) -> None:
    folder = make(home, db, b"weights")
    before = content(folder)
    backups.snapshot(home, db, "test")
    shutil.rmtree(folder)
    fresh = connect(f"sqlite:///{home.root / 'other.db'}")
    restores.restore(home, fresh, "v1")
    fresh.close()
    assert content(folder) == before


def test_what_was_never_there_and_what_is_newer_is_refused(home: Home, db: Database) -> None:
    with pytest.raises(NotFoundError, match="nothing tells what it was · v0009"):
        restores.restore(home, db, "v9")
    with pytest.raises(NotFoundError, match="nothing tells what it was"):
        restores.restore(home, db, "step:7")
    folder = make(home, db, b"weights")
    text = (folder / MANIFEST).read_text().replace('"format": 1', '"format": 99')
    (folder / MANIFEST).write_text(text)
    with pytest.raises(IntegrityError, match=r"newer format 99.*upgrade"):
        restores.restore(home, db, "v1")
    assert (folder / MANIFEST).read_text() == text


def test_a_deleted_version_can_be_restored_too(home: Home, db: Database) -> None:
    folder = make(home, db, b"weights")
    make(home, db, b"others")
    before = content(folder)
    deletions.delete(home, db, "v1")
    assert restores.restore(home, db, "v1").kept_previous is None
    assert content(folder) == before
    trash.empty(home, keep_s=0, pruned_keep_s=0)
    assert files.verify(folder) == [], "what the trash had is shared, not moved"


def test_a_copy_elsewhere_is_verified_and_never_over_something(home: Home, db: Database, tmp_path: Path) -> None:
    folder = make(home, db, b"weights")
    target = tmp_path / "copy"
    assert restores.copy_to(home, folder, target) == sum(e["bytes"] for e in versions.entries(folder))
    assert content(target) == content(folder)
    with pytest.raises(StokeholdError, match="something is there already"):
        restores.copy_to(home, folder, target)
    damage(folder / WEIGHTS)
    with pytest.raises(IntegrityError, match="content changed since it was published"):
        restores.copy_to(home, folder, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "home"]


def test_what_is_shared_is_read_once(home: Home, db: Database) -> None:
    make(home, db, bytes(LINK_BYTES))
    for _ in range(3):
        versions.create(home, db, home.checkpoints / "step_000000100")
    told: list[tuple[int, int]] = []
    checked = verify_all(home, lambda done, total: told.append((done, total)))
    assert [each.name for each in checked] == ["step_000000100", *(f"v000{n}" for n in range(1, 5))]
    assert told[-1][0] == told[-1][1]
    if (home.versions / "v0001" / WEIGHTS).samefile(home.versions / "v0004" / WEIGHTS):
        assert told[-1][1] < 2 * LINK_BYTES


def damaged_version(root: Path) -> None:
    home = Home.create(root, Config())
    db = connect(home)
    damage(make(home, db, b"weights") / WEIGHTS)
    db.close()


def restore_it(home: Home) -> None:
    db = connect(home)
    restores.restore(home, db, "v1")
    db.close()


def judge_restore(home: Home, told: str | None) -> str:
    folder = home.versions / "v0001"
    assert (folder / MANIFEST).is_file(), "whatever happens there is a version"
    bad = files.verify(folder)
    if not bad:
        return "new"
    damaged = (folder / WEIGHTS).read_bytes().endswith(b"!")
    return "old" if damaged and [fault.path for fault in bad] == [WEIGHTS] else "named"


def test_restoring_under_every_fault(tmp_path: Path) -> None:
    counts = every_fault(damaged_version, restore_it, judge_restore, tmp_path)
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]


def copy_it(home: Home) -> None:
    target = home.root / "sessions" / "copy"
    if not target.exists():
        restores.copy_to(home, home.versions / "v0001", target)


def whole_version(root: Path) -> None:
    home = Home.create(root, Config())
    db = connect(home)
    make(home, db, b"weights")
    db.close()


def judge_copy(home: Home, told: str | None) -> str:
    assert files.verify(home.versions / "v0001") == []
    target = home.root / "sessions" / "copy"
    if not target.exists():
        assert list(target.parent.iterdir()) == []
        return "old"
    return "named" if files.verify(target) else "new"


def test_copying_under_every_fault(tmp_path: Path) -> None:
    counts = every_fault(whole_version, copy_it, judge_copy, tmp_path)
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]


def test_a_version_that_is_whole_costs_no_change(home: Home, db: Database) -> None:
    make(home, db, b"weights")
    disk = FaultyDisk()
    restores.restore(Home(home.root, disk), db, "v1")
    assert disk.changes == []
