"""What may go goes, what may not stays, and the bytes told are the bytes that come back."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from matrix import every_fault
from safetensors.numpy import save_file

from stokehold.core.config import Config, StoreConfig, describe, parse_config
from stokehold.core.errors import BusyError
from stokehold.store.backup import backups
from stokehold.store.blobs import LINK_BYTES, BlobStore
from stokehold.store.db.database import Database, connect
from stokehold.store.files import hash_file, read_manifest, staging, verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import gc, retention, space, trash
from stokehold.store.housekeeping.space import Room
from stokehold.store.models import versions
from stokehold.store.models.checkpoints import publish_checkpoint

WEIGHTS = "model.safetensors"
BLOCK_SLACK = 64 * 1024
LATER = timedelta(days=40)
"""From now: every version made here is then in one week of the past."""


def version(home: Home, db: Database, step: int, parent: str | None = None) -> Path:
    def write(stage: Path) -> None:
        save_file({"weights": np.frombuffer(os.urandom(LINK_BYTES), np.uint8)}, stage / WEIGHTS)

    source = publish_checkpoint(home, step, write, {})
    folder = Path(versions.create(home, db, Path(source.path), parent=parent).path)
    unused(folder)
    return folder


def unused(folder: Path) -> None:
    then = time.time() - 30 * 24 * 3600
    os.utime(folder, (then, then))


def three(home: Home, db: Database) -> list[Path]:
    return [version(home, db, step) for step in (1, 2, 3)]


def fates(lines: tuple[gc.Line, ...], kind: str) -> dict[str, bool]:
    return {line.name: line.keep for line in lines if line.kind == kind}


def old_blobs(home: Home) -> None:
    for digest in BlobStore(home.blobs).hashes():
        path = BlobStore(home.blobs).path(digest)
        then = time.time() - 2 * gc.YOUNG_S
        os.utime(path, (then, then))


def then() -> datetime:
    return datetime.now(UTC) + LATER


def test_a_version_goes_only_when_a_snapshot_holds_it(home: Home, db: Database) -> None:
    three(home, db)
    kept = retention.run(home, db, then())
    assert fates(kept.lines, "version") == {"v0001": True, "v0002": True, "v0003": True}
    assert "in no snapshot" in next(line.why for line in kept.lines if line.name == "v0001")
    backups.snapshot(home, db, "test")
    done = retention.run(home, db, then())
    assert fates(done.lines, "version") == {"v0001": False, "v0002": False, "v0003": True}
    assert [one.name for one in versions.list_versions(home)] == ["v0003"]
    assert {entry.origin for entry in trash.listing(home)} >= {"versions/v0001", "versions/v0002"}
    assert all(line.keep for line in retention.run(home, db, then()).lines if line.kind == "version")


def test_needed_versions_stay(home: Home, db: Database) -> None:
    for step in range(1, 8):
        version(home, db, step, parent="v0001" if step == 3 else None)
    for name in ("v0002", "v0003"):
        versions.set_alias(home, db, "champion", name)
    versions.set_alias(home, db, "best", "v0004")
    versions.pin(home, db, "v0005")
    (home.versions / "v0006").touch()
    backups.snapshot(home, db, "test")
    os.utime(home.versions / "v0006")
    why = {line.name: line.why for line in retention.run(home, db, then(), dry_run=True).lines if line.keep}
    wanted = ["the parent of v0003", "the champion before", "the champion", "the best", "pinned", "asked for"]
    assert all(why[f"v{n:04}"].startswith(word) for n, word in enumerate(wanted, 1))
    assert why["v0007"] == "the newest"


def test_a_damaged_version_stays_for_a_person_to_look_at(home: Home, db: Database) -> None:
    first = three(home, db)[0]
    backups.snapshot(home, db, "test")
    path = first / WEIGHTS
    path.chmod(0o644)
    path.write_bytes(os.urandom(LINK_BYTES))
    unused(first)
    done = retention.run(home, db, then())
    (line,) = [line for line in done.lines if line.name == "v0001"]
    assert line.keep
    assert "damaged" in line.why
    assert first.is_dir()


def test_a_dry_run_changes_nothing_and_tells_the_bytes_that_come_back(home: Home, db: Database) -> None:
    three(home, db)
    (home.versions / ".staging-x").mkdir()
    (home.versions / ".staging-x" / "half").write_bytes(b"x" * LINK_BYTES)
    lonely = BlobStore(home.blobs).add(_file(home, LINK_BYTES))
    old_blobs(home)
    before = _names(home)
    plan = retention.run(home, db, dry_run=True)
    assert _names(home) == before
    assert fates(plan.lines, "blob") == {lonely[:16]: False}
    assert fates(plan.lines, "scratch") == {"versions/.staging-x": False}
    used = _used(home)
    done = retention.run(home, db)
    assert (done.freed, fates(done.lines, "blob")) == (plan.freed, fates(plan.lines, "blob"))
    assert 0 < used - _used(home) == pytest.approx(plan.freed, abs=BLOCK_SLACK)
    assert not BlobStore(home.blobs).path(lonely).exists()
    assert not (home.versions / ".staging-x").exists()


def test_a_shared_file_is_freed_with_its_last_name(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"x" * LINK_BYTES)
    other.hardlink_to(one)
    assert space.freed([one]) == 0
    assert space.freed([one, other, tmp_path]) >= LINK_BYTES


def test_blobs_that_anything_names_stay(home: Home, db: Database) -> None:
    folder = three(home, db)[0]
    digest = hash_file(folder / WEIGHTS)
    old_blobs(home)
    backups.snapshot(home, db, "test")
    trash.discard(home, folder, "deleted")
    trash.discard(home, home.checkpoints / "step_000000001", "deleted")
    retention.run(home, db)
    assert BlobStore(home.blobs).path(digest).is_file(), "the trash and the snapshot name it"
    trash.empty(home, keep_s=0)
    retention.run(home, db)
    assert BlobStore(home.blobs).path(digest).is_file(), "the snapshot names it"


def test_young_blobs_and_held_staging_stay(home: Home, db: Database) -> None:
    lonely = BlobStore(home.blobs).add(_file(home, 100))
    with staging(home.versions / "v0001") as stage:
        (stage / "half").write_bytes(b"x")
        retention.run(home, db)
        assert (stage / "half").exists()
    assert BlobStore(home.blobs).path(lonely).exists()


def test_staging_that_is_gone_when_it_is_opened_stops_nothing(home: Home, db: Database) -> None:
    (home.versions / ".staging-v0001").symlink_to(home.versions / "gone")  # listed, and not there to be opened
    left = home.versions / ".staging-v0002"
    left.mkdir()
    done = retention.run(home, db)
    assert [line.name for line in done.lines if line.kind == "scratch"] == ["versions/.staging-v0002"]
    assert not left.exists()


def test_an_unreadable_manifest_spares_every_blob(home: Home, db: Database) -> None:
    folder = three(home, db)[0]
    lonely = BlobStore(home.blobs).add(_file(home, 100))
    old_blobs(home)
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_text("{")
    done = retention.run(home, db)
    assert any("no blob is looked at" in note for note in done.notes)
    assert BlobStore(home.blobs).path(lonely).exists()


def test_checkpoints_are_left_to_a_living_trainer(home: Home, db: Database) -> None:
    for step in range(1, 6):
        publish_checkpoint(home, step, lambda stage: (stage / WEIGHTS).write_bytes(b"w"), {})
    with home.lock("trainer", "training"):
        retention.run(home, db)
        assert len(list(home.checkpoints.iterdir())) == 5
    done = retention.run(home, db)
    assert sum(fates(done.lines, "checkpoint").values()) == 3
    assert len(list(home.checkpoints.iterdir())) == 3


def test_one_at_a_time(home: Home, db: Database) -> None:
    with home.lock("gc", "test"), pytest.raises(BusyError, match="gc is held"):
        retention.run(home, db)


def test_snapshots_are_thinned_and_the_newest_stays(home: Home, db: Database) -> None:
    names = [backups.snapshot(home, db, "test").id for _ in range(3)]
    done = retention.run(home, db, then())
    assert fates(done.lines, "snapshot") == {names[0]: False, names[1]: False, names[2]: True}
    assert [one.id for one in backups.list_snapshots(home)] == [names[2]]
    assert [path.name for path in home.backups.iterdir()] == [names[2]]


def test_a_bound_on_bytes_takes_the_oldest_first(home: Home, db: Database) -> None:
    three(home, db)
    backups.snapshot(home, db, "test")
    home.write_config(describe(parse_config({"store": {"keep_bytes": 2 * LINK_BYTES + 4096}})))
    soon = datetime.now(UTC) + timedelta(days=3)
    assert fates(retention.run(home, db, soon, dry_run=True).lines, "version")["v0003"]


ROOMY = StoreConfig()


@pytest.mark.parametrize(
    ("share", "waiting", "expected"),
    [(0.5, False, "ok"), (0.14, False, "low"), (0.04, False, "full"), (0.055, True, "full"), (0.07, True, "low")],
)
def test_the_guard_warns_and_then_waits(share: float, waiting: bool, expected: str) -> None:
    assert space.level(Room(int(1000 * share), 1000), ROOMY, waiting) == expected


def test_the_guard_tells_when_waiting_begins_and_ends() -> None:
    told: list[str] = []
    free = [40, 40, 55, 70, 70]
    guard = space.Guard(ROOMY, lambda: Room(free.pop(0), 1000), lambda kind, _text: told.append(kind))
    assert [guard.full(second) for second in (0.0, 0.5, 10.0, 20.0, 30.0, 40.0)] == [True] * 4 + [False] * 2
    assert told == ["disk_pause", "disk_room"]


def test_the_room_of_a_real_disk(tmp_path: Path) -> None:
    there = space.room(tmp_path)
    assert 0 < there.free <= there.total
    assert 0 < there.share <= 1


def prepared(root: Path) -> None:
    home = Home.create(root, Config())
    db = connect(home)
    for step in (1, 2):
        version(home, db, step)
    BlobStore(home.blobs).add(_file(home, 100))
    old_blobs(home)
    backups.snapshot(home, db, "test")
    backups.snapshot(home, db, "test")
    db.close()


def collect(home: Home) -> None:
    db = connect(home)
    gc.carry_out(home, db, then())
    db.close()


def collected(home: Home, told: str | None) -> str:
    """Each thing is there whole, or it is not there; all is done when there is nothing left to do."""
    for shelf in (home.versions, home.trash, home.checkpoints):
        for folder in shelf.iterdir():
            if folder.is_dir() and (folder / "manifest.json").exists() and verify(folder):
                return "named"
    snapshots = backups.list_snapshots(home)
    for snapshot in snapshots:
        assert gc._incomplete(home, snapshot) is None
    names = {one.name for one in versions.list_versions(home)}
    names |= {read_manifest(path).get("name") for path in home.trash.iterdir() if (path / "manifest.json").exists()}
    assert names >= {"v0001", "v0002"}
    db = connect(home)
    try:
        left = [line for line in gc.plan(home, db, then()).lines if not line.keep]
    finally:
        db.close()
    return "old" if left or len(list(home.backups.iterdir())) > 1 else "new"


def test_what_goes_away_while_it_is_counted_is_left_out(tmp_path: Path) -> None:
    """A living trainer prunes checkpoints and empties the trash meanwhile."""
    folder = tmp_path / "checkpoint"
    (folder / "inner").mkdir(parents=True)
    for path in (folder / "a", folder / "b", folder / "inner" / "c"):
        path.write_bytes(b"content")
    looking = space.files_of(folder)
    first, _ = next(looking)
    (folder / ("b" if first.name == "a" else "a")).unlink()
    (folder / "inner" / "c").unlink()
    (folder / "inner").rmdir()
    assert list(looking) == []
    assert space.freed([folder, tmp_path / "gone"]) == first.lstat().st_blocks * space.BLOCK_BYTES


def test_collecting_under_every_fault(tmp_path: Path) -> None:
    counts = every_fault(prepared, collect, collected, tmp_path)
    assert counts["kill"]["old"]


def _file(home: Home, size: int) -> Path:
    path = home.root / "lonely"
    path.write_bytes(os.urandom(size))
    return path


def _names(home: Home) -> set[str]:
    skipped = {home.status, home.root / "lonely"}
    found = (path for path in home.root.rglob("*") if not skipped & {path, *path.parents})
    return {str(path) for path in found if not path.name.startswith("stoke.db")}


def _used(home: Home) -> int:
    inodes = {(p.lstat().st_ino, p.lstat().st_blocks * 512) for p in home.root.rglob("*") if "stoke.db" not in p.name}
    return sum(size for _, size in inodes)
