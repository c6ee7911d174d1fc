"""`stoke train` beside a bare loop and two trainers that people use, on the same rows, tokenizer and weights.

`python benchmarks/speed.py --peers-python PATH [--rounds N] [--steps N] [--dtype float32|bfloat16]` prints JSON.
PATH is the python of an environment with benchmarks/peers/requirements.txt; without it only ours and `bare` run, with
this one.

`ours`        `stoke train` in a fresh home: journal, checks, telemetry and checkpoints as they are by default, batches
              of at most 2,048 tokens. Its seconds are those from one journal row to the next, whatever was done.
`bare`        the least a loop can do: packed rows, attention document by document, the head where loss is, no more.
`trl_packed`  TRL's SFTTrainer, two packed rows of 1,024 tokens.
`hf_trainer`  transformers' Trainer, one conversation a batch.

Each run is a process of its own and prints tokens of documents per second after its warm-up; a round runs every
candidate once. All learn at 1e-3 with AdamW and clip at 1. The loss of our first batch is computed by `bare` too, and
nothing is compared where the two differ.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from timing import in_turn, machine, summary

from stokehold.data.batches import Batches, Cursor
from stokehold.data.tokenizer import load_tokenizer
from stokehold.store.db import journal
from stokehold.store.db.database import connect
from stokehold.store.home import Home

PEERS = Path(__file__).parent / "peers"
SETTINGS = {"micro_batch_tokens": "2048", "max_length": "1024", "learning_rate": "1e-3", "warmup_steps": "5"}
AGREEMENT = {"float32": 1e-4, "bfloat16": 1e-2}
"""Largest relative difference of the first loss."""

Reading = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16, help="of about 2,048 tokens, warm-up included")
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument("--dtype", choices=list(AGREEMENT), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--only", nargs="+", help="candidates beside ours")
    given = parser.parse_args()
    names = ["bare", "trl_packed", "hf_trainer"] if given.peers_python else ["bare"]
    names = [name for name in names if given.only is None or name in given.only]
    python = given.peers_python or Path(sys.executable)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run([sys.executable, str(PEERS / "data.py"), str(folder), "--rows", str(given.rows)])
        found: dict[str, list[Reading]] = {name: [] for name in ("ours", *names)}
        candidates: dict[str, Callable[[int], object]] = {
            name: lambda _, name=name: found[name].append(peer(python, name, folder, given)) for name in names
        }
        candidates["ours"] = lambda number: found["ours"].append(ours(folder, folder / f"home-{number}", given))
        in_turn(candidates, given.rounds)
        first = check_first_loss(folder, python, found["ours"][0]["first_loss"], given.dtype)
    json.dump(report(found, given, first), sys.stdout, indent=2)
    print()


def peer(python: Path, name: str, folder: Path, given: argparse.Namespace) -> Reading:
    """What one of the scripts in `peers` prints."""
    options = {"steps": given.steps, "skip": given.warm_up, "dtype": given.dtype, "threads": given.threads}
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return result(run([str(python), str(PEERS / f"{name}.py"), str(folder), *arguments], given.threads))


def ours(folder: Path, root: Path, given: argparse.Namespace) -> Reading:
    """A home, a file, `stoke train`; then what the journal says about it."""
    stoke = str(Path(sys.executable).with_name("stoke"))
    run([stoke, "init", str(root), "--model", str(folder / "model")])
    home = Home.open(root)
    settings = {**SETTINGS, "threads": str(given.threads), "dtype": json.dumps(given.dtype)}
    text = home.config_path.read_text()
    for key, value in settings.items():
        text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
    home.write_config(text)
    command = [stoke, "train", str(folder / "train.jsonl"), "--steps", str(given.steps), "--home", str(root)]
    started = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    words = process.stderr.read().decode() if process.stderr else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{words}")
    return {**journalled(home, given.warm_up, started), "peak_rss_mb": usage.ru_maxrss / 1024}


def journalled(home: Home, warm_up: int, started: float) -> Reading:
    """Rates from the journal: over all the time between its rows, and over the steps' own seconds."""
    with closing(connect(home)) as db:
        steps = journal.steps(db)
    at = [datetime.fromisoformat(step.created).timestamp() for step in steps]
    measured = steps[warm_up:]
    tokens, seconds = sum(step.tokens for step in measured), at[-1] - at[warm_up - 1]
    own = sum(step.seconds for step in measured)
    return {
        "tokens_per_s": tokens / seconds,
        "tokens_per_s_of_steps": tokens / own,
        "share_outside_steps": 1 - own / seconds,
        "steps": len(measured),
        "tokens": tokens,
        "first_step_s": at[0] - started,
        "first_loss": steps[0].loss,
        "last_loss": steps[-1].loss,
    }


def check_first_loss(folder: Path, python: Path, mine: float, dtype: str) -> Reading:
    """The loss of our first batch by `bare`: another one would mean that the two train something else."""
    home = Home.open(folder / "home-0")
    config = home.config()
    rows = next(home.datasets.glob("*/rows.jsonl"))
    with Batches(
        rows,
        load_tokenizer(folder / "model"),
        window_rows=config.data.window_rows,
        capacity=config.training.micro_batch_tokens,
        max_length=config.data.max_length,
        seed=config.data.seed,
        epochs=1,
        cursor=Cursor.start(),
    ) as batches:
        wanted = set(next(iter(batches)).row_ids)
    lines = [line for line in rows.read_text().splitlines() if json.loads(line)["id"] in wanted]
    chosen = folder / "first.jsonl"
    chosen.write_text("\n".join(lines) + "\n")
    command = [str(python), str(PEERS / "bare.py"), str(folder), "--dtype", dtype, "--loss-of", str(chosen)]
    theirs = result(run(command))["loss"]
    if abs(mine - theirs) > AGREEMENT[dtype] * theirs:
        sys.exit(f"the first losses differ, nothing is compared: ours {mine}, bare {theirs}")
    return {"ours": mine, "bare": theirs, "rows": len(lines)}


def report(found: dict[str, list[Reading]], given: argparse.Namespace, first: Reading) -> Reading:
    """Medians and ratios of pairs, every reading beside them."""
    seconds = {name: [one["tokens"] / one["tokens_per_s"] for one in runs] for name, runs in found.items()}
    tokens = {name: [one["tokens"] for one in runs] for name, runs in found.items()}
    return {
        "machine": machine() | {"threads": given.threads},
        "dtype": given.dtype,
        "rounds": given.rounds,
        "first_loss_of_the_same_rows": first,
        **summary(seconds, tokens, "ours"),
        "runs": found,
    }


def run(command: list[str], threads: int = 2) -> str:
    """What a command prints; ends the program where it fails."""
    quiet = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quiet}, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def result(printed: str) -> Reading:
    """The readings in what a peer printed."""
    line = next(line for line in printed.splitlines() if line.startswith("RESULT "))
    reading: Reading = json.loads(line.removeprefix("RESULT "))
    return reading


if __name__ == "__main__":
    main()
