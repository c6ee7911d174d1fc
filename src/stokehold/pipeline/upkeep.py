"""Every night at three: a backup, a drill, retention. Each in a process of its own, none on the training slot.

The schedule is DBOS's, in the machine's time zone. A night that nobody was awake for is made up at the trainer's start,
and when the supervisor notices that the machine slept (`store/backup/nights.py`). A duty that fails becomes an event,
and the others go on. The processes end when the worker does, and see no GPU.
"""

import argparse
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stokehold.core.errors import StokeholdError
from stokehold.core.records import JobState
from stokehold.store.backup import nights, offsite
from stokehold.store.backup.nights import KIND
from stokehold.store.db import events, job_rows
from stokehold.store.db.database import Database, connect
from stokehold.store.db.jobs import JobsClient, workflow
from stokehold.store.home import Home
from stokehold.store.housekeeping import retention
from stokehold.store.models import versions
from stokehold.store.parent import listen

SCHEDULE = "nightly"
AT_THREE = f"0 {nights.HOUR} * * *"
SAID_CHARS = 2000


def _back_up(home: Home) -> None:
    offsite.run(home, connect(home), "of the night", home.config().store.backup_to)


def _drill(home: Home) -> None:
    """Of the champion; where there is no version yet, or its weights need the GPU that trains, there is none."""
    if versions.list_versions(home) and home.config().model.method != "qlora":
        sys.argv = ["drill", "--home", str(home.root), "--unrecorded-passes"]
        runpy.run_module("stokehold.pipeline.drill", run_name="__main__")


def _thin_out(home: Home) -> None:
    retention.run(home, connect(home))


DUTIES: Mapping[str, Callable[[Home], None]] = {"backup": _back_up, "drill": _drill, "retention": _thin_out}
"""What each night does, in order; retention last, so that what goes is in a snapshot."""


def start(home: Home, client: JobsClient) -> None:
    """Declares the workflow and its schedule, and enqueues a run where the last night was missed.

    Call it before `jobs.launch`.
    """
    workflow(KIND)(lambda payload: run(home, client.db, payload).value)
    client.schedule(SCHEDULE, KIND, AT_THREE, nights.time_zone())
    nights.make_up(home, client)


def run(home: Home, db: Database, payload: Mapping[str, Any]) -> JobState:
    """Does every duty; failed where one failed, with its name."""
    job = job_rows.begin(db, str(payload["job"]), kind=KIND)
    if job.state is not JobState.RUNNING:
        return job.state
    failed = [name for name in DUTIES if not _do(home, db, name)]
    reason = f"failed: {', '.join(failed)}; see the events" if failed else None
    return job_rows.set_state(db, job.id, JobState.FAILED if failed else JobState.COMPLETED, reason).state


def _do(home: Home, db: Database, name: str) -> bool:
    """Does one duty in a process of its own, to its end; what it said last becomes an event where it failed."""
    begun = time.monotonic()
    reading, writing = os.pipe()  # nobody else has its end: when we are gone, however that was, the duty reads it
    command = [sys.executable, "-m", "stokehold.pipeline.upkeep", "--home", str(home.root)]
    try:
        done = subprocess.run(
            [*command, "--parent-fd", str(reading), name],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            pass_fds=[reading],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(reading)
        os.close(writing)
    seconds = round(time.monotonic() - begun, 1)
    if done.returncode == 0:
        events.record(db, "upkeep", f"{name}: done in {seconds} s", duty=name, seconds=seconds)
        return True
    said = (done.stderr.strip() or done.stdout.strip())[-SAID_CHARS:]
    last = said.splitlines()[-1] if said else f"ended with {done.returncode}"
    events.record(db, "upkeep_failed", f"{name}: {last}", duty=name, exit=done.returncode, said=said)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--parent-fd", type=int, help="leave when this pipe reads its end")
    parser.add_argument("duty", choices=list(DUTIES))
    arguments = parser.parse_args()
    try:
        home = Home.open(arguments.home)
        if arguments.parent_fd is not None:
            listen(arguments.parent_fd, home.logs / "upkeep.log", lambda: os._exit(1))
        DUTIES[arguments.duty](home)
    except StokeholdError as error:
        sys.stderr.write(f"stoke: {error}\n")
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
