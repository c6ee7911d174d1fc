"""Kills a child process at random moments while it publishes; run by test_store_kills.py.

    python kill_while_publishing.py FOLDER ROUNDS SEED

Each round forks a child that publishes one new folder and replaces another, again and again, and kills it. After each
kill both must be whole: the state before or after some publishing, never between. Prints how many folders appeared.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from stokehold.store.files import publish, read_manifest, sweep, verify

SHORTEST_S, LONGEST_S = 0.03, 0.3
"""Bounds of the longest wait before a kill; a quiet machine publishes two folders in about 0.01 s."""
FILES = ("model.safetensors", "optimizer.safetensors", "config.json")


def fill(stage: Path, value: int) -> None:
    for name in FILES:
        (stage / name).write_bytes(bytes([value % 251]) * 40_000)


def child(folder: Path, value: int) -> None:
    while True:
        value += 1
        publish(folder / f"step_{value}", lambda stage, v=value: fill(stage, v), {"kind": "test", "value": value})
        away = folder / "away" / str(value)
        publish(folder / "same", lambda stage, v=value: fill(stage, v), {"kind": "test", "value": value}, replaced=away)


def check(folder: Path) -> int:
    """Every folder that has a name is whole, and its files are all of one publishing; returns the newest value."""
    newest = 0
    for path in [*folder.glob("step_*"), folder / "same"]:
        assert verify(path) == [], path
        value = read_manifest(path)["value"]
        assert {(path / name).read_bytes()[0] for name in FILES} == {value % 251}, path
        newest = max(newest, value)
    return newest


def main(folder: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    publish(folder / "same", lambda stage: fill(stage, 0), {"kind": "test", "value": 0})
    value = before = killed = 0
    longest_s = SHORTEST_S
    while killed < rounds:
        pid = os.fork()
        if pid == 0:
            child(folder, value)
        time.sleep(rng.uniform(0.0, longest_s))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
        value = check(folder)
        if value < killed:  # a busy machine: a kill that comes before any publishing proves nothing
            longest_s = min(longest_s * 1.5, LONGEST_S)
        kept = read_manifest(folder / "same")["value"]
        assert kept >= before, "went back"
        before = kept
        sweep(folder)
        assert not list(folder.glob(".staging-*"))
    print(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
