"""A hub on this machine: the few endpoints that the hub's own client asks, over real HTTP, for folders of ours."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 50_000
"""From here on files are stored by their SHA-256, as large files are on a hub."""


@dataclass
class Hub:
    """What is served, what goes wrong, and what was asked.

    `token`: who does not send it meets a licence to accept. `breaks`: by file name, after how many bytes the first
    transfer of it ends. `spoilt`: files whose last byte comes out wrong.
    """

    models: dict[str, Path]
    token: str | None = None
    breaks: dict[str, int] = field(default_factory=dict)
    spoilt: frozenset[str] = frozenset()
    branches: tuple[str, ...] = ("main",)
    url: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def transfers(self, name: str = "") -> list[tuple[str, str | None]]:
        """(file, Range) of every GET of a file's content, in order."""
        found = [(path.rpartition("/")[2], wanted) for verb, path, wanted in self.asked if verb == "GET"]
        names = {path.rpartition("/")[2] for _, path, _ in self.asked if "/resolve/" in path}
        return [one for one in found if one[0] in names and name in one[0]]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serves `hub` on a free port of the loopback."""

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: Any) -> None:
        return

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.served.asked.append((self.command, path, self.headers.get("Range")))
        model = next((name for name in self.served.models if path.removeprefix("api/models/").startswith(name)), None)
        if model is None:
            return self._refuse(404, "RepoNotFound")
        _, _, rest = path.partition(model + "/")
        kind, _, rest = rest.partition("/")
        revision, _, name = rest.partition("/")
        if revision not in (*self.served.branches, COMMIT):
            return self._refuse(404, "RevisionNotFound")
        folder = self.served.models[model]
        if kind == "revision":
            return self._json(_listing(model, folder))
        if self.served.token and self.headers.get("Authorization") != f"Bearer {self.served.token}":
            return self._refuse(401, "GatedRepo")
        if kind == "tree":
            return self._json([_entry(file) for file in _files(folder)])
        return self._file(folder / name) if (folder / name).is_file() else self._refuse(404, "EntryNotFound")

    def _file(self, path: Path) -> None:
        content = path.read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if path.name in self.served.spoilt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        end = start + self.served.breaks.pop(path.name, len(content))
        self.wfile.write(content[start:end])
        if end < len(content):
            self.close_connection = True  # in the middle of what was promised

    def _json(self, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _etag(content: bytes) -> str:
    return (hashlib.sha256 if len(content) >= LARGE_BYTES else hashlib.sha1)(content).hexdigest()


def _listing(model: str, folder: Path) -> dict[str, Any]:
    siblings = []
    for path in _files(folder):
        content = path.read_bytes()
        entry: dict[str, Any] = {"rfilename": path.name, "size": len(content), "blobId": "0" * 40}
        if len(content) >= LARGE_BYTES:
            entry["lfs"] = {"sha256": _etag(content), "size": len(content), "pointerSize": 130}
        siblings.append(entry)
    return {"id": model, "modelId": model, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []}


def _entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    entry: dict[str, Any] = {"type": "file", "path": path.name, "size": len(content), "oid": _etag(content)}
    if len(content) >= LARGE_BYTES:
        entry["lfs"] = {"oid": _etag(content), "size": len(content), "pointerSize": 130}
    return entry
