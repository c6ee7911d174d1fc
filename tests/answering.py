"""A server that answers what it is told to, right or wrong, over real HTTP."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SILENCE_S = 5.0


@dataclass(frozen=True)
class Answer:
    """A body, sent `times` over with `each_s` between its bytes; `length` None sends it without saying how long it is.

    `silent`: after the headers nothing comes.
    """

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = -1
    times: int = 1
    each_s: float = 0.0
    silent: bool = False


@dataclass
class Server:
    """What it answers by path, and what it was asked."""

    answers: Mapping[str, Answer]
    url: str = ""
    asked: list[str] = field(default_factory=list)


@contextmanager
def answering(answers: Mapping[str, Answer]) -> Iterator[Server]:
    """The server on a free port of the loopback."""
    told = Server(answers)

    class Handler(_Handler):
        server_told = told

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_told: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        return

    def do_GET(self) -> None:
        self.server_told.asked.append(self.path)
        answer = self.server_told.answers.get(self.path, Answer(b"", 404))
        self.close_connection = True
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.length is not None:
            self.send_header("Content-Length", str(len(answer.body) if answer.length < 0 else answer.length))
        self.end_headers()
        with suppress(OSError):
            if answer.silent:
                time.sleep(SILENCE_S)
            for _ in range(answer.times):
                self._send(answer)

    def _send(self, answer: Answer) -> None:
        if not answer.each_s:
            self.wfile.write(answer.body)
            return
        for byte in answer.body:
            self.wfile.write(bytes([byte]))
            time.sleep(answer.each_s)
