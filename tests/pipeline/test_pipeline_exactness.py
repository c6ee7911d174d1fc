"""Killed and resumed is the same run, bit for bit, and each row is trained exactly as often as asked."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from stokehold.store.db import journal
from stokehold.store.db.database import connect
from stokehold.store.files import hash_file
from stokehold.store.home import Home
from stokehold.store.models import checkpoints
from tiny_world import facts, write_jsonl

ROWS = 900


def command(home: Home, file: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "stokehold.cli.main", "train", str(file), "--home", str(home.root), "--json", *more]


def train(home: Home, file: Path, environment: dict[str, str], *more: str) -> dict[str, Any]:
    done = subprocess.run(command(home, file, *more), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = orjson.loads(done.stdout)
    return answer


def weights(answer: dict[str, Any]) -> str:
    return hash_file(Path(answer["checkpoint"]) / "model.safetensors")


def kill_at_step(home: Home, file: Path, environment: dict[str, str], step: int) -> None:
    """SIGKILL as soon as the journal has `step`."""
    process = subprocess.Popen(command(home, file, "--resume"), env=environment, stdout=subprocess.DEVNULL)
    db = connect(home)
    while process.poll() is None:
        last = journal.last_step(db)
        if last is not None and last.step >= step:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.002)
    pytest.fail("the training ended before it could be killed")


def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    make_home: Callable[..., Home], tmp_path: Path, environment: dict[str, str]
) -> None:
    file = write_jsonl(tmp_path / "facts.jsonl", facts(ROWS))
    straight = train(make_home(), file, environment)
    home = make_home()
    for step in (4, 17):
        kill_at_step(home, file, environment, step)
    resumed = train(home, file, environment, "--resume")
    assert resumed["step"] == straight["step"]
    assert resumed["examples"] == straight["examples"] == ROWS
    assert weights(resumed) == weights(straight)
    assert hash_file(Path(resumed["checkpoint"]) / "optimizer.safetensors") == hash_file(
        Path(straight["checkpoint"]) / "optimizer.safetensors"
    )
    assert train(home, file, environment, "--resume") == resumed


def test_stopping_at_a_step_and_going_on_changes_no_bit(
    make_home: Callable[..., Home], tmp_path: Path, environment: dict[str, str]
) -> None:
    file = write_jsonl(tmp_path / "facts.jsonl", facts(400))
    straight = train(make_home(), file, environment)
    home = make_home()
    first = train(home, file, environment, "--steps", "5")
    assert (first["step"], first["jobs"][0]["state"]) == (5, "partial")
    refused = subprocess.run(command(home, file), capture_output=True, text=True, env=environment, check=False)
    assert refused.returncode != 0
    assert "--resume" in refused.stderr
    assert weights(train(home, file, environment, "--resume")) == weights(straight)
    rows = Counter(step.fingerprint for step in journal.steps(connect(home)))
    assert max(rows.values()) == 1


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(
    make_home: Callable[..., Home], tmp_path: Path, environment: dict[str, str]
) -> None:
    file = write_jsonl(tmp_path / "facts.jsonl", facts(400))
    straight = train(make_home(), file, environment)
    home = make_home()
    first = train(home, file, environment, "--steps", "9")
    damaged = Path(first["checkpoint"]) / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-9] ^= 1
    damaged.write_bytes(content)
    found = checkpoints.latest(home, connect(home))
    assert found.checkpoint is not None
    assert (found.checkpoint.step, len(found.passed_over)) == (7, 1)
    assert weights(train(home, file, environment, "--resume")) == weights(straight)
