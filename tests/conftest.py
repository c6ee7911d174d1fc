"""What several rooms' tests share: a model of 0.1 M parameters, a home around it, and facts small enough to learn."""

import itertools
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from stokehold.core.config import describe, parse_config
from stokehold.data.tokenizer import train_tokenizer
from stokehold.store.bases import import_base
from stokehold.store.home import Home

os.environ.setdefault("HF_HUB_OFFLINE", "1")

COLOURS = ("red", "blue", "green", "yellow", "white", "black")
THINGS = (
    *("apple", "sea", "grass", "lemon", "snow", "coal", "rose", "sky", "leaf", "corn", "milk", "night"),
    *("brick", "lake", "frog", "butter", "paper", "ink", "cherry", "jeans"),
)
TRAINED = (
    "say the colour of {}",
    "what colour is {}",
    "tell me how {} looks",
    "{} has which colour",
    "name the colour that {} has",
    "which colour would you paint {}",
)
HELD_OUT = ("please, the colour of {}", "and {} has what colour")
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
}


def fact(thing: int, wording: str) -> dict[str, Any]:
    question = wording.format(THINGS[thing])
    answer = f"{THINGS[thing]} is {COLOURS[thing % len(COLOURS)]}"
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def facts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Training rows; wordings and things repeat, in an order of their own for each seed."""
    drawn = random.Random(seed)
    return [fact(drawn.randrange(len(THINGS)), drawn.choice(TRAINED)) for _ in range(count)]


def held_out_facts() -> list[dict[str, Any]]:
    """The same things asked in words that no training row has."""
    return [fact(thing, wording) for wording, thing in itertools.product(HELD_OUT, range(len(THINGS)))]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


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
            "evaluation": {"holdout_share": 0.0, "max_new_tokens": 24},
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
