"""Publishing and verifying: whole or not there, and every kind of damage is seen."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from stokehold.core.errors import IntegrityError, StokeholdError
from stokehold.store.disk import CHUNK_BYTES, DISK, Fault, FaultyDisk
from stokehold.store.files import (
    MANIFEST,
    STAGING,
    hash_file,
    publish,
    read_manifest,
    staging,
    sweep,
    verify,
    write_atomic,
)


def two_files(stage: Path) -> None:
    (stage / "sub").mkdir()
    (stage / "sub" / "weights").write_bytes(b"w" * 3000)
    (stage / "config.json").write_text("{}")


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(STAGING)]


def test_a_published_folder_verifies_and_lists_what_it_has(tmp_path: Path) -> None:
    manifest = publish(tmp_path / "it", two_files, {"kind": "test", "step": 7})
    assert read_manifest(tmp_path / "it") == manifest
    assert (manifest["format"], manifest["kind"], manifest["step"]) == (1, "test", 7)
    assert {entry["path"]: entry["bytes"] for entry in manifest["files"]} == {"config.json": 2, "sub/weights": 3000}
    assert verify(tmp_path / "it") == []
    assert leftovers(tmp_path) == []


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(stage: Path) -> None:
        two_files(stage)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        publish(tmp_path / "it", broken, {"kind": "test"})
    assert list(tmp_path.iterdir()) == []


def test_a_published_folder_is_never_written_to(tmp_path: Path) -> None:
    publish(tmp_path / "it", two_files, {"kind": "test"})
    before = hash_file(tmp_path / "it" / MANIFEST)
    with pytest.raises(StokeholdError, match="already published"):
        publish(tmp_path / "it", lambda stage: None, {"kind": "test"})
    assert hash_file(tmp_path / "it" / MANIFEST) == before


def test_replacing_swaps_the_folder_and_keeps_the_old_one(tmp_path: Path) -> None:
    publish(tmp_path / "it", two_files, {"kind": "old"})
    publish(tmp_path / "it", two_files, {"kind": "new"}, replaced=tmp_path / "away" / "it")
    assert read_manifest(tmp_path / "it")["kind"] == "new"
    assert read_manifest(tmp_path / "away" / "it")["kind"] == "old"
    assert verify(tmp_path / "it") == verify(tmp_path / "away" / "it") == []
    assert leftovers(tmp_path) == []


def test_while_it_is_replaced_the_folder_is_always_there(tmp_path: Path) -> None:
    """A kill between two renames would lose it; a reader that looks all the time sees whether there is a between."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    if not DISK.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot swap two names")
    publish(tmp_path / "it", two_files, {"kind": "test"})
    misses, stop = 0, threading.Event()

    def look() -> None:
        nonlocal misses
        while not stop.is_set():
            misses += not os.path.lexists(tmp_path / "it" / MANIFEST)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(150):
        publish(tmp_path / "it", two_files, {"kind": "test"}, replaced=tmp_path / "away" / str(number))
    stop.set()
    reader.join()
    assert misses == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1500] ^= 4
    path.write_bytes(content)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_verify_sees_every_bit_that_turned(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("bits") / "it"
    publish(folder, two_files, {"kind": "test", "step": 7, "note": "a word"})
    path = data.draw(st.sampled_from([folder / MANIFEST, folder / "config.json", folder / "sub" / "weights"]))
    content = bytearray(path.read_bytes())
    manifest = orjson.loads((folder / MANIFEST).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    bad = verify(folder)
    if not bad:  # the key of the seal itself, or a space between: then no word of it is another
        assert path.name == MANIFEST
        assert all(read_manifest(folder)[key] == manifest[key] for key in manifest if key != "seal")
    else:
        assert [found.path for found in bad] == [path.relative_to(folder).as_posix()]


def link_away(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "content changed"),
        (lambda path: os.truncate(path, 2999), "2999 bytes instead of 3000"),
        (lambda path: path.write_bytes(b"w" * 3001), "3001 bytes instead of 3000"),
        (Path.unlink, "missing"),
        (link_away, "symbolic link"),
    ],
)
def test_verify_sees_damage(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    publish(tmp_path / "it", two_files, {"kind": "test"})
    damage(tmp_path / "it" / "sub" / "weights")
    assert [(bad.path, bad.reason) for bad in verify(tmp_path / "it")] == [("sub/weights", reason)]


def test_verify_sees_a_linked_folder_inside(tmp_path: Path) -> None:
    publish(tmp_path / "it", two_files, {"kind": "test"})
    link_away(tmp_path / "it" / "sub")
    assert [bad.reason for bad in verify(tmp_path / "it")] == ["symbolic link"]


def test_files_that_the_manifest_does_not_list_are_no_fault(tmp_path: Path) -> None:
    publish(tmp_path / "it", two_files, {"kind": "test"})
    (tmp_path / "it" / "notes.txt").write_text("mine")
    assert verify(tmp_path / "it") == []


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "sub/../../x", "", ".", "a\0b", 3, None])
def test_a_manifest_that_leaves_its_folder_is_refused(tmp_path: Path, path: object) -> None:
    manifest = publish(tmp_path / "it", two_files, {"kind": "test"})
    manifest["files"][0]["path"] = path
    (tmp_path / "it" / MANIFEST).write_bytes(orjson.dumps(manifest))
    with pytest.raises(IntegrityError, match="outside its folder"):
        read_manifest(tmp_path / "it")
    assert [bad.path for bad in verify(tmp_path / "it")] == [MANIFEST]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"format": 2, "files": []}', "newer format 2"),
        (b'{"format": 1', "not JSON"),
        (b"", "not JSON"),
        (b"[]", "no format"),
        (b'{"format": "1", "files": []}', "no format"),
        (b'{"format": 1}', "no files"),
        (b'{"format": 1, "files": [{"path": "a"}]}', "no size or hash"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(IntegrityError, match=reason):
        read_manifest(tmp_path)


def test_a_folder_without_manifest_or_with_a_linked_one_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="no manifest"):
        read_manifest(tmp_path)
    publish(tmp_path / "it", two_files, {"kind": "test"})
    link_away(tmp_path / "it" / MANIFEST)
    with pytest.raises(IntegrityError, match="symbolic link"):
        read_manifest(tmp_path / "it")


