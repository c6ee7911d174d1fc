"""Publishing folders: after a kill at any instant a folder is whole or it is not there.

Write protocol: stage beside the target, fsync every file, `manifest.json` last, rename, fsync the parent. A folder
without `manifest.json` does not exist; nothing here writes into a published one. A staging folder is held by a lock
that dies with its process, so `sweep` can tell what was left behind from what is being written.
"""

import errno
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

from stokehold.core.errors import DiskFullError, IntegrityError, StokeholdError
from stokehold.store.disk import CHUNK_BYTES, DISK, Disk
from stokehold.store.failpoints import reach

FORMAT = 1
MANIFEST = "manifest.json"
STAGING = ".staging-"
HASH_HEX_CHARS = 64
FULL_WORDS = re.compile(rf"os error ({errno.ENOSPC}|{errno.EDQUOT})\b")
FRESH_S = 60.0
"""A staging file this young is left to its writer."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A file that is not what its manifest says: its path inside the folder, and why."""

    path: str
    reason: str


def utc_now() -> str:
    """The present in ISO 8601, UTC, milliseconds; text order is time order."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def hash_file(path: Path) -> str:
    """BLAKE3 of the content, 64 hex characters, in bounded memory."""
    hasher = blake3()
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def write_atomic(path: Path, data: bytes, mode: int = 0o644, disk: Disk = DISK) -> None:
    """Replaces a file: readers and a crash see the old content or the new."""
    stage = path.parent / f"{STAGING}{path.name}-{uuid4().hex}"
    try:
        disk.write(stage, data, mode)
        disk.rename(stage, path)
    except BaseException as error:
        stage.unlink(missing_ok=True)
        if is_full(error):
            raise disk_full(path) from error
        raise
    disk.sync(path.parent)


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
    that are not worth reading again. Where the folder exists already: with `replaced` the old one moves there in the
    same step, without it that is an error. Raises `DiskFullError` when there is no room and `StokeholdError` when the
    disk refuses otherwise; then nothing has changed.
    """
    if folder.exists() and replaced is None:
        raise StokeholdError("already published", str(folder), "published folders never change; use another name")
    try:
        with staging(folder, disk) as stage:
            write(stage)
            reach("publish.written")
            entries = _entries(stage, known or {}, disk)
            whole = {"format": FORMAT, "created": utc_now(), **manifest, "files": entries}
            disk.write(stage / MANIFEST, orjson.dumps(whole, option=orjson.OPT_INDENT_2))
            disk.sync(stage)
            reach("publish.manifest")
            _move_in(stage, folder, replaced, disk)
            reach("publish.renamed")
            disk.sync(folder.parent)
    except Exception as error:
        if is_full(error):
            raise disk_full(folder) from error
        if not isinstance(error, OSError):
            raise
        raise StokeholdError(
            f"could not write: {error.strerror or error}", str(folder), "nothing was changed; make room and try again"
        ) from error
    return whole


def is_full(error: BaseException) -> bool:
    """Whether it says that the file system, or the quota on it, has no room left; safetensors says it in words."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, DiskFullError) or FULL_WORDS.search(str(error)) is not None


def disk_full(where: Path | str) -> DiskFullError:
    return DiskFullError("no space left on the disk", str(where), "make room; nothing was changed")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder; `IntegrityError` where it is missing, damaged, newer or escapes."""
    path = folder / MANIFEST
    try:
        if path.is_symlink():
            raise IntegrityError("manifest is a symbolic link", str(path), "restore the folder from a backup")
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IntegrityError("no manifest", str(path), "the folder was never finished") from error
    except orjson.JSONDecodeError as error:
        raise IntegrityError("manifest is not JSON", str(path), "restore the folder from a backup") from error
    if not isinstance(found, dict) or not isinstance(found.get("format"), int):
        raise IntegrityError("manifest has no format", str(path), "restore the folder from a backup")
    if found["format"] > FORMAT:
        raise IntegrityError(f"manifest of the newer format {found['format']}", str(path), "upgrade stokehold")
    _check_entries(found, path)
    return found


def verify(folder: Path) -> list[Bad]:
    """Everything in a published folder that is not what its manifest says; files it does not list are no fault."""
    try:
        manifest = read_manifest(folder)
    except IntegrityError as error:
        return [Bad(MANIFEST, error.what)]
    checks = ((entry["path"], _fault(folder, entry)) for entry in manifest["files"])
    return [Bad(path, reason) for path, reason in checks if reason is not None]


def sweep(folder: Path) -> list[Path]:
    """Removes what killed processes left in staging directly under `folder`; returns what it removed."""
    removed = []
    for stage in sorted(folder.glob(f"{STAGING}*")):
        if stage.is_file() and time.time() - stage.stat().st_mtime < FRESH_S:
            continue
        try:
            handle = os.open(stage, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # finished or removed by its owner since the listing
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(stage) if stage.is_dir() else stage.unlink(missing_ok=True)
            removed.append(stage)
        except BlockingIOError:
            continue  # its writer lives
        finally:
            os.close(handle)
    return removed


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
        disk.sync(path)
        if path.is_file():
            entries.append({"path": name, "bytes": path.stat().st_size, "blake3": known.get(name) or hash_file(path)})
    return entries


def _move_in(stage: Path, folder: Path, replaced: Path | None, disk: Disk) -> None:
    if not folder.exists() or replaced is None:
        disk.rename(stage, folder)
        return
    replaced.parent.mkdir(parents=True, exist_ok=True)
    if disk.exchange(stage, folder):
        disk.rename(stage, replaced)
    else:
        disk.rename(folder, replaced)
        disk.rename(stage, folder)
    disk.sync(replaced.parent)


def _check_entries(manifest: Mapping[str, Any], path: Path) -> None:
    entries = manifest.get("files")
    if not isinstance(entries, list):
        raise IntegrityError("manifest lists no files", str(path), "restore the folder from a backup")
    for entry in entries:
        name = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _stays_inside(name):
            raise IntegrityError(f"manifest names a path outside its folder: {name!r}", str(path), "do not trust it")
        if not isinstance(entry.get("bytes"), int) or len(str(entry.get("blake3"))) != HASH_HEX_CHARS:
            raise IntegrityError(f"manifest has no size or hash for {name}", str(path), "restore from a backup")


def _stays_inside(name: str) -> bool:
    pure = PurePosixPath(name)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and "\0" not in name


def _fault(folder: Path, entry: Mapping[str, Any]) -> str | None:
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
        return None if hash_file(target) == entry["blake3"] else "content changed"
    except OSError as error:
        return f"unreadable: {error.strerror}"
