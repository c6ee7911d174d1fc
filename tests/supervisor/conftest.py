"""A fresh home, its jobs, and steps to put into its journal."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from journal_step import journal_step
from stokehold.core.config import Config
from stokehold.core.records import Step
from stokehold.store.db import jobs
from stokehold.store.db.database import Database
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home


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
