"""Processes killed at random moments: what the database, the store and a trainer make of it.

    python benchmarks/kills.py [--sqlite 1000] [--store 950] [--trainer 50] [--seed N] [--only NAME …]

`--sqlite N` kills N processes, of four that write to one database: every row whose commit had returned is there, and
the file is whole. `--store N` shares N kills out among the store's actions, each killed from outside at a random moment
after its first change on the disk, and then repeated: it ends in the old state or the new one, never between.
`--trainer N` kills a real `stoke train` of a model of 0.1 M parameters N times: weights, optimiser and journal are
those of a run that nobody killed.

Prints JSON with how often each ended in which state; an end that is neither stops it with the action's name.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "store")]

ACTIONS = {
    "publish": ("test_store_matrix", "fresh", "publish_one", "published"),
    "publish over another": ("test_store_matrix", "with_checkpoints", "replace_one", "replaced"),
    "blobs": ("test_store_matrix", "with_a_file", "add_two", "two_blobs"),
    "versions: create": ("test_store_matrix", "with_checkpoints", "create_one", "created"),
    "checkpoints: prune": ("test_store_matrix", "with_checkpoints", "prune_all_but_the_newest", "one_left"),
    "checkpoints: go back": ("test_store_matrix", "with_checkpoints", "go_back", "one_left"),
    "trash: empty": ("test_store_matrix", "with_trash", "empty_all", "emptied"),
    "datasets: save": ("test_store_matrix", "fresh", "save_one", "saved"),
    "base: import": ("test_store_matrix", "with_a_model", "import_one", "imported"),
    "versions: delete": ("test_store_deletions", "two_versions", "delete_one", "judge_delete"),
    "versions: undelete": ("test_store_deletions", "one_deleted", "undelete_one", "judge_undelete"),
    "versions: restore": ("test_store_restores", "damaged_version", "restore_it", "judge_restore"),
    "versions: go back": ("test_store_going_back", "prepare_without_checkpoint", "go", "judge"),
    "versions: compact": ("test_store_compaction", "prepared", "pack_it", "packed_or_whole"),
    "versions: unpack": ("test_store_compaction", "prepared_packed", "unpack_it", "whole_or_packed"),
    "retention: rows": ("test_store_aging", "long_run", "thin", "thinned"),
    "retention: answers and logs": ("test_store_aging", "aged", "grow_old", "grown_old"),
    "database: rebuild": ("test_store_rebuild", "wrecked", "remake", "remade"),
    "gc": ("test_store_gc", "prepared", "collect", "collected"),
    "backup": ("test_store_locations", "fresh_home", "back_up", "backed_up"),
    "backup: restore": ("test_store_restoring", "prepared", "bring", "brought"),
    "sync: pull": ("test_store_sync", "prepare", "pull_champion", "judge"),
}
"""Name: a module under tests/store and its `prepare`, `act`, `judge`, as matrix.py says. Another action: a line."""

AROUND = {"sync: pull": ("test_store_sync", "two_offered")}
"""What must be there while an action is tried: a context manager that is given a folder."""

TRAINING = {"micro_batch_tokens": 256, "learning_rate": 0.01, "checkpoint_steps": 7, "sample_steps": 0, "threads": 1}
ROWS = 900


def kill_store(kills: int, seed: int, only: list[str]) -> dict[str, Any]:
    """Per action how often it ended in which state."""
    from matrix import killed_at_random

    names = only or list(ACTIONS)
    ended: dict[str, dict[str, int]] = {}
    for index, name in enumerate(names):
        module, *functions = ACTIONS[name]
        prepare, act, judge = (getattr(import_module(module), function) for function in functions)
        share = kills * (index + 1) // len(names) - kills * index // len(names)
        with tempfile.TemporaryDirectory() as folder, around(name, Path(folder) / "around"):
            try:
                ended[name] = dict(killed_at_random(prepare, act, judge, Path(folder), share, random.Random(seed)))
            except AssertionError as error:
                raise SystemExit(f"{name}: {error}") from error
        print(name, ended[name], file=sys.stderr, flush=True)
    totals = {state: sum(counts.get(state, 0) for counts in ended.values()) for state in ("old", "new")}
    return {"kills": sum(totals.values()), **totals, "between": 0, "actions": ended}


def around(name: str, folder: Path) -> AbstractContextManager[None]:
    if name not in AROUND:
        return nullcontext()
    module, function = AROUND[name]
    found: AbstractContextManager[None] = getattr(import_module(module), function)(folder)
    return found


def kill_sqlite(kills: int, seed: int) -> dict[str, int]:
    from kill_writers import run

    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), kills, seed)


def kill_trainer(kills: int, seed: int) -> dict[str, Any]:
    """A straight run for the measure, then one that is killed `kills` times; the moments are drawn from its length."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        file = make_world(root)
        straight_home, home = (make_home(root, name) for name in ("straight", "killed"))
        started = time.perf_counter()
        straight = finish(straight_home, file)
        longest_s = time.perf_counter() - started
        rng, killed, ended = random.Random(seed), 0, 0
        while killed < kills:
            if not kill_one(home, file, rng.uniform(0.0, longest_s)):
                ended += 1
                home = make_home(root, f"killed{ended}")
                continue
            killed += 1
        resumed = finish(home, file)
        differences = [name for name in straight if straight[name] != resumed[name]]
        if differences:
            raise SystemExit(f"the killed run differs in {', '.join(differences)}")
    return {"kills": killed, "runs": ended + 1, "steps": straight["step"], "equal": sorted(straight)}


