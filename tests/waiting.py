"""Waiting in tests for what another thread or process does, and ports for it. The bound is on hanging, not on speed."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from stokehold.store.home import Home

PATIENCE_S = 240.0
LOOK_EVERY_S = 0.01
LOG_CHARS = 3000
FIRST_PORT, PORTS_EACH = 20_000, 500
"""Below those that the system hands out, and another range for each process that runs tests."""


def until(true: Callable[[], Any], home: Home | None = None) -> Any:
    """Waits for a truth and returns it; where it does not come, fails with the ends of the home's logs."""
    end = time.monotonic() + PATIENCE_S
    while not (found := true()):
        if time.monotonic() > end:
            logs = sorted(home.logs.rglob("*.log")) if home else []
            said = "\n".join(f"--- {path}\n{path.read_text()[-LOG_CHARS:]}" for path in logs)
            pytest.fail(f"did not come true\n{said}")
        time.sleep(LOOK_EVERY_S)
    return found


def free_ports(count: int) -> list[int]:
    """Ports of the loopback for a server that has to know its own: nobody who asks for any is given them."""
    first = FIRST_PORT + PORTS_EACH * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return [port for port in range(first, first + PORTS_EACH) if _is_free(port)][:count]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
