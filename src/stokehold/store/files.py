"""Publishing folders: after a kill at any instant a folder is whole or it is not there.

Write protocol: stage beside the target, fsync every file, `manifest.json` last, rename, fsync the parent. A folder
without `manifest.json` does not exist; nothing here writes into a published one. A staging folder is held by a lock
that dies with its process, so `sweep` can tell what was left behind from what is being written.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

import orjson
from blake3 import blake3

from stokehold.core.errors import DiskFullError, IntegrityError, StokeholdError, is_full
from stokehold.store.disk import DISK, Disk
from stokehold.store.failpoints import reach

FORMAT = 1
MANIFEST = "manifest.json"
SEAL = "seal"
"""Key of a manifest: BLAKE3 of everything else in it, so that a bit that turned in the manifest itself is seen."""

STAGING = ".staging-"
INCOMING = ".incoming-"
"""A whole folder on its way to a name that another one has, where the file system cannot swap two names."""
HASH_HEX_CHARS = 64
HASH_CHUNK_BYTES = 256 * 1024
"""Stays in the cache of a core; larger pieces were measured to take longer."""
HASH = re.compile(rf"[0-9a-f]{{{HASH_HEX_CHARS}}}")
"""BLAKE3 in hex: what is none must never become a part of a path."""
FRESH_S = 60.0
"""A staging file this young is left to its writer."""

TRY_AGAIN = "nothing was changed; make room and try again"
REPEAT = "make room, or look at the disk; then repeat it"
UNCONFIRMED = "it was changed, but the disk did not confirm it; look at the disk, then repeat it"


@dataclass(frozen=True, slots=True)
class Bad:
    """A file that is not what its manifest says: its path inside the folder, and why."""

    path: str
    reason: str


def utc_now() -> str:
    """The present in ISO 8601, UTC, milliseconds; text order is time order."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def hash_file(path: Path) -> str:
    """BLAKE3 of the content, 64 hex characters; in bounded memory, on one thread: a trainer has use for the others."""
    hasher, buffer = blake3(), memoryview(bytearray(HASH_CHUNK_BYTES))
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            hasher.update(buffer[:size])
    return hasher.hexdigest()


def write_atomic(path: Path, data: bytes, mode: int = 0o644, disk: Disk = DISK) -> None:
    """Replaces a file: readers and a crash see the old content or the new."""
    stage = path.parent / f"{STAGING}{path.name}-{uuid4().hex}"
    with refusals(path):
        try:
            disk.write(stage, data, mode)
            disk.rename(stage, path)
        except BaseException:
            stage.unlink(missing_ok=True)
            raise
    with refusals(path, UNCONFIRMED):
        disk.sync(path.parent)


@contextmanager
def refusals(where: Path | str, fix: str = TRY_AGAIN) -> Iterator[None]:
    """What the disk refuses inside the block becomes an error of ours: DiskFullError or StokeholdError with `fix`."""
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise DiskFullError("no space left on the disk", str(where), fix) from error
        if not isinstance(error, OSError):
            raise
        raise StokeholdError(f"could not write: {error.strerror or error}", str(where), fix) from error


