"""A second place for backups: a folder, or what fsspec reaches by a URL (`s3://bucket/prefix`).

It holds `stokehold-backup.json`, which says that it is one, `blobs/<two hex>/<hash>` and `snapshots/<id>.json`, and
nothing else: anything foreign is refused, nothing is unpickled, no name is made of anything but a hash or an id.
Each object is read back and hashed after it was written, whatever the place. Credentials are fsspec's own affair.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import orjson
from blake3 import blake3

from stokehold.core.errors import DiskFullError, IntegrityError, NotFoundError, StokeholdError, UsageError, is_full
from stokehold.store.backup.backups import NAME, contents, list_snapshots
from stokehold.store.blobs import BlobStore
from stokehold.store.disk import CHUNK_BYTES, DISK, Disk
from stokehold.store.files import MANIFEST, STAGING, hash_file, read_manifest
from stokehold.store.home import CONFIG_NAME, Home

MARKER = "stokehold-backup.json"
FORMAT = 1
MARK = orjson.dumps({"kind": "backup", "format": FORMAT})
BLOBS, SNAPSHOTS = "blobs", "snapshots"
OBJECT = re.compile(rf"{BLOBS}/([0-9a-f]{{2}})/\1[0-9a-f]{{62}}|{SNAPSHOTS}/{NAME.pattern}\.json|{re.escape(MARKER)}")
HASH = re.compile(r"[0-9a-f]{64}")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*")
REMOTE_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "fsspec")
"""Their errors are those of the place, though they are no OSError."""


class Location(Protocol):
    """Objects by name. Errors are ours: `NotFoundError`, `StokeholdError` where the place does not answer."""

    place: str

    def names(self) -> dict[str, int]:
        """Bytes of every object there is, by its name; foreign ones among them."""

    settles: bool
    """Whether an object has its name only after it was read back."""

    def sweep(self, before_s: float) -> None:
        """Removes what killed copies left half written before this time; no object is touched."""

    def put(self, name: str, source: Path, expected: str) -> None:
        """Copies a file in, over one of that name; `IntegrityError` where what lies there is not of this BLAKE3."""

    def write(self, name: str, content: bytes) -> None:
        """As `put`, of a few bytes."""

    def read(self, name: str) -> bytes:
        """A small object whole."""

    def get(self, name: str, target: Path, disk: Disk) -> str:
        """Copies an object to a new file; BLAKE3 of the bytes that came."""

    def digest(self, name: str) -> str:
        """BLAKE3 of the object, read whole."""


def open_location(where: str, disk: Disk = DISK) -> Location:
    """The location at a path or a URL; a home's folder serves to read its own snapshots."""
    if not where:
        raise UsageError("no location was named", "", "give a path or a URL, or set store.backup_to")
    if URL.fullmatch(where) and not where.startswith("file://"):
        return UrlLocation(where)
    path = Path(where.removeprefix("file://")).expanduser().absolute()
    return HomeLocation(Home.open(path)) if (path / CONFIG_NAME).is_file() else FolderLocation(path, disk)


def blob_name(digest: str) -> str:
    """The object that holds this content; `IntegrityError` for what is no hash."""
    if not HASH.fullmatch(digest):
        raise IntegrityError("not a hash", digest, "do not trust where it comes from")
    return f"{BLOBS}/{digest[:2]}/{digest}"


def snapshot_name(snapshot: str) -> str:
    """The object that holds this snapshot's manifest."""
    return f"{SNAPSHOTS}/{snapshot}.json"


def check_names(location: Location) -> dict[str, int]:
    """What is there, all of it ours: `IntegrityError` names what is not, or a newer format; empty where nothing is."""
    there = location.names()
    foreign = sorted(name for name in there if not OBJECT.fullmatch(name))
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        what = f"a file that is no part of a backup: {foreign[0]}{more}"
        raise IntegrityError(what, location.place, "take it away, or choose an empty place")
    if there and MARKER not in there:
        raise IntegrityError("objects without the mark of a backup", location.place, "choose an empty place")
    if there and _marked(location) > FORMAT:
        raise IntegrityError("a backup of a newer format", location.place, "upgrade stokehold")
    return there


def mark(location: Location) -> None:
    """Says that this empty place is a backup from now on."""
    location.write(MARKER, MARK)


