"""A fresh home, its jobs, and steps to put into its journal."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stokehold.core.config import Config
from stokehold.core.records import Step
from stokehold.store import jobs
from stokehold.store.database import Database
from stokehold.store.home import Home
from stokehold.store.jobs import JobsClient

FIRST = Step(
    step=1,
    branch=0,
    job="train-a",
    dataset="d",
    loss=1.0,
    components={"cross_entropy": 1.0},
    learning_rate=1e-3,
    grad_norm=1.0,
    tokens=100,
    loss_tokens=50,
    examples=4,
    seconds=0.5,
    joules=None,
    fingerprint="f",
    created="2026-01-01T00:00:00.000Z",
)


@pytest.fixture
def make_step() -> Callable[..., Step]:
    def make(number: int, **changes: Any) -> Step:
        return replace(FIRST, step=number, **changes)

    return make


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