def test_a_symbolic_link_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="symbolic link"):
        publish(tmp_path / "it", lambda stage: (stage / "a").symlink_to("/etc/hostname"), {"kind": "test"})
    assert list(tmp_path.iterdir()) == []


def test_sweep_takes_what_is_left_behind_and_not_what_is_being_written(tmp_path: Path) -> None:
    (tmp_path / f"{STAGING}dead").mkdir()
    (tmp_path / f"{STAGING}dead" / "half").write_text("x")
    (tmp_path / f"{STAGING}old-file").write_text("x")
    os.utime(tmp_path / f"{STAGING}old-file", (0, 0))
    (tmp_path / f"{STAGING}fresh-file").write_text("x")
    with staging(tmp_path / "living") as stage:
        assert sorted(path.name for path in sweep(tmp_path)) == [f"{STAGING}dead", f"{STAGING}old-file"]
        assert stage.is_dir()
    assert leftovers(tmp_path) == [f"{STAGING}fresh-file"]


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"old")
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1]))
def test_hash_and_copy_agree_with_the_content(tmp_path_factory: pytest.TempPathFactory, tail: bytes, size: int) -> None:
    folder = tmp_path_factory.mktemp("copy")
    content = b"\0" * size + tail
    (folder / "a").write_bytes(content)
    assert DISK.copy(folder / "a", folder / "b") == hash_file(folder / "b") == blake3(content).hexdigest()
    assert (folder / "b").read_bytes() == content


def test_everything_is_on_disk_before_the_name_and_the_manifest_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps only what was synced: watches the calls on their way to the system."""
    seen: list[tuple[str, str]] = []
    real_sync, real_rename = os.fsync, os.rename

    def fsync(handle: int) -> None:
        seen.append(("sync", Path(f"/proc/self/fd/{handle}").readlink().name))
        real_sync(handle)

    def rename(source: Path, target: Path) -> None:
        seen.append(("rename", Path(target).name))
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    publish(tmp_path / "it", two_files, {"kind": "test"})
    stage = next(name for _, name in seen if name.startswith(STAGING))
    assert set(seen[:3]) == {("sync", "weights"), ("sync", "config.json"), ("sync", "sub")}
    assert seen[3:] == [("sync", MANIFEST), ("sync", stage), ("rename", "it"), ("sync", tmp_path.name)]


FULL_DISK = """
import resource, sys
from pathlib import Path
from stokehold.core.errors import StokeholdError
from stokehold.store.files import publish, write_atomic
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    publish(folder / "it", lambda stage: (stage / "big").write_bytes(b"x" * 200_000), {"kind": "test"})
except StokeholdError as error:
    print(error)
try:
    write_atomic(folder / "a", b"x" * 200_000)
except StokeholdError as error:
    print(error)
"""


def test_a_full_disk_changes_nothing_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("could not write: File too large")
    assert "nothing was changed" in first
    assert second.startswith("could not write: File too large")
    assert "nothing was changed" in second
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("digest", ["../" * 21 + "x", "A" * 64, "a" * 63, None])
def test_a_manifest_whose_hash_could_be_a_path_is_refused(tmp_path: Path, digest: object) -> None:
    entry = {"path": "a", "bytes": 1, "blake3": digest}
    (tmp_path / MANIFEST).write_bytes(orjson.dumps({"format": 1, "files": [entry]}))
    with pytest.raises(IntegrityError, match="no size or hash"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(IntegrityError, match="no file"):
        read_manifest(tmp_path)


def test_a_device_that_fails_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(StokeholdError, match=r"Input/output error.*nothing was changed"):
        write_atomic(tmp_path / "a", b"new", disk=FaultyDisk(Fault("io", 1)))
    assert (tmp_path / "a").read_bytes() == b"old"
    with pytest.raises(StokeholdError, match="the disk did not confirm it"):
        write_atomic(tmp_path / "a", b"new", disk=FaultyDisk(Fault("io", 2)))
    assert (tmp_path / "a").read_bytes() == b"new"
