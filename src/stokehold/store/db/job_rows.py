"""The table of jobs: what `stoke queue` shows, and when a job has failed. DBOS stays out of this file.

A kill is not an attempt. An attempt is an exception, or a crash with no new step since the last one; after
`MAX_ATTEMPTS` of those in a row the job is `failed`. Steps are compared by (branch, step), so going back counts as new.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from stokehold.core.errors import NotFoundError
from stokehold.core.records import Job, JobState, Priority
from stokehold.store.db import tables
from stokehold.store.db.database import Database, upsert
from stokehold.store.files import utc_now

MAX_ATTEMPTS = 3
UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)
COLUMNS = tables.jobs.c


def insert(
    connection: sa.Connection, job_id: str, kind: str, priority: Priority, payload: Mapping[str, Any]
) -> Job | None:
    """Adds a queued job inside the caller's transaction; None where the id is taken. `file` and `dataset` are the
    payload's."""
    if connection.execute(sa.select(COLUMNS.id).where(COLUMNS.id == job_id)).one_or_none() is not None:
        return None
    now = utc_now()
    values = {
        "id": job_id,
        "kind": kind,
        "file": payload.get("file"),
        "dataset": payload.get("dataset"),
        "priority": priority.value,
        "state": JobState.QUEUED.value,
        "progress": 0.0,
        "attempt": 0,
        "payload": dict(payload),
        "created": now,
        "updated": now,
    }
    connection.execute(tables.jobs.insert().values(**values))
    return find(connection, job_id)


def register(db: Database, job_id: str, kind: str, payload: Mapping[str, Any], content_hash: str, size: int) -> Job:
    """A queued job that nobody was asked to run, with its file's row; the one there is where it is known already.

    `stoke train` runs it itself; should it be killed, `reconcile` hands it to the next worker.
    """
    with db.write() as connection:
        made = insert(connection, job_id, kind, Priority.NORMAL, {**payload, "job": job_id})
        if made is not None:
            facts = {"name": payload["file"], "bytes": size, "job": job_id, "dataset": payload["dataset"]}
            upsert(tables.files, connection, content_hash=content_hash, submitted=utc_now(), **facts)
        return made or find(connection, job_id)


def find(connection: sa.Connection, job_id: str) -> Job:
    """The job, inside a transaction; `NotFoundError` where there is none."""
    return _job(_row(connection, job_id))


def get_job(db: Database, job_id: str) -> Job:
    """The job, or `NotFoundError`."""
    with db.read() as connection:
        return find(connection, job_id)


def get_payload(db: Database, job_id: str) -> dict[str, Any]:
    """What the job was enqueued with."""
    with db.read() as connection:
        payload: dict[str, Any] = _row(connection, job_id).payload
        return payload


def list_jobs(db: Database, states: Iterable[JobState] | None = None, limit: int | None = None) -> list[Job]:
    """Jobs oldest first, of these states; `limit` keeps the newest so many."""
    query = sa.select(tables.jobs).order_by(COLUMNS.created.desc(), COLUMNS.id.desc()).limit(limit)
    if states is not None:
        query = query.where(COLUMNS.state.in_([state.value for state in states]))
    with db.read() as connection:
        return [_job(row) for row in connection.execute(query)][::-1]


def completed_runs(db: Database) -> set[str]:
    """Names of the runs over a file that were trained to its end."""
    query = sa.select(COLUMNS.payload).where(COLUMNS.kind == "train", COLUMNS.state == JobState.COMPLETED.value)
    with db.read() as connection:
        return {payload["run"] for payload in connection.execute(query).scalars() if "run" in payload}


def steps_waiting(db: Database) -> set[int]:
    """Steps that unfinished jobs name: their checkpoints are still to be judged, or decided upon."""
    query = sa.select(COLUMNS.payload).where(COLUMNS.state.in_([state.value for state in UNFINISHED]))
    with db.read() as connection:
        return {payload["step"] for payload in connection.execute(query).scalars() if "step" in payload}


