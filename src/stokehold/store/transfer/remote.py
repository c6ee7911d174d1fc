"""Another home over HTTP: documents and blobs, every answer bounded in bytes and in patience.

A link that breaks is taken up again where it broke, with growing pauses, as long as something comes. Redirects are not
followed, nothing compressed is accepted, and the token goes to the address that was given and nowhere else.
"""

import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import httpx
import orjson
from sqlalchemy.exc import SQLAlchemyError

from stokehold.core.errors import BusyError, IntegrityError, NotFoundError, StokeholdError, UsageError
from stokehold.store.disk import DISK, Disk

BATCH_BYTES = 1024 * 1024
"""What has come is put on the disk in pieces of this size: what a kill can lose."""

DOCUMENT_BYTES = 16 * 1024 * 1024
LONGEST_WAIT_S = 60.0
"""Longest pause between two tries while the server does not answer, or what it has cannot be taken."""

WORDS_BYTES = 4096
WORDS_CHARS = 300
TRANSIENT = frozenset({429, 502, 503, 504})
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

T = TypeVar("T")
Tell = Callable[[str], None]
"""Told a sentence about what goes wrong and is tried again."""


class LinkError(StokeholdError):
    """The link broke or the server said nothing in time; the same may be asked again."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited: seconds, bytes and tries.

    `window_bytes` must come in every `window_s`. After `tries` failures in a row without `enough_bytes` between them it
    is given up; the pause before the next try doubles from `pause_s` to `longest_pause_s`.
    """

    connect_s: float = 10.0
    silence_s: float = 30.0
    window_s: float = 60.0
    window_bytes: int = 64 * 1024
    tries: int = 6
    enough_bytes: int = 1024 * 1024
    pause_s: float = 0.5
    longest_pause_s: float = 30.0


PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Document:
    """An answer in full, and the mark that changes with it."""

    body: bytes
    etag: str


def quiet(_text: str) -> None:
    """Tells nobody."""


