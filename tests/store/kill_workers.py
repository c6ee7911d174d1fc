"""Kills a worker and launches it again until its job is done or it died often enough; run by test_store_kills.py.

    python kill_workers.py HOME JOB KILLS SEED

Each round forks (the imports are done once, so a round is cheap), launches DBOS in the child under the same executor
id, and sends SIGKILL: in three rounds of four after a new line of the job, else at any moment of the launch. Ends by
letting a last worker finish. Prints how often it killed, and how many of the kills came after a new line.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import toy_worker

from stokehold.core.records import JobState
from stokehold.store.db import job_rows
from stokehold.store.db.database import connect
from stokehold.store.home import Home

PATIENCE_S = 240.0
EXECUTOR = "trainer-0"
PIPES: dict[int, int] = {}
"""The end of each living child's standard input that this process holds."""


def spawn(root: str, home: Home) -> int:
    """A child that serves until it is killed; should this process die first, the end of its pipe stops the child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.dup2(reader, 0)
        os.dup2(os.open(home.logs / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        sys.stdin = os.fdopen(0)
        toy_worker.main(root, EXECUTOR, "train")
    os.close(reader)
    PIPES[pid] = writer
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(PIPES.pop(pid))


def wait_for_more(path: Path, known: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while len(toy_worker.lines_of(path)) <= known:
        assert time.monotonic() < end, "the worker does not take its job up again"
        time.sleep(0.002)


def main(root: str, job: str, kills: int, seed: int) -> None:
    home, rng = Home.open(Path(root)), random.Random(seed)
    path = home.logs / f"{job}.txt"
    moved = 0
    for number in range(kills):
        known = len(toy_worker.lines_of(path))
        pid = spawn(root, home)
        if number % 4:
            wait_for_more(path, known)
            time.sleep(rng.uniform(0, 0.01))
        else:
            time.sleep(rng.uniform(0, 0.12))
        kill(pid)
        moved += len(toy_worker.lines_of(path)) > known
    pid = spawn(root, home)
    db = connect(home)
    end = time.monotonic() + PATIENCE_S
    while job_rows.get_job(db, job).state is not JobState.COMPLETED and time.monotonic() < end:
        time.sleep(0.02)
    kill(pid)
    print(kills, moved)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
