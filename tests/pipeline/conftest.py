"""A trainer, its home and its queue in one process, as many as a test asks for."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bench import Bench

from stokehold.store.home import Home


@pytest.fixture
def bench(make_home: Callable[..., Home]) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**tables: Any) -> Bench:
        made.append(Bench(make_home(**tables)))
        return made[-1]

    yield make
    for one in made:
        one.close()
