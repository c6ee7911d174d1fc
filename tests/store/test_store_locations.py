"""A second place: only what is missing travels, all of it is read back, and nothing foreign is trusted."""

import errno
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from matrix import every_fault
from test_store_backups import fill, tensors

from stokehold.core.config import Config
from stokehold.core.errors import DiskFullError, IntegrityError, NotFoundError, StokeholdError, UsageError
from stokehold.store.backup import offsite
from stokehold.store.backup.backups import CONTENTS, list_snapshots, snapshot, verify_snapshot
from stokehold.store.backup.locations import MARKER, Location, blob_name, open_location, snapshot_name
from stokehold.store.backup.restoring import restore
from stokehold.store.db.database import Database, connect
from stokehold.store.disk import Disk, Fault, FaultyDisk
from stokehold.store.home import Home
from stokehold.store.models import checkpoints
from waiting import free_ports

BUCKET = "backups"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real HTTP server that speaks S3."""
    import boto3

    (port,) = free_ports(1)
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        server.kill()
        server.wait()
        log.close()


@pytest.fixture(params=["folder", "memory", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(tmp_path / "away")
    if request.param == "memory":
        return f"memory://{uuid4().hex}/prefix"
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    return f"s3://{BUCKET}/{uuid4().hex}"


class Counting:
    """A location that writes down what was put there."""

    def __init__(self, inner: Location, stop_after: int | None = None) -> None:
        self._inner, self.put_names, self._stop_after = inner, list[str](), stop_after
        self.place, self.settles = inner.place, inner.settles

    def put(self, name: str, source: Path, expected: str) -> None:
        if self._stop_after is not None and len(self.put_names) == self._stop_after:
            raise KeyboardInterrupt
        self._inner.put(name, source, expected)
        self.put_names.append(name)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_everywhere_a_copy_is_whole_incremental_and_makes_the_home_again(
    home: Home, db: Database, where: str, tmp_path: Path
) -> None:
    fill(home, db)
    taken, copied = offsite.run(home, db, "first", where)
    assert copied is not None
    assert copied.skipped_objects == 0
    again = offsite.copy(home, taken, open_location(where))
    assert (again.objects, again.skipped_objects) == (0, copied.objects)
    checkpoints.publish_checkpoint(home, 2, lambda folder: (folder / "model.safetensors").write_bytes(tensors(9)), {})
    counting = Counting(open_location(where))
    second = snapshot(home, db, "second")
    offsite.copy(home, second, counting)  # type: ignore[arg-type]
    assert len(counting.put_names) <= 4, "a file, its manifest, the list; the database where it changed"
    assert [s.id for s in offsite.listing(open_location(where))[0]] == [taken.id, second.id]
    assert offsite.verify(open_location(where), second) == []
    made = restore(open_location(where), tmp_path / "new", taken.id)
    assert made.files == taken.files
    assert checkpoints.latest(Home.open(tmp_path / "new")).checkpoint is not None


def test_everywhere_a_copy_that_was_cut_short_goes_on_where_it_was(home: Home, db: Database, where: str) -> None:
    fill(home, db)
    taken = snapshot(home, db, "x")
    first = Counting(open_location(where), stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        offsite.copy(home, taken, first)  # type: ignore[arg-type]
    assert offsite.listing(open_location(where))[0] == [], "no manifest before all blobs are there"
    second = Counting(open_location(where))
    done = offsite.copy(home, taken, second)  # type: ignore[arg-type]
    assert not set(first.put_names) & set(second.put_names)
    assert done.skipped_objects == 3
    assert offsite.verify(open_location(where), taken) == []


def test_everywhere_damage_is_found_and_refused(home: Home, db: Database, where: str, tmp_path: Path) -> None:
    fill(home, db)
    taken, _ = offsite.run(home, db, "x", where)
    location = open_location(where)
    listed = {entry["path"]: entry["blake3"] for entry in offsite.manifest_of(location, taken.id)["files"]}
    of_the_list = blob_name(listed.pop(CONTENTS))
    victim = blob_name(next(iter(listed.values())))
    location.write(victim, b"other content")
    assert [bad.path for bad in offsite.verify(open_location(where), taken)] == [victim]
    location.write(of_the_list, b"other content")
    found = [bad.path for bad in offsite.verify(open_location(where), taken)]
    assert sorted(found) == sorted([CONTENTS, victim, of_the_list])
    with pytest.raises(IntegrityError):
        restore(open_location(where), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["snapshots/20260101T000000Z-aaaaaa.pkl", "blobs/ab/cd", "notes.txt"])
def test_a_foreign_file_is_refused(home: Home, db: Database, where: str, name: str) -> None:
    offsite.run(home, db, "x", where)
    open_location(where).write(name, pickle.dumps({"a": 1}))
    with pytest.raises(IntegrityError, match="no part of a backup"):
        offsite.run(home, db, "x", where)
    with pytest.raises(IntegrityError, match="no part of a backup"):
        offsite.listing(open_location(where))


def test_a_pickled_manifest_is_no_manifest(home: Home, db: Database, where: str) -> None:
    taken, _ = offsite.run(home, db, "x", where)
    location = open_location(where)
    location.write(snapshot_name(taken.id), pickle.dumps({"a": 1}))
    assert offsite.listing(open_location(where)) == ([], [snapshot_name(taken.id)])
    with pytest.raises(NotFoundError):
        offsite.find(open_location(where), taken.id)


def test_a_folder_of_somebody_else_is_refused_and_stays_as_it_is(home: Home, db: Database, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("x")
    with pytest.raises(IntegrityError, match=r"photo\.jpg"):
        offsite.run(home, db, "x", str(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["photo.jpg"]


def test_a_link_in_a_location_is_refused(home: Home, db: Database, tmp_path: Path) -> None:
    taken, _ = offsite.run(home, db, "x", str(tmp_path / "away"))
    (tmp_path / "away" / "blobs" / "link").symlink_to("/etc/passwd")
    with pytest.raises(IntegrityError, match="symbolic link"):
        offsite.copy(home, taken, open_location(str(tmp_path / "away")))


def test_an_unmounted_disk_is_not_taken_for_a_new_place(home: Home, db: Database, tmp_path: Path) -> None:
    place = tmp_path / "mount" / "away"
    offsite.run(home, db, "x", str(place))
    place.rename(tmp_path / "unplugged")
    for _ in range(2):
        with pytest.raises(StokeholdError, match="mount"):
            offsite.run(home, db, "x", str(place))
    result, standing = offsite.last_result(home), offsite.standing(home, str(place))
    assert result is not None
    assert standing is not None
    assert (result.ok, standing.ok, standing.taken) == (False, False, result.succeeded[str(place)])
    assert offsite.standing(home, "elsewhere").taken is None  # type: ignore[union-attr]
    _, copied = offsite.run(home, db, "x", str(place), anew=True)
    assert copied is not None
    assert copied.skipped_objects == 0


def test_a_damaged_blob_of_ours_is_named_and_no_manifest_written(home: Home, db: Database, tmp_path: Path) -> None:
    fill(home, db)
    taken = snapshot(home, db, "x")
    path = checkpoints.checkpoint_folder(home, 1) / "model.safetensors"
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(b"!")
    location = open_location(str(tmp_path / "away"))
    with pytest.raises(IntegrityError, match="content changed"):
        offsite.copy(home, taken, location)
    assert snapshot_name(taken.id) not in location.names()
    assert len(location.names()) > 5, "the rest is there for the next time"


def test_an_object_nobody_read_back_is_not_trusted(home: Home, db: Database) -> None:
    where = f"memory://{uuid4().hex}"
    fill(home, db)
    taken, _ = offsite.run(home, db, "x", where)
    location = open_location(where)
    victim = max(name for name in location.names() if name.startswith("blobs/"))
    size = location.names()[victim]
    location.write(victim, b"?" * size)
    (home.status / offsite.COPYING).write_text(Path(victim).name)
    counting = Counting(location)
    offsite.copy(home, taken, counting)  # type: ignore[arg-type]
    assert counting.put_names == [victim]
    assert offsite.verify(location, taken) == []


class Cramped(Disk):
    """Has room for half of a file."""

    def copy(self, source: Path, target: Path) -> str:
        content = source.read_bytes()
        target.write_bytes(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))


def test_a_copy_that_found_no_room_leaves_no_half_file(home: Home, db: Database, tmp_path: Path) -> None:
    fill(home, db)
    taken, away = snapshot(home, db, "x"), tmp_path / "away"
    with pytest.raises(DiskFullError):
        offsite.copy(home, taken, open_location(str(away), Cramped()))
    assert sorted(path.name for path in away.iterdir()) == ["blobs", MARKER]
    counting = FaultyDisk()
    open_location(str(tmp_path / "counted"), counting).write(MARKER, b"whole")
    (last,) = (number for number, change in enumerate(counting.changes) if change.startswith("rename"))
    failing = open_location(str(tmp_path / "failing"), FaultyDisk(Fault("io", last)))
    with pytest.raises(StokeholdError):
        failing.write(MARKER, b"whole")
    assert list((tmp_path / "failing").iterdir()) == []


def test_what_a_killed_copy_left_half_written_goes_after_a_day(home: Home, db: Database, tmp_path: Path) -> None:
    away = tmp_path / "away"
    offsite.run(home, db, "one", str(away))
    for name, age_s in (("old", 2 * offsite.HALF_S), ("new", 0.0)):
        path = away / f".staging-{name}"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    before = open_location(str(away)).names()
    offsite.run(home, db, "two", str(away))
    assert [path.name for path in away.glob(".staging-*")] == [".staging-new"], "another home may be writing it"
    assert before.items() <= open_location(str(away)).names().items()


def test_names_are_hashes_and_a_home_is_no_place(home: Home, db: Database) -> None:
    with pytest.raises(IntegrityError, match="not a hash"):
        blob_name("../../etc/passwd")
    with pytest.raises(UsageError, match="no place"):
        offsite.run(home, db, "x", str(home.root))
    with pytest.raises(StokeholdError, match="cannot be reached"):
        open_location("nosuchprotocol://x")


def prepared(root: Path) -> None:
    home = Home.create(root, Config())
    db = connect(home)
    fill(home, db)
    snapshot(home, db, "matrix")
    db.close()


def copy_out(home: Home) -> None:
    offsite.copy(home, list_snapshots(home)[0], open_location(str(home.root / "away"), home.disk))


def copied_out(home: Home, _told: str | None) -> str:
    location = open_location(str(home.root / "away"))
    if not (home.root / "away" / MARKER).is_file():
        return "old"
    there, damaged = offsite.listing(location)
    assert damaged == []
    if not there:
        return "old"
    assert offsite.verify(location, there[0]) == []
    return "new"


def test_every_fault_of_a_copy_leaves_it_whole_or_without_its_manifest(tmp_path: Path) -> None:
    counts = every_fault(prepared, copy_out, copied_out, tmp_path)
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]


def fresh_home(root: Path) -> None:
    home = Home.create(root, Config())
    db = connect(home)
    fill(home, db)
    db.close()


def back_up(home: Home) -> None:
    """A snapshot, and its copy in a second place."""
    if (home.root / "away" / MARKER).is_file() and offsite.listing(open_location(str(home.root / "away")))[0]:
        return
    db = connect(home)
    offsite.run(home, db, "matrix", str(home.root / "away"))
    db.close()


def backed_up(home: Home, told: str | None) -> str:
    """Every snapshot that shows is whole, here and there."""
    snapshots = list_snapshots(home)
    if any(verify_snapshot(home, found) for found in snapshots):
        return "named"
    return copied_out(home, told)


def test_a_backup_killed_anywhere_is_made_the_next_time(tmp_path: Path) -> None:
    counts = every_fault(fresh_home, back_up, backed_up, tmp_path, ("kill",))
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]
