"""A home's page in a process of its own, and a link to it that counts what passes, breaks, and spoils bytes."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import orjson
import uvicorn

from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.web.app import create_app
from waiting import PATIENCE_S, until

PIECE_BYTES = 16 * 1024


@dataclass
class Link:
    """A TCP proxy to `port`. Byte numbers count what the server sends, over all connections, from 0.

    `breaks`: each connection that reaches this many bytes of its own is cut there, once for each entry. `flips`: bytes
    that come out with a bit over. `holds`: no byte beyond this number passes until `released` is set.
    """

    port: int
    breaks: list[int] = field(default_factory=list)
    flips: set[int] = field(default_factory=set)
    holds: int | None = None
    released: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    passed: int = 0
    connections: int = 0
    url: str = ""

    def carry(self, client: socket.socket) -> None:
        """One connection, both ways, until either end or a break."""
        self.connections += 1
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as server:
            threading.Thread(target=_copy, args=(client, server), daemon=True).start()
            own, limit = 0, self.breaks[0] if self.breaks else None
            while piece := server.recv(PIECE_BYTES):
                cut = limit is not None and own + len(piece) > limit
                piece = piece[: limit - own] if cut and limit is not None else piece
                client.sendall(self._passed(piece))
                own += len(piece)
                if cut:
                    self.breaks.pop(0)
                    client.shutdown(socket.SHUT_RDWR)
                    server.shutdown(socket.SHUT_RDWR)
                    return

    def _passed(self, piece: bytes) -> bytes:
        first, self.passed = self.passed, self.passed + len(piece)
        if self.holds is not None and self.passed > self.holds:
            self.held.set()
            self.released.wait(PATIENCE_S)
        spoilt = bytearray(piece)
        for place in [place for place in self.flips if first <= place < self.passed]:
            spoilt[place - first] ^= 1
            self.flips.discard(place)
        return bytes(spoilt)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(PIECE_BYTES):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def linked(link: Link, port: int = 0) -> Iterator[Link]:
    """The link on this port of the loopback; 0 takes a free one."""
    listening = socket.create_server(("127.0.0.1", port))
    link.url = f"http://127.0.0.1:{listening.getsockname()[1]}"

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                threading.Thread(target=link.carry, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield link
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


@contextmanager
def page(home: Home, port: int = 0) -> Iterator[str]:
    """The address of a home's page, served by the process that `stoke up` starts for it."""
    written = home.status / "web.json"
    written.unlink(missing_ok=True)
    command = [sys.executable, "-m", "stokehold.web.main", "--home", str(home.root), "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        until(lambda: written.exists() or process.poll() is not None)
        assert process.poll() is None, "the page left"
        yield orjson.loads(written.read_bytes())["url"]
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(home: Home) -> Iterator[str]:
    """The address of a home's page, served by a thread of this process over a real socket."""
    db = connect(home)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(home, db, "127.0.0.1"), log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        db.close()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])