class Remote:
    """A server at `url` (http://host:port), asked with its token. Use it in a `with` block."""

    def __init__(self, url: str, token: str, tell: Tell = quiet, patience: Patience = PATIENCE) -> None:
        self.url, self.tell, self.patience = checked_url(url), tell, patience
        if not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError("this is no token", self.url, "take the one in HOME/status/token on the server")
        headers = {"authorization": f"Bearer {token}", "accept-encoding": "identity", "user-agent": "stokehold"}
        timeout = httpx.Timeout(patience.silence_s, connect=patience.connect_s)
        # Of the environment only the certificates are taken (SSL_CERT_FILE): the token must not meet a proxy.
        trusted = ssl.create_default_context()
        self._client = httpx.Client(
            base_url=self.url, headers=headers, timeout=timeout, verify=trusted, trust_env=False, follow_redirects=False
        )

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def document(self, path: str, etag: str = "") -> Document | None:
        """The answer at `path`, None while it is what `etag` marks. One try: raises LinkError."""
        with self._asked(path, {"if-none-match": etag} if etag else {}) as response:
            if response.status_code == httpx.codes.NOT_MODIFIED:
                return None
            body = b"".join(self._pieces(response, DOCUMENT_BYTES))
            return Document(body, response.headers.get("etag", ""))

    def hand_over(self, path: str, file: Path) -> None:
        """Sends a file to `path`. One try: raises LinkError, and what the server refuses it with."""
        size = size_of(file)
        with file.open("rb") as stream:
            pieces = iter(lambda: stream.read(BATCH_BYTES), b"")
            with self._asked(path, {"content-length": str(size)}, "PUT", pieces):
                pass

    def blob(self, blake3_hex: str, size: int, partial: Path, came: Callable[[int], None], disk: Disk = DISK) -> None:
        """Brings `partial` to the `size` bytes of a blob, beginning with what is there; `came` is told its size.

        What it holds is not checked. Raises NotFoundError where the server has no such blob, IntegrityError where it
        says or sends another size, LinkError when the link broke too often: what has come stays.
        """
        self.retrying(lambda: self._receive(blake3_hex, size, partial, came, disk), lambda: size_of(partial))

    def retrying(self, attempt: Callable[[], T], progress: Callable[[], int] = int) -> T:
        """The attempt's result; a LinkError is told and tried again after a pause, counted from the last progress."""
        failures, before = 0, progress()
        while True:
            try:
                return attempt()
            except LinkError as error:
                now = progress()
                failures = 1 if now - before >= self.patience.enough_bytes else failures + 1
                before = now
                if failures >= self.patience.tries:
                    fix = "see whether the server is up and the network is; what has come is kept for the next time"
                    raise LinkError(f"{error.what}, {failures} times in a row", self.url, fix) from error
                pause_s = min(self.patience.pause_s * 2 ** (failures - 1), self.patience.longest_pause_s)
                self.tell(f"{error.what}; again in {pause_s:g} s")
                time.sleep(pause_s)

    def _receive(self, blake3_hex: str, size: int, partial: Path, came: Callable[[int], None], disk: Disk) -> None:
        if size_of(partial) > size:
            disk.remove(partial)
        have = size_of(partial)
        came(have)
        if have == size and partial.exists():
            return
        if size == 0:
            disk.append(partial, b"")
            return
        headers = {"range": f"bytes={have}-", "if-range": f'"{blake3_hex}"'} if have else {}
        with self._asked(f"/api/blobs/{blake3_hex}", headers) as response:
            start = self._start(response, have, size)
            if start != have:
                disk.remove(partial)
            self._keep(response, partial, start, size, came, disk)
        if size_of(partial) != size:
            raise LinkError("the answer ended early", self.url)

    def _start(self, response: httpx.Response, have: int, size: int) -> int:
        """The place in the blob where this answer begins; IntegrityError where it is of another size."""
        if response.status_code == httpx.codes.PARTIAL_CONTENT:
            found = RANGE.fullmatch(response.headers.get("content-range", ""))
            if found is None or tuple(map(int, found.groups())) != (have, size - 1, size):
                raise IntegrityError("the server sends another part than was asked for", self.url, "upgrade it")
            return have
        said = response.headers.get("content-length", str(size))
        if said != str(size):
            raise IntegrityError(f"the server sends {said} bytes of a file of {size}", self.url, "verify it there")
        return 0

    def _keep(
        self, response: httpx.Response, partial: Path, start: int, size: int, came: Callable[[int], None], disk: Disk
    ) -> None:
        batch, there = bytearray(), start

        def put() -> None:
            nonlocal there
            if batch:
                disk.append(partial, batch)
                there += len(batch)
                batch.clear()
                came(there)

        try:
            for piece in self._pieces(response, size - start):
                batch += piece
                if len(batch) >= BATCH_BYTES:
                    put()
        except (LinkError, httpx.TransportError):
            put()
            raise
        put()

    def _pieces(self, response: httpx.Response, most: int) -> Iterator[bytes]:
        """The body as it comes. Raises IntegrityError beyond `most` bytes, LinkError when too little comes in time."""
        total = window = 0
        began_s = time.monotonic()
        for piece in response.iter_raw():
            total += len(piece)
            window += len(piece)
            if total > most:
                raise IntegrityError(f"the server sends more than {most} bytes", self.url, "upgrade it")
            yield piece
            if time.monotonic() - began_s >= self.patience.window_s:
                if window < self.patience.window_bytes:
                    raise LinkError(f"only {window} bytes came in {self.patience.window_s:g} s", self.url)
                window, began_s = 0, time.monotonic()

    @contextmanager
    def _asked(
        self, path: str, headers: dict[str, str], method: str = "GET", content: Iterator[bytes] | None = None
    ) -> Iterator[httpx.Response]:
        """The response to a request, its body not yet read; what is no answer to it is raised."""
        try:
            with self._client.stream(method, path, headers=headers, content=content) as response:
                if response.status_code not in (200, 204, 206, 304):
                    raise self._refusal(response)
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise IntegrityError("the server sends something compressed", self.url, "no proxy may change it")
                yield response
        except httpx.TransportError as error:
            if isinstance(error, httpx.ConnectError) and (fault := _tls_fault(error)) is not None:
                fix = "check the address; for a certificate of your own set SSL_CERT_FILE to its authority's file"
                raise StokeholdError(f"no TLS with the server: {fault}", self.url, fix) from error
            raise LinkError(_words_of(error), self.url, "see whether the server is up and the network is") from error

    def _refusal(self, response: httpx.Response) -> StokeholdError:
        status = response.status_code
        said = self._words(response)
        if status in TRANSIENT:
            return LinkError(f"the server answers {status}: {said}", self.url, "try again later")
        if status == httpx.codes.UNAUTHORIZED:
            return UsageError("the server refuses the token", self.url, "pass the one in HOME/status/token there")
        if status == httpx.codes.NOT_FOUND:
            return NotFoundError(said, self.url, "`stoke versions list` on the server shows what there is")
        if status == httpx.codes.CONFLICT:
            return BusyError(said, self.url, "try again later")
        if status == httpx.codes.UNPROCESSABLE_ENTITY:
            return IntegrityError(f"the server refuses what was sent: {said}", self.url, "it is not sent again")
        if response.is_redirect:
            target = _printable(response.headers.get("location", "elsewhere"))
            return StokeholdError(f"the server sends us to {target}", self.url, "give the address of the server itself")
        return StokeholdError(f"the server answers {status}: {said}", self.url, "its log tells more (`stoke logs`)")

    def _words(self, response: httpx.Response) -> str:
        """What the server says of an error, or the name of its status."""
        body = b""
        for piece in self._pieces(response, DOCUMENT_BYTES):
            body += piece
            if len(body) > WORDS_BYTES:
                break
        try:
            said = orjson.loads(body)["error"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            said = response.reason_phrase
        return _printable(str(said)) or f"status {response.status_code}"


class Repeated:
    """Does something at intervals. `look` is called again and again; it waits where waiting is due.

    What fails is told once, and tried again after pauses that grow.
    """

    def __init__(self, work: Callable[[], None], tell: Tell, every_s: float) -> None:
        self._work, self._tell, self._every_s = work, tell, every_s
        self._fault = ""
        self._wait_s = self._next_s = 0.0

    def look(self) -> None:
        """Does it when it is time to."""
        if time.monotonic() < self._next_s:
            return
        try:
            self._work()
            self._wait_s, self._fault = self._every_s, ""
        except (StokeholdError, OSError, SQLAlchemyError) as error:
            self._wait_s = min(max(2 * self._wait_s, self._every_s), LONGEST_WAIT_S)
            if str(error) != self._fault:
                self._tell(f"{error} · tried again")
            self._fault = str(error)
        self._next_s = time.monotonic() + self._wait_s


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def checked_url(url: str) -> str:
    """The address of a server as `http://host:port`; UsageError for anything else."""
    fix = "give it as http://host:8080, and the token by --token"
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError("this is no address", url, fix) from error
    if found.scheme not in ("http", "https") or not found.host or found.userinfo:
        raise UsageError("this is no address of a server", url.partition("?")[0], fix)
    if found.path not in ("", "/") or found.query or found.fragment:
        raise UsageError("the address has more than host and port", url.partition("?")[0], fix)
    return str(found).rstrip("/")


def _tls_fault(error: BaseException) -> str | None:
    """What TLS complains of, where it is the cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return getattr(cause, "verify_message", "") or cause.reason or "it does not speak TLS"
        cause = cause.__cause__ or cause.__context__
    return None


def _words_of(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "the server says nothing"
    if isinstance(error, httpx.ConnectError):
        return f"the server cannot be reached ({_printable(str(error)) or type(error).__name__})"
    return f"the link broke ({_printable(str(error)) or type(error).__name__})"


def _printable(text: str) -> str:
    """Words from elsewhere as a terminal may show them."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:WORDS_CHARS].strip()
