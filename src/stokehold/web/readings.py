"""What the page shows, as JSON-ready values: one reading a second at most, shared by everybody who looks.

Records that never change (evaluations with their readings, versions) are read from disk once.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.records import Evaluation, Job, JobState, Version
from stokehold.store.db import control, events, job_rows, tables
from stokehold.store.db.database import Database
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import versions
from stokehold.supervisor.status import payload
from stokehold.supervisor.trends import pooled
from stokehold.web.curve import Curve, read_curve
from stokehold.web.findings import findings

FRESH_S = 0.9
"""A reading this young is given again: however many look, the database is asked once a second."""

FINISHED_SHOWN = 20
EVALUATIONS_SHOWN = 200
EVENTS_SHOWN = 50
EVENTS_MOST = 1000


class Readings:
    """Reads one home. Its methods may be called from many threads."""

    def __init__(self, home: Home, db: Database) -> None:
        self.home, self.db = home, db
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._kept: dict[str, tuple[float, Any]] = {}
        self._judgements: dict[str, Evaluation] = {}
        self._found: tuple[str, list[dict[str, Any]]] | None = None

    def status(self) -> dict[str, Any]:
        """The status payload."""
        found: dict[str, Any] = self._shared("status", lambda: payload(self.home, self.db))
        return found

    def queue(self) -> list[dict[str, Any]]:
        """Unfinished jobs in the order they will run, then the newest finished ones."""
        found: list[dict[str, Any]] = self._shared("queue", self._queue)
        return found

    def versions(self) -> dict[str, Any]:
        """`champion` (a name or None) and `versions`, newest first, each with its held-out exact share."""
        found: dict[str, Any] = self._shared("versions", self._versions)
        return found

    def evaluations(self) -> list[dict[str, Any]]:
        """Evaluations oldest first, at most `EVALUATIONS_SHOWN`."""
        found: list[dict[str, Any]] = self._shared("evaluations", self._evaluations)
        return found

    def findings(self) -> dict[str, Any]:
        """`evaluation`, `ref`, `created` of the newest evaluation (None without one) and its eight `readings`."""
        found: dict[str, Any] = self._shared("findings", self._findings)
        return found

    def events(self, since: int | None = None, limit: int = EVENTS_SHOWN) -> list[dict[str, Any]]:
        """Events oldest first: those after number `since`, or the newest."""
        found = events.events(self.db, since, max(0, min(limit, EVENTS_MOST)))
        return [asdict(event) for event in found]

    def recent_events(self) -> list[dict[str, Any]]:
        """The newest events, oldest first."""
        found: list[dict[str, Any]] = self._shared("events", self.events)
        return found

    def curve(self, since: int = -1) -> Curve:
        """The journal above step `since`; the whole of it is shared."""
        if since >= 0:
            return read_curve(self.db, since)
        found: Curve = self._shared("curve", lambda: read_curve(self.db))
        return found

    def control(self, command: control.Command) -> None:
        """Asks the trainer; it obeys within one step."""
        control.request(self.db, command)
        events.record(self.db, "control", f"{command} was asked for on the page")

    def _queue(self) -> list[dict[str, Any]]:
        waiting = job_rows.list_jobs(self.db, job_rows.UNFINISHED)
        over = job_rows.list_jobs(self.db, set(JobState) - set(job_rows.UNFINISHED), limit=FINISHED_SHOWN)
        ordered = sorted(waiting, key=lambda job: (job.state is JobState.QUEUED, job.priority.rank, job.created))
        return [_job(job) for job in (*ordered, *reversed(over))]

    def _versions(self) -> dict[str, Any]:
        found = versions.list_versions(self.home)
        return {"champion": versions.alias(self.db), "versions": [self._version(v) for v in reversed(found)]}

    def _version(self, version: Version) -> dict[str, Any]:
        shown = {name: getattr(version, name) for name in ("name", "step", "parent", "evaluation", "note", "created")}
        evaluation = self._evaluation(version.evaluation) if version.evaluation else None
        exact = pooled(evaluation, "exact") if evaluation else None
        return shown | {"weights_hash": version.weights_hash, "exact": exact}

    def _evaluations(self) -> list[dict[str, Any]]:
        column = tables.evaluations.c
        query = sa.select(column.id, column.verdict, column.decision)
        with self.db.read() as connection:
            rows = connection.execute(query.order_by(column.created.desc(), column.id).limit(EVALUATIONS_SHOWN)).all()
        found = ((self._evaluation(row.id), row) for row in reversed(rows))
        return [_judged(evaluation, row.verdict, row.decision) for evaluation, row in found if evaluation]

    def _findings(self) -> dict[str, Any]:
        newest = self.evaluations()[-1:]
        evaluation = self._evaluation(newest[0]["id"]) if newest else None
        if evaluation is None:
            return {"evaluation": None, "ref": None, "created": None, "readings": []}
        if self._found is None or self._found[0] != evaluation.id:
            self._found = (evaluation.id, [finding._asdict() for finding in findings(self.home, evaluation)])
        named = {"evaluation": evaluation.id, "ref": evaluation.ref, "created": evaluation.created}
        return named | {"readings": self._found[1]}

    def _evaluation(self, evaluation_id: str) -> Evaluation | None:
        """The record, or None where its folder is gone, or damaged, of which an alert tells."""
        if evaluation_id not in self._judgements:
            try:
                self._judgements[evaluation_id] = evaluations.load(self.home, evaluation_id)
            except (NotFoundError, IntegrityError):
                return None
        return self._judgements[evaluation_id]

    def _shared(self, name: str, read: Callable[[], Any]) -> Any:
        with self._locks[name]:
            taken_s, value = self._kept.get(name, (float("-inf"), None))
            if time.monotonic() - taken_s > FRESH_S:
                value = read()
                self._kept[name] = (time.monotonic(), value)
            return value


def _judged(evaluation: Evaluation, verdict: str | None, decision: str | None) -> dict[str, Any]:
    named = ("id", "ref", "step", "weights_hash", "seconds", "created")
    shown = {name: getattr(evaluation, name) for name in named} | {"verdict": verdict, "decision": decision}
    suites = {name: asdict(result) for name, result in evaluation.suites.items()}
    return shown | {"exact": pooled(evaluation, "exact"), "suites": suites}


def _job(job: Job) -> dict[str, Any]:
    """A job in the shape of `stoke queue --json`."""
    named = ("id", "file", "kind", "priority", "state", "progress", "attempt", "created")
    shown = {name: getattr(job, name) for name in named}
    return shown if job.error is None else shown | {"error": job.error}
