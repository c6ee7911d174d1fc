"""A real worker with toy workflows, run as its own process by test_store_jobs.py.

    python toy_worker.py HOME EXECUTOR QUEUE,QUEUE…

`train` appends numbered lines to HOME/logs/<job>.txt until the payload's `lines`, going on from what is there.
`ingest`, `improve` and `snapshot` append one line to HOME/logs/order.txt. `evaluate` raises every time. Prints
`launched` and serves until it is killed or reads a line on stdin.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from stokehold.core.errors import BusyError
from stokehold.core.records import JobState
from stokehold.store.db import job_rows, jobs
from stokehold.store.db.database import Database, connect
from stokehold.store.home import Home

POLL_S = 0.02


def append(path: Path, line: str) -> None:
    with path.open("a") as stream:
        stream.write(f"{line}\n")
        stream.flush()
        os.fsync(stream.fileno())


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def declare(home: Home, db: Database, executor_id: str) -> None:
    """The workflows of the toy."""

    @jobs.workflow("train")
    def train(payload: dict[str, Any]) -> dict[str, Any]:
        path = home.logs / f"{payload['job']}.txt"
        if job_rows.begin(db, payload["job"], last_step=len(lines_of(path))).state is not JobState.RUNNING:
            return {}
        for number in range(len(lines_of(path)) + 1, payload["lines"] + 1):
            append(path, f"{number} {executor_id}")
            time.sleep(payload["sleep_s"])
        job_rows.set_state(db, payload["job"], JobState.COMPLETED)
        return {"lines": payload["lines"]}

    @jobs.workflow("evaluate")
    def evaluate(payload: dict[str, Any]) -> None:
        state = job_rows.begin(db, payload["job"]).state
        while state is JobState.RUNNING:
            append(home.logs / "order.txt", payload["job"])
            state = job_rows.record_exception(db, payload["job"], "ValueError: always").state

    def note(payload: dict[str, Any]) -> dict[str, Any]:
        kind = "snapshot" if payload.get("scheduled") else None
        job_rows.begin(db, payload["job"], kind=kind)
        append(home.logs / "order.txt", payload["job"])
        job_rows.set_state(db, payload["job"], JobState.COMPLETED)
        return {"seen": payload}

    for kind in ("ingest", "improve", "snapshot"):
        jobs.workflow(kind)(note)


def main(root: str, executor_id: str, queues: str) -> None:
    home = Home.open(Path(root))
    declare(home, connect(home), executor_id)
    try:
        worker = jobs.launch(home, executor_id, queues.split(","), poll_s=POLL_S)
    except BusyError as error:
        print(f"refused: {error}", flush=True)
        sys.exit(3)
    print("launched", flush=True)
    sys.stdin.readline()
    worker.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