def publish(
    folder: Path,
    write: Callable[[Path], None],
    manifest: Mapping[str, Any],
    known: Mapping[str, str] | None = None,
    replaced: Path | None = None,
    disk: Disk = DISK,
) -> dict[str, Any]:
    """Makes `folder` from what `write(stage)` puts into the empty staging folder; returns its manifest.

    `manifest` needs a `kind`; format, files and `created` are added. `known` maps paths inside the folder to hashes
    that are not worth reading again. Where the folder exists already: with `replaced` the two change places in one
    step and the old one is there; without it that is an error. Raises `DiskFullError` when there is no room and
    `StokeholdError` when the disk refuses otherwise; they say whether nothing was changed or the last `fsync` failed.
    """
    if folder.exists() and replaced is None:
        raise StokeholdError("already published", str(folder), "published folders never change; use another name")
    with refusals(folder), staging(folder, disk) as stage:
        write(stage)
        reach("publish.written")
        entries = _entries(stage, known or {}, disk)
        whole = {"format": FORMAT, "created": utc_now(), **manifest, "files": entries}
        whole[SEAL] = _seal(whole)
        disk.write(stage / MANIFEST, orjson.dumps(whole, option=orjson.OPT_INDENT_2))
        disk.sync(stage)
        reach("publish.manifest")
        if replaced is not None and folder.exists():
            _replace(stage, folder, replaced, disk)
        else:
            disk.rename(stage, folder)
    with refusals(folder, UNCONFIRMED):
        reach("publish.renamed")
        disk.sync(folder.parent)
        if replaced is not None:
            disk.sync(replaced.parent)
    return whole


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder; `IntegrityError` where it is missing, damaged, newer or escapes."""
    path = folder / MANIFEST
    try:
        if path.is_symlink():
            raise IntegrityError("manifest is a symbolic link", str(path), "restore the folder from a backup")
        if path.exists() and not path.is_file():
            raise IntegrityError("manifest is no file", str(path), "restore the folder from a backup")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IntegrityError("no manifest", str(path), "the folder was never finished") from error
    except OSError as error:
        raise IntegrityError(f"unreadable: {error.strerror}", str(path), "restore the folder from a backup") from error
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """What was read as a manifest at `where`; `IntegrityError` as `read_manifest` says."""
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise IntegrityError("manifest is not JSON", where, "restore the folder from a backup") from error
    return check_manifest(found, where)


def check_manifest(found: object, where: str) -> dict[str, Any]:
    """As `parse_manifest`, of what JSON gave."""
    if not isinstance(found, dict) or not isinstance(found.get("format"), int):
        raise IntegrityError("manifest has no format", where, "restore the folder from a backup")
    if found["format"] > FORMAT:
        raise IntegrityError(f"manifest of the newer format {found['format']}", where, "upgrade stokehold")
    _check_entries(found, where)
    if found.get(SEAL, seal := _seal(found)) != seal:
        raise IntegrityError("manifest was changed since it was written", where, "restore the folder from a backup")
    return found


def verify(folder: Path, digest: Callable[[Path], str] = hash_file) -> list[Bad]:
    """Everything in a published folder that is not what its manifest says; files it does not list are no fault.

    `digest` gives a file's BLAKE3; it may know some.
    """
    try:
        manifest = read_manifest(folder)
    except IntegrityError as error:
        return [Bad(MANIFEST, error.what)]
    checks = ((entry["path"], _fault(folder, entry, digest)) for entry in manifest["files"])
    return [Bad(path, reason) for path, reason in checks if reason is not None]


def sweep(folder: Path, disk: Disk = DISK, name: str = "") -> list[Path]:
    """Removes what killed processes left in staging directly under `folder`; returns what it removed.

    `name` begins what was staged: in a folder that is not ours, others may stage under names like these.

    A folder that was to replace another and found the other's name free takes it: that replacing is ended.
    """
    removed = []
    for stage in sorted((*folder.glob(f"{STAGING}{name}*"), *folder.glob(f"{INCOMING}{name}*"))):
        if stage.is_file() and time.time() - stage.stat().st_mtime < FRESH_S:
            continue
        try:
            handle = os.open(stage, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # finished or removed by its owner since the listing
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _clear(stage, disk):
                removed.append(stage)
        except BlockingIOError:
            continue  # its writer lives
        finally:
            os.close(handle)
    return removed


def _clear(stage: Path, disk: Disk) -> bool:
    """Whether it was removed, and not put in its place."""
    target = stage.with_name(stage.name.removeprefix(INCOMING))
    if stage.name.startswith(INCOMING) and not target.exists():
        disk.rename(stage, target)
        disk.sync(target.parent)
        return False
    shutil.rmtree(stage) if stage.is_dir() else stage.unlink(missing_ok=True)
    return True


@contextmanager
def staging(folder: Path, disk: Disk = DISK) -> Iterator[Path]:
    """A locked, empty folder beside the target; what is still there at the end of the block is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stage = folder.parent / f"{STAGING}{folder.name}-{uuid4().hex}"
        disk.make_folder(stage)
        handle = os.open(stage, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if stage.exists():  # a sweep between mkdir and flock may have taken it
            break
        os.close(handle)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(handle)


def _entries(stage: Path, known: Mapping[str, str], disk: Disk) -> list[dict[str, Any]]:
    entries = []
    for path in sorted(stage.rglob("*")):
        name = path.relative_to(stage).as_posix()
        if path.is_symlink():
            raise IntegrityError("a symbolic link cannot be published", str(path), "write the file itself")
        if path.is_file():  # hashed before the sync: what the disk makes of it afterwards is seen
            entries.append({"path": name, "bytes": path.stat().st_size, "blake3": known.get(name) or hash_file(path)})
        disk.sync(path)
    return entries


def _replace(stage: Path, folder: Path, replaced: Path, disk: Disk) -> None:
    """The new folder waits where the old one will be, so that no kill finds either of them without a name to keep."""
    replaced.parent.mkdir(parents=True, exist_ok=True)
    disk.rename(stage, replaced)
    try:
        if not disk.exchange(replaced, folder):
            _replace_in_turn(folder, replaced, disk)
    except OSError:
        disk.remove_tree(replaced)
        raise


def _replace_in_turn(folder: Path, replaced: Path, disk: Disk) -> None:
    """Between the last two renames the folder is away: `sweep` ends what a kill broke off there."""
    incoming = folder.parent / f"{INCOMING}{folder.name}"
    if incoming.exists():
        disk.remove_tree(incoming)
    disk.rename(replaced, incoming)
    done = []
    try:
        for source, target in ((folder, replaced), (incoming, folder)):
            disk.rename(source, target)
            done.append((target, source))
    except OSError:
        for source, target in reversed(done):
            disk.rename(source, target)
        disk.rename(incoming, replaced)
        raise


def _seal(manifest: Mapping[str, Any]) -> str:
    """Over what JSON makes of it, whose order is nobody's business."""
    rest = orjson.loads(orjson.dumps({key: value for key, value in manifest.items() if key != SEAL}))
    return blake3(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _check_entries(manifest: Mapping[str, Any], where: str) -> None:
    entries = manifest.get("files")
    if not isinstance(entries, list):
        raise IntegrityError("manifest lists no files", where, "restore the folder from a backup")
    for entry in entries:
        name = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _stays_inside(name):
            raise IntegrityError(f"manifest names a path outside its folder: {name!r}", where, "do not trust it")
        if not isinstance(entry.get("bytes"), int) or not HASH.fullmatch(str(entry.get("blake3"))):
            raise IntegrityError(f"manifest has no size or hash for {name}", where, "restore from a backup")


def _stays_inside(name: str) -> bool:
    pure = PurePosixPath(name)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and "\0" not in name


def _fault(folder: Path, entry: Mapping[str, Any], digest: Callable[[Path], str]) -> str | None:
    target = folder
    for part in PurePosixPath(entry["path"]).parts:
        target /= part
        if target.is_symlink():
            return "symbolic link"
    if not target.is_file():
        return "missing"
    size = target.stat().st_size
    if size != entry["bytes"]:
        return f"{size} bytes instead of {entry['bytes']}"
    try:
        return None if digest(target) == entry["blake3"] else "content changed"
    except OSError as error:
        return f"unreadable: {error.strerror}"
