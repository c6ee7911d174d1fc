"""The demo's whole path in a network that is closed but for loopback: nothing leaves the machine."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from stokehold.store.datasets import list_datasets
from stokehold.store.db import events, journal
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import versions
from stokehold.supervisor.processes import holder

CLOSED = Path(__file__).parent / "closed_network"


@pytest.fixture
def closed(tmp_path: Path) -> dict[str, str]:
    path = os.pathsep.join(part for part in (str(CLOSED), os.environ.get("PYTHONPATH")) if part)
    # A real run has the cores to itself; beside other tests, spinning threads would only wait for each other.
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **waiting, "PYTHONPATH": path, "CLOSED_NETWORK_LOG": str(tmp_path / "left.log")}


def test_the_network_is_really_closed(closed: dict[str, str]) -> None:
    for attempt in ("connect(('192.0.2.1', 80))", "sendto(b'x', ('192.0.2.1', 80))"):
        kind = "SOCK_STREAM" if "connect" in attempt else "SOCK_DGRAM"
        program = f"import socket; socket.socket(socket.AF_INET, socket.{kind}).{attempt}"
        done = subprocess.run([sys.executable, "-c", program], env=closed, capture_output=True, text=True, check=False)
        assert "the network is closed" in done.stderr
    assert len(Path(closed["CLOSED_NETWORK_LOG"]).read_text().splitlines()) == 2


def test_nothing_leaves_the_machine(tmp_path: Path, closed: dict[str, str]) -> None:
    root = tmp_path / "home"
    command = [sys.executable, "-m", "stokehold.cli.main", "demo", "--minutes", "0.5", "--port", "0", "--json"]
    done = subprocess.run(
        [*command, "--home", str(root)], env=closed, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert not Path(closed["CLOSED_NETWORK_LOG"]).exists(), Path(closed["CLOSED_NETWORK_LOG"]).read_text()
    home = Home.open(root)
    _check_answer(home, orjson.loads(done.stdout.splitlines()[-1]))
    _check_loop(home)


def _check_answer(home: Home, answer: dict[str, Any]) -> None:
    db = connect(home)
    assert answer["home"] == str(home.root)
    assert answer["holdout_items"] == 100
    assert 0.0 <= answer["baseline_exact"] <= answer["holdout_exact"] <= 1.0
    assert answer["steps"] == len(journal.steps(db)) > 0
    assert answer["tokens"] == sum(step.tokens for step in journal.steps(db))
    assert answer["champion"] == versions.alias(db)
    assert answer["versions"] == len(versions.list_versions(home)) > 0
    assert answer["seconds"] > 0


def _check_loop(home: Home) -> None:
    """Puzzles that the model was judged on wrote the next files; nothing failed; nobody stayed behind."""
    db = connect(home)
    files = [dataset.file for dataset in list_datasets(home)]
    assert sum(name.startswith("generated-") for name in files) >= 1
    assert all(dataset.rejected == 0 for dataset in list_datasets(home))
    assert not [event for event in events.events(db, limit=1000) if event.kind in ("job_failed", "worker_exit")]
    assert len(evaluations.list_evaluations(home, db)) >= 3
    assert holder(home, ("supervisor", "trainer")) is None