def _marked(location: Location) -> int:
    try:
        found: Any = orjson.loads(location.read(MARKER))
        return int(found["format"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError("its mark cannot be read", f"{location.place}/{MARKER}", "choose another place") from error


class FolderLocation:
    """A folder; written by the store's protocol, through its disk."""

    settles = True

    def __init__(self, root: Path, disk: Disk = DISK) -> None:
        self.root, self.place, self._disk = root, str(root), disk

    def names(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for folder, _, files in os.walk(self.root):
            for path in (Path(folder) / name for name in files):
                name = path.relative_to(self.root).as_posix()
                if path.name.startswith(STAGING) and path.parent == self.root:
                    continue  # being written, or left behind
                if path.is_symlink():
                    raise IntegrityError(f"a symbolic link: {name}", self.place, "take it away; it may point anywhere")
                found[name] = path.stat().st_size
        return found

    def sweep(self, before_s: float) -> None:
        for stage in self.root.glob(f"{STAGING}*"):
            with suppress(OSError):  # it ended meanwhile, or is not ours to remove: no reason to copy nothing
                if stage.is_file() and stage.stat().st_mtime < before_s:
                    self._disk.remove(stage)

    def put(self, name: str, source: Path, expected: str) -> None:
        self._place(name, lambda stage: self._disk.copy(source, stage), expected)

    def write(self, name: str, content: bytes) -> None:
        self._place(name, lambda stage: self._disk.write(stage, content), blake3(content).hexdigest())

    def read(self, name: str) -> bytes:
        with _refusals(self, name):
            return self._path(name).read_bytes()

    def get(self, name: str, target: Path, disk: Disk) -> str:
        with _refusals(self, name):
            return disk.copy(self._path(name), target)

    def digest(self, name: str) -> str:
        with _refusals(self, name):
            return hash_file(self._path(name))

    def _path(self, name: str) -> Path:
        path = self.root / name
        if path.is_symlink():
            raise IntegrityError(f"a symbolic link: {name}", self.place, "take it away; it may point anywhere")
        return path

    def _place(self, name: str, fill: Callable[[Path], object], expected: str) -> None:
        target = self.root / name
        with _refusals(self, name):
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                for folder in (f for f in target.parents if f.is_relative_to(self.root.parent)):
                    self._disk.sync(folder)
            stage = self.root / f"{STAGING}{target.name}"
            stage.unlink(missing_ok=True)  # what a killed run left of the same object
            try:
                fill(stage)
                if hash_file(stage) != expected:
                    raise _differs(self, name)
                self._disk.rename(stage, target)
            except BaseException:
                stage.unlink(missing_ok=True)  # or a place that is full stays full
                raise
            self._disk.sync(target.parent)


class UrlLocation:
    """Whatever fsspec knows by the URL's protocol."""

    settles = False

    def __init__(self, url: str) -> None:
        import fsspec  # takes a while, and most commands never need it

        self.place = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            fix = "`pip install stokehold[s3]`" if url.startswith("s3") else "install the library that it names"
            raise StokeholdError(f"this kind of place cannot be reached: {error}", url, fix) from error
        self._root = root.rstrip("/")

    def names(self) -> dict[str, int]:
        with _refusals(self, ""):
            self._fs.invalidate_cache()
            if not self._fs.exists(self._root):
                return {}
            found = self._fs.find(self._root, detail=True)
        return {path.removeprefix(self._root).lstrip("/"): int(info["size"] or 0) for path, info in found.items()}

    def sweep(self, before_s: float) -> None:
        """Such a place keeps no half objects of its own; `offsite` remembers the one under way."""

    def put(self, name: str, source: Path, expected: str) -> None:
        self._place(name, lambda path: self._fs.put_file(str(source), path), expected)

    def write(self, name: str, content: bytes) -> None:
        self._place(name, lambda path: self._fs.pipe_file(path, content), blake3(content).hexdigest())

    def read(self, name: str) -> bytes:
        with _refusals(self, name):
            return bytes(self._fs.cat_file(self._path(name)))

    def get(self, name: str, target: Path, disk: Disk) -> str:
        with _refusals(self, name):
            self._fs.get_file(self._path(name), str(target))
            disk.sync(target)
            return hash_file(target)

    def digest(self, name: str) -> str:
        hasher = blake3()
        with _refusals(self, name), self._fs.open(self._path(name), "rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                hasher.update(chunk)
        return hasher.hexdigest()

    def _place(self, name: str, fill: Callable[[str], object], expected: str) -> None:
        path = self._path(name)
        with _refusals(self, name):
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fill(path)
        if self.digest(name) != expected:
            with _refusals(self, name):
                self._fs.rm_file(path)  # or the next run would take it for what its name says
            raise _differs(self, name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


class HomeLocation:
    """A home's own snapshots, to restore from; it is not written to."""

    settles = True

    def __init__(self, home: Home) -> None:
        self._home, self.place = home, str(home.root)
        self._blobs = BlobStore(home.blobs, home.disk)
        self._objects: dict[str, Path] = {}
        for found in list_snapshots(home):
            folder = Path(found.path)
            self._objects[snapshot_name(found.id)] = folder / MANIFEST
            self._objects |= {blob_name(e["blake3"]): folder / e["path"] for e in read_manifest(folder)["files"]}
            self._objects |= {blob_name(digest): self._blobs.path(digest) for digest in contents(folder).blobs()}

    def names(self) -> dict[str, int]:
        there = {name: path.stat().st_size for name, path in self._objects.items() if path.is_file()}
        return {MARKER: len(MARK), **there} if there else {}

    def sweep(self, before_s: float) -> None:
        """Nothing is staged here for a backup."""

    def put(self, name: str, source: Path, expected: str) -> None:
        raise UsageError("a home is no place for a backup", self.place, "choose a folder outside it")

    def write(self, name: str, content: bytes) -> None:
        raise UsageError("a home is no place for a backup", self.place, "choose a folder outside it")

    def read(self, name: str) -> bytes:
        with _refusals(self, name):
            return MARK if name == MARKER else self._path(name).read_bytes()

    def get(self, name: str, target: Path, disk: Disk) -> str:
        with _refusals(self, name):
            return disk.copy(self._path(name), target)

    def digest(self, name: str) -> str:
        with _refusals(self, name):
            return hash_file(self._path(name))

    def _path(self, name: str) -> Path:
        return self._objects.get(name, self._home.backups / name)


@contextmanager
def _refusals(location: Location, name: str) -> Iterator[None]:
    """What the place says becomes an error of ours."""
    where = f"{location.place.rstrip('/')}/{name}".rstrip("/")
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError("it is not there", where, "look at the place, or use another snapshot") from error
    except Exception as error:
        if is_full(error):
            raise DiskFullError(
                "no space left", where, "make room; the next run copies only what is missing"
            ) from error
        if not isinstance(error, OSError) and not type(error).__module__.startswith(REMOTE_LIBRARIES):
            raise
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise StokeholdError(f"the place refused: {said}", where, "see to it; the next run goes on") from error


def _differs(location: Location, name: str) -> IntegrityError:
    return IntegrityError("what was copied does not read back as it should", f"{location.place}/{name}", "copy again")
