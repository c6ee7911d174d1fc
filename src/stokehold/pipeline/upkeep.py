"""Every night at three: a backup, a drill, retention. Each in a process of its own, none on the training slot.

The schedule is DBOS's, in the machine's time zone; a night that nobody was awake for is not made up, but a home whose
last snapshot is older than a day has one soon after the trainer's start. A duty that fails becomes an event, and the
others go on. The processes end when the worker does, and see no GPU.

`python -m stokehold.pipeline.upkeep --home H --parent-fd N backup` does one duty.
"""

import argparse
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import sqlalchemy as sa

from stokehold.core.errors import StokeholdError
from stokehold.core.records import JobState
from stokehold.store import backups, events, job_rows, offsite, retention, tables, versions
from stokehold.store.database import Database, connect
from stokehold.store.home import Home
from stokehold.store.jobs import JobsClient, workflow
from stokehold.store.parent import listen

KIND = "snapshot"
SCHEDULE = "nightly"
AT_THREE = "0 3 * * *"
OVERDUE_S = 24 * 3600.0
LOCALTIME, TIMEZONE = Path("/etc/localtime"), Path("/etc/timezone")
SAID_CHARS = 2000


def _back_up(home: Home) -> None:
    offsite.run(home, connect(home), "of the night", home.config().store.backup_to)


def _drill(home: Home) -> None:
    """Of the champion; where there is no version yet, or its weights need the GPU that trains, there is none."""
    if versions.list_versions(home) and home.config().model.method != "qlora":
        sys.argv = ["drill", "--home", str(home.root)]
        runpy.run_module("stokehold.pipeline.drill", run_name="__main__")


def _thin_out(home: Home) -> None:
    retention.run(home, connect(home))


DUTIES: Mapping[str, Callable[[Home], None]] = {"backup": _back_up, "drill": _drill, "retention": _thin_out}
"""What each night does, in order; retention last, so that what goes is in a snapshot."""


def start(home: Home, client: JobsClient) -> None:
    """Declares the workflow and its schedule, and enqueues a run where the last snapshot is older than a day.

    Call it before `jobs.launch`.
    """
    workflow(KIND)(lambda payload: run(home, client.db, payload).value)
    client.schedule(SCHEDULE, KIND, AT_THREE, time_zone())
    if is_overdue(home, client.db):
        client.enqueue(KIND, {}, job_id=f"{KIND}-{datetime.now(UTC):%Y%m%d}")


def is_overdue(home: Home, db: Database) -> bool:
    """Whether the newest snapshot, or the first job of a home without one, is older than a day."""
    age_s = backups.age_s(home)
    if age_s is not None:
        return age_s > OVERDUE_S
    with db.read() as connection:
        first = connection.execute(sa.select(sa.func.min(tables.jobs.c.created))).scalar()
    return first is not None and time.time() - datetime.fromisoformat(first).timestamp() > OVERDUE_S


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


def time_zone() -> str:
    """The machine's IANA time zone, UTC where it does not tell one."""
    told = [os.environ.get("TZ", "").lstrip(":")]
    if LOCALTIME.is_symlink():
        told.append(str(LOCALTIME.resolve()).partition("zoneinfo/")[2])
    if TIMEZONE.is_file():
        told.append(TIMEZONE.read_text("ascii").strip())
    known = available_timezones()
    return next((name for name in told if name in known), "UTC")


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
