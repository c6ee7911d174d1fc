"""A home whose page is served by a real process, and a browser to look at it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from starlette.testclient import TestClient

from browsing import chromium
from journal_step import FIRST, journal_step
from stokehold.core.config import Config
from stokehold.core.records import Evaluation, Step, SuiteResult, SuiteState
from stokehold.store.db import jobs
from stokehold.store.db.database import Database
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.web.app import create_app
from waiting import PATIENCE_S, until


@dataclass(frozen=True)
class Page:
    """A served home: its address, its token, its process."""

    home: Home
    url: str
    process: subprocess.Popen[bytes]

    @property
    def token(self) -> str:
        return self.home.token()

    def client(self, **settings: Any) -> httpx.Client:
        """A client with the token; no proxy of the environment comes between."""
        headers = {"authorization": f"Bearer {self.token}", **settings.pop("headers", {})}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=PATIENCE_S, **settings)


@contextmanager
def serve(home: Home, *arguments: str, **settings: Any) -> Iterator[Page]:
    """The page of a home in a process of its own, on a free port."""
    written = home.status / "web.json"
    written.unlink(missing_ok=True)
    command = [sys.executable, "-m", "stokehold.web.main", "--home", str(home.root), *(arguments or ("--port", "0"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, **settings)
    try:
        until(lambda: written.exists() or process.poll() is not None)
        assert process.poll() is None
        yield Page(home, orjson.loads(written.read_bytes())["url"], process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", Config())


@pytest.fixture
def client(home: Home) -> Iterator[JobsClient]:
    with jobs.client(home) as opened:
        yield opened


@pytest.fixture
def db(client: JobsClient) -> Database:
    return client.db


@pytest.fixture
def page(home: Home) -> Iterator[Page]:
    with serve(home) as served:
        yield served


@pytest.fixture
def api(home: Home, db: Database) -> Iterator[TestClient]:
    """The guarded application, asked in this process by somebody who has the token."""
    app = create_app(home, db, "127.0.0.1")
    with TestClient(app, "http://127.0.0.1", headers={"authorization": f"Bearer {home.token()}"}) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One page for all tests of a module that only ask."""
    with serve(Home.create(tmp_path_factory.mktemp("web") / "home", Config())) as served:
        yield served


@pytest.fixture
def serving() -> Callable[..., Any]:
    return serve


@pytest.fixture
def make_step() -> Callable[..., Step]:
    return journal_step


@pytest.fixture
def judge(home: Home, db: Database) -> Callable[..., Evaluation]:
    """Saves an evaluation of a step, or of the base model for step None."""

    def save(
        step: int | None, exact: float, interval: tuple[float, float] | None = None, readings: Any = None
    ) -> Evaluation:
        ends = interval or (max(0.0, exact - 0.1), min(1.0, exact + 0.1))
        result = SuiteResult("syllo", SuiteState.OK, n=50, exact=exact, exact_ci=ends, nll_per_token=1.0)
        ref, created = (f"step:{step}", f"2026-01-01T00:{step % 60:02d}:00.000Z") if step else ("base", FIRST.created)
        record = Evaluation(f"e{step}", ref, f"w{step}", "f", {"syllo": result}, 1.0, "", created, step=step)

        def write(folder: Path) -> None:
            (folder / "completions.jsonl").touch()
            if readings is not None:
                (folder / "readings.json").write_bytes(orjson.dumps({"readings": readings}))

        return evaluations.save(home, db, record, write)

    return save


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The Chromium of this machine, or a skip that says there is none.

    For a module only: while it is open, Playwright's event loop counts as running in this thread.
    """
    with chromium() as opened:
        yield opened