def set_state(db: Database, job_id: str, state: JobState, error: str | None = None) -> Job:
    """Moves the job; `completed` sets its progress to 1. What a person cancelled stays cancelled until `retry`."""
    with db.write() as connection:
        job = find(connection, job_id)
        if job.state is JobState.CANCELLED and state is not JobState.QUEUED:
            return job
        progress = 1.0 if state is JobState.COMPLETED else job.progress
        return _update(connection, job_id, state=state.value, error=error, progress=progress)


def set_progress(db: Database, job_id: str, progress: float) -> None:
    """The share of its examples consumed, 0 to 1."""
    with db.write() as connection:
        _update(connection, job_id, progress=min(max(progress, 0.0), 1.0))


def set_dataset(db: Database, job_id: str, dataset: str) -> None:
    """Names the dataset that the job made or works on; the submitted file of an ingest job learns it too."""
    with db.write() as connection:
        _update(connection, job_id, dataset=dataset)
        connection.execute(tables.files.update().where(tables.files.c.job == job_id).values(dataset=dataset))


def begin(db: Database, job_id: str, last_step: int | None = None, branch: int = 0, kind: str | None = None) -> Job:
    """Starts or takes up the job; call it first in every execution, with the newest step there is.

    Go on only where the returned state is `running`. A job that was running already has crashed: with a new step
    since the last start that is no attempt, without one it is, and the third in a row makes the job `failed`. A job
    without steps passes whatever number grows as it gets on. With `kind`, a missing row is made (a scheduled run).
    """
    with db.write() as connection:
        if kind is not None:
            insert(connection, job_id, kind, Priority.NORMAL, {"job": job_id})
        row = _row(connection, job_id)
        if row.state not in UNFINISHED:
            return _job(row)
        attempt = max(row.attempt, 1)
        if row.state == JobState.RUNNING:
            attempt = 1 if _is_new(row, branch, last_step) else row.attempt + 1
        elif row.state == JobState.QUEUED:
            attempt = 1
        return _attempt(connection, row, attempt, branch, last_step, f"crashed {MAX_ATTEMPTS} times without a new step")


def record_exception(db: Database, job_id: str, error: str, last_step: int | None = None, branch: int = 0) -> Job:
    """Counts an exception of a running job and keeps its text; try again only where the returned state is `running`.

    A new step since the last fault starts the count afresh; give one only where the job itself makes them.
    """
    with db.write() as connection:
        row = _row(connection, job_id)
        if row.state != JobState.RUNNING:
            return _update(connection, job_id, error=error)
        attempt = 2 if _is_new(row, branch, last_step) else row.attempt + 1
        return _attempt(connection, row, attempt, branch, last_step, error)


def _attempt(
    connection: sa.Connection, row: sa.Row[Any], attempt: int, branch: int, last_step: int | None, error: str
) -> Job:
    failed = attempt > MAX_ATTEMPTS
    values: dict[str, Any] = {
        "state": (JobState.FAILED if failed else JobState.RUNNING).value,
        "attempt": min(attempt, MAX_ATTEMPTS),
        "error": error if attempt > 1 else None,
    }
    if last_step is not None:
        values |= {"last_step": last_step, "last_branch": branch}
    return _update(connection, row.id, **values)


def _is_new(row: sa.Row[Any], branch: int, last_step: int | None) -> bool:
    if last_step is None:
        return False
    return row.last_step is None or (branch, last_step) > (row.last_branch, row.last_step)


def _update(connection: sa.Connection, job_id: str, **values: Any) -> Job:
    connection.execute(tables.jobs.update().where(COLUMNS.id == job_id).values(updated=utc_now(), **values))
    return find(connection, job_id)


def _row(connection: sa.Connection, job_id: str) -> sa.Row[Any]:
    row = connection.execute(sa.select(tables.jobs).where(COLUMNS.id == job_id)).one_or_none()
    if row is None:
        raise NotFoundError("no such job", job_id, "`stoke queue` lists them")
    return row


def _job(row: sa.Row[Any]) -> Job:
    return Job(
        id=row.id,
        kind=row.kind,
        file=row.file,
        priority=Priority(row.priority),
        state=JobState(row.state),
        progress=row.progress,
        attempt=row.attempt,
        created=row.created,
        dataset=row.dataset,
        error=row.error,
    )
