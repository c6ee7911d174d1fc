"""Facts small enough for a model of 0.1 M parameters to learn in seconds, and the model's shape."""

import itertools
import random
from pathlib import Path
from typing import Any

import orjson

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


def safetensors(content: bytes) -> bytes:
    """A file of weights as the format asks for it: one tensor of bytes."""
    shape, ends = [len(content)], [0, len(content)]
    header = orjson.dumps({"weight": {"dtype": "U8", "shape": shape, "data_offsets": ends}})
    return len(header).to_bytes(8, "little") + header + content
