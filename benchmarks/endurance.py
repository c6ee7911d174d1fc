"""Does a step cost at the end of a long run what it cost at the beginning? Time and memory over 20,000 steps.

`python benchmarks/endurance.py [--steps N]` trains a model of 0.1 M parameters in the foreground, as `stoke train`
does, with checkpoints and samples, and prints JSON: per tenth of the run the median seconds of a step by its own clock,
the median between two journal rows (everything counts: journal, checks, snapshots), and the memory of the process.
A small model is the hard case: what is not arithmetic is the larger share of a step.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from timing import machine

from stokehold.core.config import describe, parse_config
from stokehold.data.tokenizer import train_tokenizer
from stokehold.store.db import journal
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.models.bases import import_base
from stokehold.supervisor.processes import worker_environment
from stokehold.training.model import create_tiny

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
TENTHS = 10
POLL_S = 1.0
WORDS = ("red", "blue", "green", "apple", "sea", "grass", "lemon", "snow", "coal", "rose", "sky", "leaf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as scratch:
        home = make_home(Path(scratch), steps)
        memory = train(home, write_rows(Path(scratch) / "rows.jsonl", 4 * steps), steps)
        json.dump({"machine": machine(), **report(home, memory)}, sys.stdout, indent=2)
    print()


def make_home(scratch: Path, steps: int) -> Home:
    train_tokenizer((row_text(number) for number in range(2000)), 400, scratch / "model")
    create_tiny(scratch / "model", seed=0, **SHAPE)
    home = Home.create(scratch / "home", parse_config({}))
    base = import_base(home, scratch / "model")
    tree = {
        "model": {"base": base.path, "architecture": base.architecture, "vocabulary": base.vocabulary},
        "data": {"max_length": 128},
        "training": {"micro_batch_tokens": 64, "checkpoint_steps": max(1, steps // 40), "threads": 1},
        "evaluation": {"holdout_share": 0.0, "max_new_tokens": 16},
    }
    home.write_config(describe(parse_config(tree)))
    return home


def row_text(number: int) -> str:
    return " ".join(WORDS[number // 12**place % 12] for place in range(4))


def write_rows(path: Path, count: int) -> Path:
    """Rows that differ, of about 20 tokens."""
    with path.open("w") as file:
        for number in range(count):
            row = {"prompt": f"say {row_text(number)}", "completion": row_text(number // 7)}
            file.write(json.dumps(row) + "\n")
    return path


def train(home: Home, rows: Path, steps: int) -> list[tuple[float, int]]:
    """Trains until `steps`; returns (seconds since the epoch, resident bytes) of the process now and then."""
    command = [sys.executable, "-m", "stokehold.pipeline.foreground", "--home", str(home.root), str(rows)]
    environment = {**os.environ, **worker_environment(home.config())}
    process = subprocess.Popen([*command, "--steps", str(steps)], env=environment)
    watched, seen = psutil.Process(process.pid), []
    while process.poll() is None:
        seen.append((time.time(), watched.memory_info().rss))
        time.sleep(POLL_S)
    if process.returncode:
        sys.exit(f"training ended with {process.returncode}")
    return seen


def report(home: Home, memory: list[tuple[float, int]]) -> dict[str, Any]:
    found = journal.steps(connect(home))
    times = [datetime.fromisoformat(step.created).timestamp() for step in found]
    between = [later - earlier for earlier, later in itertools.pairwise(times)]
    size = len(between) // TENTHS
    tenths = []
    for number in range(TENTHS):
        part = slice(number * size, (number + 1) * size)
        inside = [rss for at, rss in memory if times[part.start] <= at <= times[part.stop]]
        tenths.append(
            {
                "first_step": found[part.start].step,
                "step_ms": 1000 * statistics.median(step.seconds for step in found[part]),
                "between_rows_ms": 1000 * statistics.median(between[part]),
                "between_rows_mean_ms": 1000 * statistics.fmean(between[part]),
                "resident_mb": max(inside) / 1e6 if inside else None,
            }
        )
    return {"steps": len(found), "tenths": tenths}


if __name__ == "__main__":
    main()
