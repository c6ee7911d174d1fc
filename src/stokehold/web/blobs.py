"""What other machines may take from a home: its versions by name, their files by hash, in ranges.

Only a hash that the manifest of a version names is answered, that of a base under a version's adapters, or one of what
an evaluation request is about; no path ever comes from a client. Files are read in threads, a piece at a time: neither
memory nor the page feels a large one.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from blake3 import blake3
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.store.blobs import BlobStore
from stokehold.store.db.database import Database
from stokehold.store.files import MANIFEST, read_manifest
from stokehold.store.home import Home
from stokehold.store.housekeeping import compaction
from stokehold.store.judged.suites import kept_path
from stokehold.store.models import versions
from stokehold.store.models.adapters import base_of
from stokehold.store.transfer import evaluation_requests, offers

PIECE_BYTES = 1024 * 1024
LONGEST_REF = 64
JSON = "application/json"
BINARY = "application/octet-stream"

Files = Mapping[str, tuple[str, int]]
"""Path inside its folder and size in bytes of each file, by hash."""


class Shelf:
    """The files of one home that may be taken. Its methods may be called from many threads."""

    def __init__(self, home: Home, db: Database) -> None:
        self.home, self.db = home, db
        self._lock, self._offering = threading.Lock(), threading.Lock()
        self._known: dict[Path, tuple[tuple[int, int], Files]] = {}

    def offer(self, ref: str) -> bytes:
        """The offer of a version by name or alias, as JSON; NotFoundError where there is none."""
        if len(ref) > LONGEST_REF:
            raise NotFoundError("no version goes by this name", ref[:LONGEST_REF], "names are like v0007")
        with self._offering:  # a packed one is made whole by one request, and the others wait for it
            return offers.build(self.home, self.db, ref)

    def file(self, blake3_hex: str) -> tuple[Path, int]:
        """Where the content of this hash is, and its size in bytes.

        NotFoundError where no version names it; IntegrityError where it is missing or of another size.
        """
        if offers.HASH.fullmatch(blake3_hex) is None:
            raise NotFoundError("this is no hash of a file", blake3_hex[:LONGEST_REF], "ask for what a manifest names")
        found = [(folder, files[blake3_hex]) for folder, files in self._shelves() if blake3_hex in files]
        if not found:
            raise NotFoundError("no version has this file", blake3_hex, "it may have been deleted meanwhile")
        # The store's copy comes first: a library may have rewritten a small one in a version's folder.
        places = [BlobStore(self.home.blobs).path(blake3_hex), *(folder / path for folder, (path, _) in found)]
        size = found[0][1][1]
        for folder, _ in found:
            if folder.parent == self.home.versions:
                compaction.touch(folder)  # what is being taken is not packed meanwhile
        for path in places:
            if path.is_file() and not path.is_symlink() and path.stat().st_size == size:
                return path, size
        raise IntegrityError("this file is damaged here", f"{found[0][0].name}/{found[0][1][0]}", "restore it")

    def _shelves(self) -> Iterator[tuple[Path, Files]]:
        """Every version, and every base under one, with its files; what is damaged is told by its offer, not here."""
        seen = set()
        with self._lock:
            for folder in self.home.versions.iterdir():
                if versions.NAME.fullmatch(folder.name) is None:
                    continue
                with suppress(IntegrityError):
                    for shelf in (folder, base_of(folder)):
                        if shelf is not None and shelf not in seen:
                            yield shelf, self._files(shelf)
                            seen.add(shelf)
            yield from self._asked(seen)
            self._known = {shelf: known for shelf, known in self._known.items() if shelf in seen}

    def _asked(self, seen: set[Path]) -> Iterator[tuple[Path, Files]]:
        """What a node needs that answers the open request: weights without what only training needs, and suites."""
        with suppress(IntegrityError, NotFoundError):
            if (request := evaluation_requests.waiting(self.home)) is None:
                return
            folder = evaluation_requests.weights_of(self.home, request)
            for shelf in (folder, base_of(folder)):
                if shelf is not None and shelf not in seen:
                    files = self._files(shelf).items()
                    yield shelf, {key: one for key, one in files if not versions.OPTIMISER.fullmatch(one[0])}
                    seen.add(shelf)
            for suite in request.suites:
                path = kept_path(self.home, suite.blake3)
                yield path.parent, {suite.blake3: (path.name, suite.bytes)}

    def _files(self, folder: Path) -> Files:
        """Read once: a published folder does not change."""
        path = folder / MANIFEST
        status = path.stat() if path.is_file() else None
        mark = (status.st_ino, status.st_mtime_ns) if status else (0, 0)
        if folder not in self._known or self._known[folder][0] != mark:
            entries = read_manifest(folder)["files"]
            self._known[folder] = mark, {entry["blake3"]: (entry["path"], entry["bytes"]) for entry in entries}
        return self._known[folder][1]


class Blob(FileResponse):
    """A file in ranges; its mark is its hash, so a transfer that goes on meets the same content or begins anew."""

    chunk_size = PIECE_BYTES


def add_to(app: FastAPI, home: Home, db: Database) -> None:
    """The routes by which another machine takes a version."""
    shelf = Shelf(home, db)

    @app.get("/api/versions/{name}/manifest")
    def manifest(request: Request, name: str) -> Response:
        body = shelf.offer(name)
        headers = {"etag": f'"{blake3(body).hexdigest()}"'}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(None, 304, headers)
        return Response(body, 200, headers, JSON)

    @app.get("/api/blobs/{name}")
    def blob(name: str) -> Response:
        path, _ = shelf.file(name)
        return Blob(path, headers={"etag": f'"{name}"'}, media_type=BINARY, stat_result=path.stat())
