"""A fresh home and its database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stokehold.core.config import Config
from stokehold.store.db.database import Database, connect
from stokehold.store.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", Config())


@pytest.fixture
def db(home: Home) -> Iterator[Database]:
    database = connect(home)
    yield database
    database.close()
