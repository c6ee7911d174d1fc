"""`python -m stokehold.web.main --home H`: serves the page until its supervisor's pipe closes or a signal comes.

Its real address is written to `status/web.json`; a configured port that is taken gives way to a free one.
"""

import argparse
import errno
import os
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import orjson
import uvicorn

from stokehold.core.errors import BusyError, StokeholdError
from stokehold.store.db import events
from stokehold.store.db.database import Database, connect
from stokehold.store.files import utc_now, write_atomic
from stokehold.store.home import Home
from stokehold.store.parent import listen
from stokehold.web.app import create_app
from stokehold.web.assets import PLOTLY, find

URL_FILE = "web.json"
DRAIN_S = 2
"""Longest wait for open requests at the end; streams are endless and are cut."""

BACKLOG = 128


def serve(home: Home, port: int | None, parent_fd: int | None) -> None:
    """Serves until told to leave. `port` None takes the configured one; `parent_fd` ends us when it reads its end."""
    web = home.config().web
    db = connect(home)
    listening = _listen(db, web.host, web.port, port)
    settings = uvicorn.Config(
        create_app(home, db, web.host),
        log_level="warning",
        access_log=False,  # addresses may carry the token
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
    )
    server = uvicorn.Server(settings)
    if parent_fd is not None:
        listen(parent_fd, home.logs / "web.log", lambda: _end(server))
    threading.Thread(target=find, args=(PLOTLY,), daemon=True).start()  # 5 MB, before the first visitor asks
    url = f"http://{_shown(web.host)}:{listening.getsockname()[1]}"
    write_atomic(home.status / URL_FILE, orjson.dumps({"url": url, "pid": os.getpid(), "started": utc_now()}))
    print(f"{utc_now()} the page is at {url}", flush=True)
    try:
        server.run(sockets=[listening])
    finally:
        db.close()


def _listen(db: Database, host: str, configured: int, asked: int | None) -> socket.socket:
    """A listening socket; `BusyError` when a port that was asked for is taken."""
    try:
        return _bound(host, configured if asked is None else asked)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise StokeholdError(f"cannot listen: {error.strerror}", host, "correct web.host") from error
        if asked is not None:
            raise BusyError(
                "the port is taken", f"{host}:{asked}", "choose another one, or 0 for a free one"
            ) from error
    found = _bound(host, 0)
    text = f"port {configured} is taken by another program: the page is on {found.getsockname()[1]}"
    events.record(db, "web", text)
    return found


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _end(server: uvicorn.Server) -> None:
    server.should_exit = True


def _shown(host: str) -> str:
    """The host as it stands in an address that works on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{name}]" if ":" in name else name


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when told to leave, else the error's exit code."""
    parser = argparse.ArgumentParser(prog="stokehold.web.main")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, help="instead of the configured one; 0 takes a free one")
    parser.add_argument("--parent-fd", type=int, help="leave when this pipe reads its end")
    given = parser.parse_args(arguments)
    try:
        serve(Home.open(given.home), given.port, given.parent_fd)
    except StokeholdError as error:
        print(f"stoke: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
