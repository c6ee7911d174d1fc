"""A fresh home, its jobs, and steps to put into its journal."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from journal_step import journal_step
from stokehold.core.config import Config
from stokehold.core.records import Step
from stokehold.store import jobs
from stokehold.store.database import Database
from stokehold.store.home import Home
from stokehold.store.jobs import JobsClient


@pytest.fixture
def make_step() -> Callable[..., Step]:
    return journal_step


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
