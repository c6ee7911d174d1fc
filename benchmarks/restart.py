"""How long does a killed trainer cost? From `kill -9` to the next journal row, over many kills.

`python benchmarks/restart.py [--kills N] [--profile]` brings a home with a model of 0.1 M parameters up, as `stoke up`
does, submits a long file, and kills the trainer again and again in the middle of it; it prints JSON: seconds until the
next row stands in the journal, all of them, median and longest. In them: the supervisor sees the end, waits, lets the
spare begin, the jobs are recovered, the checkpoint verified and read, the model built, one step taken. A kill waits for
a spare that has loaded everything; with `--at-once` it does not, and loading Python and torch comes on top.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson
import psutil
from endurance import make_home, write_rows
from timing import machine

from stokehold.store.db import journal
from stokehold.store.db.database import Database, connect
from stokehold.store.home import Home

ROWS = 200_000
CHECKPOINT_STEPS = 200
POLL_S = 0.005
IDLE_S = 2.0
PATIENCE_S = 300.0
BETWEEN_KILLS_STEPS = 60
"""Steps that a trainer takes before it is killed: it is at work, and not always at the same place of a checkpoint."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--at-once", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = make_home(Path(scratch), 40 * CHECKPOINT_STEPS)
        seconds = measure(home, write_rows(home.inbox / "rows.jsonl", ROWS), given.kills, given.at_once)
        report = {
            "machine": machine(),
            "kills": given.kills,
            "at_once": given.at_once,
            "seconds": [round(s, 2) for s in seconds],
        }
        report |= {"median_s": statistics.median(seconds), "longest_s": max(seconds)}
        json.dump(report, sys.stdout, indent=2)
    print()


def measure(home: Home, _rows: Path, kills: int, at_once: bool) -> list[float]:
    """Seconds from each kill to the first row that the next process wrote."""
    command = [sys.executable, "-m", "stokehold.supervisor.main", "--home", str(home.root)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as supervisor:
        try:
            db, found = connect(home), []
            for number in range(kills):
                wait_for_steps(db, BETWEEN_KILLS_STEPS + 17 * number)
                if not at_once:
                    wait_for_spare(home)
                found.append(one_kill(home, db))
            return found
        finally:
            supervisor.terminate()


def one_kill(home: Home, db: Database) -> float:
    pid = pid_of(home, "pid")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    # Whatever the dead process wrote is there by now; its rows are written again, so a change is another's.
    last = newest(db)
    end = killed + PATIENCE_S
    while (now := newest(db)) == last:
        if time.monotonic() > end:
            sys.exit(f"no step in {PATIENCE_S:.0f} s; see {home.logs}")
        time.sleep(POLL_S)
    assert now is not None
    return time.monotonic() - killed


def newest(db: Database) -> tuple[int, str] | None:
    """The row that was written last, by its time."""
    last = journal.last_step(db)
    if last is None:
        return None
    recent = journal.steps(db, since=last.step - 2 * CHECKPOINT_STEPS)
    return max(((step.step, step.created) for step in recent), key=lambda pair: pair[1])


def wait_for_steps(db: Database, count: int) -> None:
    """Until this many rows were written from now on."""
    seen: set[tuple[int, str]] = set()
    end = time.monotonic() + PATIENCE_S
    while len(seen) <= count:
        if time.monotonic() > end:
            sys.exit("training does not go on")
        if (row := newest(db)) is not None:
            seen.add(row)
        time.sleep(POLL_S)


def wait_for_spare(home: Home) -> None:
    """Until a spare is there and has nothing left to load: its processor time stands still."""
    end, before = time.monotonic() + PATIENCE_S, None
    while time.monotonic() < end:
        pid = pid_of(home, "spare")
        spent = psutil.Process(pid).cpu_times()[:2] if pid is not None else None
        if spent is not None and spent == before:
            return
        before = spent
        time.sleep(IDLE_S)
    sys.exit("no spare stands by")


def pid_of(home: Home, which: str) -> int | None:
    """A process of the trainer's role, `pid` or `spare`, as the supervisor tells it."""
    children = orjson.loads((home.status / "supervisor.json").read_bytes())["children"]
    found = next(child[which] for child in children if child["role"] == "trainer")
    return int(found) if found is not None else None


if __name__ == "__main__":
    main()
