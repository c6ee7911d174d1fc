"""Durable jobs on DBOS: the client that enqueues, and how a worker launches.

Our row and DBOS's are written in one transaction and share their id. Web, command line and supervisor use `client`,
which launches nothing. A worker calls `launch`, once, under an executor id of its own that a lock holds: a second
launch under the same id would run the first's jobs twice.

A workflow is a function of one JSON object, `payload`, with at least `job`: declare it with `workflow(kind)`. It waits
for no other workflow, begins by reading what is on disk, and ends by enqueueing its successor under an id of its own
making, so that running it again enqueues nothing twice.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer, EnqueueOptions, Serializer
from dbos._serialization import DefaultSerializer
from dbos._utils import GlobalParams

from stokehold.core.errors import DuplicateError, IntegrityError, NotFoundError, StokeholdError
from stokehold.core.records import Job, JobState, Priority
from stokehold.store.blobs import BlobStore
from stokehold.store.db import control, job_rows, tables
from stokehold.store.db.database import connect, pragmas, upsert
from stokehold.store.files import utc_now
from stokehold.store.home import Home, Lock

JOBS_VERSION = "1"
"""Raise when waiting payloads or workflow names of an older release cannot be run: its jobs are then enqueued afresh.
Never the default, a hash of the source: every edit would strand every waiting job."""

APPLICATION = "stokehold"
QUEUES = ("ingest", "train", "evaluate", "upkeep")
QUEUE_OF = {
    "ingest": "ingest",
    "train": "train",
    "evaluate": "evaluate",
    "promote": "upkeep",
    "improve": "upkeep",
    "snapshot": "upkeep",
}
"""The workflows there are, and the queue each waits in."""

POLL_S = 0.25
"""How often a worker looks for work: the longest a waiting job idles; a look is one indexed read."""

ACTIVE = ("ENQUEUED", "DELAYED", "PENDING")
"""DBOS's states of a workflow that is not over."""
OVER = ("SUCCESS", "ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "CANCELLED")

FORGET_ROWS = 200
"""Records that one transaction drops."""


def serializer() -> Serializer:
    """JSON, and nothing but JSON: DBOS reads a row by the format the row names, so its pickle reader refuses too."""

    def refuse(_self: object, _data: object) -> None:
        raise IntegrityError("a pickled row was refused", "stoke.db", "somebody else wrote it; cancel the job")

    # Writing pickles stays: so DBOS marks a refused row as failed, in the row's own format, instead of trying for ever.
    setattr(DefaultSerializer, "deserialize", refuse)  # noqa: B010 -- mypy forbids assigning a method
    return DBOSPortableJSONSerializer()


def workflow(kind: str) -> Callable[[Callable[[dict[str, Any]], Any]], Callable[..., Any]]:
    """Declares the body of a workflow; its payload is one JSON object with `job`, and so is what it returns.

    Kills count as recoveries in DBOS, which gives up after 100 by default: here it never does (`job_rows.begin`
    decides what an attempt is). A scheduled run, which DBOS calls with a time and a context, gets
    `{"job": …, "scheduled": time}`.
    """
    if kind not in QUEUE_OF:
        raise StokeholdError("no such workflow", kind, f"one of {', '.join(QUEUE_OF)}")

    def declare(body: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            scheduled = not isinstance(given[0], dict)
            return body({"job": DBOS.workflow_id, "scheduled": given[0]} if scheduled else given[0])

        run.__name__ = run.__qualname__ = body.__name__
        return DBOS.workflow(name=kind, max_recovery_attempts=None)(run)

    return declare


def launch_config(home: Home, executor_id: str) -> DBOSConfig:
    """What a worker gives to DBOS; call `launch` instead, which also takes the lock of the executor id."""
    GlobalParams.dbos_cloud = False  # an environment variable must not send a user's jobs elsewhere
    config: DBOSConfig = {
        "name": APPLICATION,
        "application_version": JOBS_VERSION,
        "executor_id": executor_id,
        "serializer": serializer(),
        "log_level": "WARNING",
        "enable_otlp": False,
    }
    url = connect_url(home)
    if sa.make_url(url).get_backend_name() == "sqlite":
        config["system_database_engine"] = dbos_engine(url)
    else:
        config["system_database_url"] = url
    return config


def connect_url(home: Home) -> str:
    """The database's URL, its file and our tables made where they were missing."""
    db = connect(home)
    db.close()
    return db.url


def dbos_engine(url: str) -> sa.Engine:
    """An SQLite engine as DBOS expects it (the driver begins transactions, immediately), with our durability."""
    engine = sa.create_engine(url, pool_size=20, max_overflow=0)

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        pragmas(connection)

    return engine


class Worker:
    """A launched DBOS process; `stop` ends it in order. Killing it is fine too."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def stop(self, timeout_s: int = 30) -> None:
        """Takes no more work, waits this long for what runs, and gives the executor id back."""
        DBOS.destroy(workflow_completion_timeout_sec=timeout_s)
        self._lock.release()


def launch(home: Home, executor_id: str, queues: Sequence[str], poll_s: float = POLL_S) -> Worker:
    """Starts serving `queues` under `executor_id`, first taking up what this id was doing when it last died.

    Declare every workflow before. Raises `BusyError` where a living process holds the id.
    """
    lock = home.lock(f"executor-{executor_id}", "serving jobs")
    try:
        with client(home) as jobs:
            jobs.register_queues(poll_s)
        DBOS(config=launch_config(home, executor_id))
        DBOS.listen_queues(list(queues))
        DBOS.launch()
        # Schedules enqueue for the newest version ever registered: after a downgrade that would be nobody's.
        DBOS.set_latest_application_version(JOBS_VERSION)
    except BaseException:
        lock.release()
        raise
    return Worker(lock)


def client(home: Home) -> "JobsClient":
    """A client of the home's jobs; it launches nothing. Close it, or use it as a context."""
    return JobsClient(home)


class JobsClient:
    """Submits, enqueues, lists, cancels and retries; one per process, shared by its threads."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.db = connect(home)
        self._engine = dbos_engine(self.db.url) if self.db.engine.dialect.name == "sqlite" else self.db.engine
        self._dbos = DBOSClient(
            system_database_engine=self._engine, serializer=serializer(), application_name=APPLICATION, lazy=True
        )
        # DBOSClient never makes its tables, and the first `stoke submit` comes before the first worker.
        self._dbos._sys_db.run_migrations()
        if not {queue.name for queue in self._dbos.list_queues()}.issuperset(QUEUES):
            self.register_queues()

    def __enter__(self) -> "JobsClient":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of every connection."""
        self._dbos.destroy()
        self._engine.dispose()
        self.db.close()

    def register_queues(self, poll_s: float = POLL_S) -> None:
        """Writes the queues down. One job at a time in each worker: a limit over all workers would count the row of a
        dead one, and wait for it."""
        for name in QUEUES:
            self._dbos.register_queue(name, worker_concurrency=1, polling_interval_sec=poll_s)

    def submit_file(self, path: Path, priority: Priority = Priority.NORMAL, again: bool = False) -> Job:
        """Takes a file in: its content into the blob store, an `ingest` job into the queue, in that order.

        The payload has `file` (its name), `path`, `content_hash`, `blob` (where the content is, whatever becomes of
        `path`) and `bytes`. Raises `DuplicateError` for content that waits or was trained, unless `again`.
        """
        if not path.is_file():
            raise NotFoundError("no such file", str(path), "check the path")
        content = (store := BlobStore(self.home.blobs, self.home.disk)).add(path)
        blob, job_id = store.path(content), new_id("ingest")
        size = blob.stat().st_size
        payload = {"file": path.name, "path": str(path.absolute()), "content_hash": content, "blob": str(blob)}
        with self.db.write() as connection:
            if not again and (reason := _duplicate(connection, content)):
                raise DuplicateError(reason, str(path), "`--again` to repeat")
            upsert(
                tables.files,
                connection,
                content_hash=content,
                name=path.name,
                bytes=size,
                job=job_id,
                dataset=None,
                submitted=utc_now(),
            )
            return self._enqueue(connection, "ingest", payload | {"bytes": size}, priority, job_id)

    def enqueue(
        self,
        kind: str,
        payload: Mapping[str, Any],
        priority: Priority = Priority.NORMAL,
        job_id: str | None = None,
    ) -> Job:
        """Puts a job into its kind's queue; `job` is added to the payload. A `job_id` that is known changes nothing."""
        with self.db.write() as connection:
            return self._enqueue(connection, kind, payload, priority, job_id or new_id(kind))

    def list_jobs(self, states: Sequence[JobState] | None = None, limit: int | None = None) -> list[Job]:
        """As `job_rows.list_jobs`."""
        return job_rows.list_jobs(self.db, states, limit)

    def cancel(self, job_id: str) -> Job:
        """A waiting job never runs; a running one leaves at its next step (training), between two batches (in an
        evaluator of its own) or ends unheeded.

        DBOS does not interrupt a running step: a running train job is asked by the control row to skip its file.
        """
        before = job_rows.get_job(self.db, job_id)
        if before.state not in (*job_rows.UNFINISHED, JobState.PARTIAL):
            return before
        after = job_rows.set_state(self.db, job_id, JobState.CANCELLED)
        self._dbos.cancel_workflow(job_id)
        if before.kind == "train" and before.state in (JobState.RUNNING, JobState.PAUSED):
            control.request(self.db, "skip")
        return after

    def retry(self, job_id: str) -> Job:
        """Enqueues a job that is over once more, under its own id; it takes up what its last run left on disk."""
        before = job_rows.get_job(self.db, job_id)
        if before.state in (*job_rows.UNFINISHED, JobState.COMPLETED):
            raise StokeholdError(f"the job is {before.state.value}", job_id, "only a job that ended short is retried")
        after = job_rows.set_state(self.db, job_id, JobState.QUEUED)
        self._afresh(after)
        return after

    def adopt_old_versions(self) -> list[str]:
        """Enqueues afresh what another `JOBS_VERSION` left unfinished; call it while none of its workers lives."""
        found = self._workflows()
        old = [j for j in self._unfinished() if j.id in found and found[j.id].app_version != JOBS_VERSION]
        return [self._afresh(job) for job in old if found[job.id].status in ACTIVE]

    def adopt_from(self, executor_id: str) -> list[str]:
        """Gives the unfinished jobs of a worker that will not come back to the others; `BusyError` while it lives."""
        with self.home.lock(f"executor-{executor_id}", "handing its jobs on"):
            found = self._workflows()
            left = [j for j in self._unfinished() if j.id in found and found[j.id].status == "PENDING"]
            return [self._afresh(job) for job in left if found[job.id].executor_id == executor_id]

    def reconcile(self) -> list[str]:
        """Makes DBOS's rows agree with ours after a restored database or a crash between two calls; returns the ids.

        An unfinished job without a living workflow is enqueued afresh; one whose workflow died of an exception while
        it ran has failed.
        """
        found, changed = self._workflows(), []
        for job in self._unfinished():
            status = found[job.id].status if job.id in found else None
            if status in ACTIVE:
                continue
            if job.state is JobState.RUNNING and status not in (None, "CANCELLED"):
                job_rows.set_state(self.db, job.id, JobState.FAILED, f"its workflow ended as {status}")
            else:
                self._afresh(job)
            changed.append(job.id)
        return changed

    def schedule(self, name: str, kind: str, cron: str, timezone: str, mark: str | None = None) -> None:
        """Runs `kind` at the times of `cron` in an IANA time zone; a time missed while nothing ran is not made up."""
        self._dbos.apply_schedules(
            [
                {
                    "schedule_name": name,
                    "workflow_name": kind,
                    "schedule": cron,
                    "context": mark,
                    "queue_name": QUEUE_OF[kind],
                    "cron_timezone": timezone,
                    "automatic_backfill": False,
                }
            ]
        )

    def restart_schedules(self, mark: str) -> list[str]:
        """Lets every schedule work out anew how long it has to wait; returns their names.

        DBOS waits a number of seconds for a time of day. While a machine sleeps they do not pass, and when the clock is
        set they are the wrong ones. A schedule whose context changed begins again: `mark` must be another each time.
        """
        there = self._dbos.list_schedules()
        for one in there:
            zone = one.get("cron_timezone")
            self.schedule(one["schedule_name"], one["workflow_name"], one["schedule"], zone or "UTC", mark)
        return [one["schedule_name"] for one in there]

    def forget(self, before: str, dry_run: bool = False) -> int:
        """Drops DBOS's records of runs that ended before this time, ISO 8601; our row of the job stays. How many."""
        bound_ms = datetime.fromisoformat(before).timestamp() * 1000
        found = self._dbos.list_workflows(status=list(OVER), end_time=before, load_input=False, load_output=False)
        ids = [one.workflow_id for one in found if (one.updated_at or 0) < bound_ms]
        for at in range(0, 0 if dry_run else len(ids), FORGET_ROWS):
            self._dbos.delete_workflows(ids[at : at + FORGET_ROWS])
        return len(ids)

    def trigger(self, name: str) -> str:
        """Enqueues one run of a schedule now; returns the job's id."""
        return self._dbos.trigger_schedule(name).get_workflow_id()

    def _enqueue(
        self, connection: sa.Connection, kind: str, payload: Mapping[str, Any], priority: Priority, job_id: str
    ) -> Job:
        if kind not in QUEUE_OF:
            raise StokeholdError("no such kind of job", kind, f"one of {', '.join(QUEUE_OF)}")
        whole = {**payload, "job": job_id}
        job = job_rows.insert(connection, job_id, kind, priority, whole)
        if job is None:
            return job_rows.find(connection, job_id)
        self._dbos.enqueue_in_transaction(connection, _options(job), whole)
        return job

    def _afresh(self, job: Job) -> str:
        """The same workflow id from its beginning, of this version; a crash in between is for `reconcile`."""
        if job.id in self._workflows(job.id):
            self._dbos.cancel_workflow(job.id)
            self._dbos.rewind_workflow(job.id, application_version=JOBS_VERSION, queue_name=QUEUE_OF[job.kind])
        else:
            self._dbos.enqueue(_options(job), job_rows.get_payload(self.db, job.id))
        return job.id

    def _unfinished(self) -> list[Job]:
        return job_rows.list_jobs(self.db, job_rows.UNFINISHED)

    def _workflows(self, job_id: str | None = None) -> dict[str, Any]:
        ids = [job_id] if job_id is not None else [job.id for job in self._unfinished()]
        rows = self._dbos.list_workflows(workflow_ids=ids, load_input=False, load_output=False) if ids else []
        return {row.workflow_id: row for row in rows}


def new_id(kind: str) -> str:
    """A fresh job id: readable, and as unique as 64 random bits."""
    return f"{kind}-{uuid4().hex[:16]}"


def _options(job: Job) -> EnqueueOptions:
    return {
        "workflow_name": job.kind,
        "queue_name": QUEUE_OF[job.kind],
        "workflow_id": job.id,
        "app_version": JOBS_VERSION,
        "priority": job.priority.rank,
    }


def _duplicate(connection: sa.Connection, content: str) -> str | None:
    """Why this content is not taken again, or None: it is new, or what became of it did not end well."""
    row = connection.execute(sa.select(tables.files).where(tables.files.c.content_hash == content)).one_or_none()
    if row is None:
        return None
    jobs, mine = tables.jobs, tables.jobs.c.id == row.job
    if row.dataset is not None:
        mine = sa.or_(mine, sa.and_(jobs.c.dataset == row.dataset, jobs.c.kind.in_(("ingest", "train"))))
    newest = sa.select(jobs).where(mine).order_by(jobs.c.created.desc(), jobs.c.kind.desc()).limit(1)
    job = connection.execute(newest).one_or_none()
    if job is None or job.state in (JobState.FAILED, JobState.CANCELLED):
        return None
    if job.state in job_rows.UNFINISHED:
        return f"already in the queue as {job.id} ({job.state})"
    if job.state == JobState.PARTIAL:
        return f"already trained in part as {row.dataset}; `stoke retry {job.id}` takes it up"
    done = "trained" if job.kind == "train" else "accepted"
    return f"already {done} as {row.dataset or job.id} on {job.updated[:10]}"