def make_world(root: Path) -> Path:
    from stokehold.data.tokenizer import train_tokenizer
    from stokehold.training.model import create_tiny
    from tiny_world import SHAPE, facts, held_out_facts, write_jsonl

    rows = [*facts(400), *held_out_facts()]
    train_tokenizer((message["content"] for row in rows for message in row["messages"]), 400, root / "base")
    create_tiny(root / "base", seed=3, **SHAPE)
    return write_jsonl(root / "facts.jsonl", facts(ROWS))


def make_home(root: Path, name: str) -> Path:
    from stokehold.core.config import describe, parse_config
    from stokehold.store.home import Home
    from stokehold.store.models.bases import import_base

    home = Home.create(root / name, parse_config({}))
    base = import_base(home, root / "base")
    model = {"base": base.path, "architecture": base.architecture, "vocabulary": base.vocabulary}
    evaluation = {"holdout_share": 0.0, "max_new_tokens": 24}
    data = {"max_length": 128, "window_rows": 64}
    tree = {"model": model, "data": data, "training": TRAINING, "evaluation": evaluation, "web": {"port": 0}}
    home.write_config(describe(parse_config(tree)))
    return home.root


def command(home: Path, file: Path) -> list[str]:
    return [sys.executable, "-m", "stokehold.cli.main", "train", str(file), "--home", str(home), "--json", "--resume"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def kill_one(home: Path, file: Path, after_s: float) -> bool:
    """Whether the run was still going on when its kill came."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command(home, file), env=environment(), stdout=said, stderr=said)
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
        said.seek(0)
        if process.returncode:
            raise SystemExit(f"the trainer does not go on: {said.read().decode()}")
    return False


def finish(home: Path, file: Path) -> dict[str, Any]:
    """Trains to the end; the bits of the result, and the ledger: which step trained what."""
    from stokehold.store.db import journal
    from stokehold.store.db.database import connect
    from stokehold.store.files import hash_file, verify
    from stokehold.store.home import Home

    done = subprocess.run(command(home, file), env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the trainer does not go on: {done.stderr}")
    answer = json.loads(done.stdout)
    folder = Path(answer["checkpoint"])
    if bad := verify(folder):
        raise SystemExit(f"the last checkpoint does not verify: {bad}")
    db = connect(Home(home))
    ledger = [(step.step, step.fingerprint) for step in journal.steps(db)]
    db.close()
    names = ("model.safetensors", "optimizer.safetensors")
    return {"step": answer["step"], "ledger": ledger} | {name: hash_file(folder / name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("sqlite", "store", "trainer"):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="KILLS")
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--only", nargs="*", default=[], choices=sorted(ACTIONS), metavar="ACTION")
    given = parser.parse_args()
    runs = {
        "sqlite": lambda kills: kill_sqlite(kills, given.seed),
        "store": lambda kills: kill_store(kills, given.seed, given.only),
        "trainer": lambda kills: kill_trainer(kills, given.seed),
    }
    found: dict[str, Any] = {"seed": given.seed}
    for name, run in runs.items():
        if kills := getattr(given, name):
            started = time.perf_counter()
            found[name] = {**run(kills), "seconds": round(time.perf_counter() - started, 1)}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
