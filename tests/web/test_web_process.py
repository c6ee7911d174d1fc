"""The page's process: where it listens, what it writes, and that it leaves with its supervisor."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import orjson

from stokehold.core.config import describe, parse_config
from stokehold.store.db import events
from stokehold.store.db.database import Database
from stokehold.store.home import Home

Serve = Callable[..., Any]


def test_its_real_address_is_written_down_without_the_token(page: Any, home: Home) -> None:
    written = (home.status / "web.json").read_text()
    assert orjson.loads(written)["pid"] == page.process.pid
    assert home.token() not in written
    assert page.url.startswith("http://127.0.0.1:")
    with page.client() as client:
        assert client.get("/health").status_code == 200


def test_a_configured_port_that_is_taken_gives_way(home: Home, db: Database, serving: Serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        home.write_config(describe(parse_config({"web": {"port": port}})))
        with serving(home, "--home", str(home.root)) as page, page.client() as client:
            assert not page.url.endswith(f":{port}")
            assert client.get("/health").status_code == 200
            assert f"port {port} is taken" in events.events(db, kind="web")[0].text
        command = [sys.executable, "-m", "stokehold.web.main", "--home", str(home.root), "--port", str(port)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 1
        assert f"the port is taken · 127.0.0.1:{port}" in refused.stderr


def test_it_leaves_when_its_pipe_ends_even_with_a_stream_open(home: Home, serving: Serve) -> None:
    reading, writing = os.pipe()
    with serving(home, "--port", "0", "--parent-fd", str(reading), pass_fds=(reading,)) as page:
        os.close(reading)
        with page.client() as client, client.stream("GET", "/api/stream") as stream:
            assert next(stream.iter_lines()).startswith("event: status")
            os.close(writing)
            assert page.process.wait(60) == 0


def test_it_leaves_on_a_signal(page: Any) -> None:
    page.process.send_signal(signal.SIGTERM)
    assert page.process.wait(60) in (0, -signal.SIGTERM)
