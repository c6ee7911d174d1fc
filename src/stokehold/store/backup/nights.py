"""The snapshot of every night: whether one was missed, and its making up.

A night is missed where the newest snapshot, or the first job of a home without one, is older than the last three
o'clock: the machine was off, or it slept. It is made up once, by a job whose name is that night's.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import sqlalchemy as sa

from stokehold.core.records import Job
from stokehold.store.backup import backups
from stokehold.store.db import job_rows, tables
from stokehold.store.db.database import Database
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home

KIND = "snapshot"
HOUR = 3
LOCALTIME, TIMEZONE = Path("/etc/localtime"), Path("/etc/timezone")


def make_up(home: Home, client: JobsClient, now: datetime | None = None) -> Job | None:
    """Enqueues the snapshot of the last night where that was missed; None where it was not, where one waits or runs,
    and where this was tried before."""
    moment = now or datetime.now(UTC)
    name = f"{KIND}-{last_night(moment):%Y%m%d}"
    of_nights = (job for job in job_rows.list_jobs(client.db) if job.kind == KIND)
    if any(job.id == name or job.state in job_rows.UNFINISHED for job in of_nights):
        return None
    return client.enqueue(KIND, {}, job_id=name) if is_missed(home, client.db, moment) else None


def is_missed(home: Home, db: Database, now: datetime) -> bool:
    """Whether the last night, as of `now` (with its time zone), has no snapshot, and the home was in use before it.

    A snapshot of the future, taken while the clock was wrong, says nothing.
    """
    taken = [datetime.fromisoformat(found.created) for found in backups.list_snapshots(home)]
    if taken:
        return max((one for one in taken if one <= now), default=datetime.min.replace(tzinfo=UTC)) < last_night(now)
    with db.read() as connection:
        first = connection.execute(sa.select(sa.func.min(tables.jobs.c.created))).scalar()
    return first is not None and datetime.fromisoformat(first) < last_night(now)


def last_night(now: datetime) -> datetime:
    """The last three o'clock up to `now`, in the machine's time zone."""
    zone = ZoneInfo(time_zone())
    local = now.astimezone(zone)
    at_three = datetime(local.year, local.month, local.day, HOUR, tzinfo=zone)
    if at_three > local:
        before = local.date() - timedelta(days=1)
        at_three = datetime(before.year, before.month, before.day, HOUR, tzinfo=zone)
    return at_three


def time_zone() -> str:
    """The machine's IANA time zone, UTC where it does not tell one."""
    told = [os.environ.get("TZ", "").lstrip(":")]
    if LOCALTIME.is_symlink():
        told.append(str(LOCALTIME.resolve()).partition("zoneinfo/")[2])
    if TIMEZONE.is_file():
        told.append(TIMEZONE.read_text("ascii").strip())
    known = available_timezones()
    return next((name for name in told if name in known), "UTC")
