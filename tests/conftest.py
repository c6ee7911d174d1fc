"""What several rooms' tests share: a model of 0.1 M parameters and homes around it."""

import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from stokehold.core.config import describe, parse_config
from stokehold.data.tokenizer import train_tokenizer
from stokehold.store.home import Home
from stokehold.store.models.bases import import_base
from tiny_world import SHAPE, facts, held_out_facts

os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("patient", deadline=None)  # a slow machine is no failure
settings.load_profile("patient")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 of about 0.1 M parameters with a tokenizer trained on the facts."""
    from stokehold.training.model import create_tiny

    folder = tmp_path_factory.mktemp("base")
    rows = [*facts(400), *held_out_facts()]
    train_tokenizer((m["content"] for row in rows for m in row["messages"]), 400, folder)
    create_tiny(folder, seed=3, **SHAPE)
    return folder


@pytest.fixture
def make_home(tmp_path: Path, tiny_base: Path) -> Callable[..., Home]:
    """Homes on the tiny base; keyword arguments are tables of the config."""
    numbers = itertools.count()

    def make(**tables: Mapping[str, Any]) -> Home:
        home = Home.create(tmp_path / f"home{next(numbers)}", parse_config({}))
        base = import_base(home, tiny_base)
        model = {"base": base.path, "architecture": base.architecture, "vocabulary": base.vocabulary}
        training = {"micro_batch_tokens": 256, "learning_rate": 0.01, "checkpoint_steps": 7, "sample_steps": 0}
        given = {
            "model": model,
            "data": {"max_length": 128, "window_rows": 64},
            "training": {**training, "threads": 1},
            "evaluation": {"holdout_share": 0.0, "max_new_tokens": 24, "overhead": 0},
            "web": {"port": 0},
        }
        tree = {name: {**given.get(name, {}), **tables.get(name, {})} for name in {*given, *tables}}
        home.write_config(describe(parse_config(tree)))
        return home

    return make


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment of a real command: one thread, no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
