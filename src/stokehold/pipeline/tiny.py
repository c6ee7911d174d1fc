"""The embedded default: a tiny Qwen3 with a tokenizer trained on generated puzzles, both made on the spot.

`python -m stokehold.pipeline.tiny FOLDER` writes a model folder that transformers loads as it is.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from stokehold.data.tokenizer import train_tokenizer
from stokehold.tasks.registry import draw
from stokehold.training.model import create_tiny

VOCABULARY = 2048
PUZZLES = {1: 4000, 2: 1500, 3: 1500, 4: 500, 6: 500, 8: 500}
"""Texts by level: the words of the first levels become tokens of their own."""

SEED = 7


def make_tiny(folder: Path, seed: int) -> int:
    """Writes tokenizer and random weights into `folder`; returns the parameter count."""
    train_tokenizer(_texts(), VOCABULARY, folder)
    return create_tiny(folder, seed)


def _texts() -> Iterator[str]:
    """Training puzzles only: a tokenizer, too, learns nothing from what is held out."""
    for level, count in PUZZLES.items():
        for sample in draw("syllo", level, count, SEED, "train"):
            yield from (message.content for message in sample.messages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(make_tiny(arguments.folder, arguments.seed))


if __name__ == "__main__":
    main()
