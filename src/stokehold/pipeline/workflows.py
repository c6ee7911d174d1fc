"""One file's journey as durable workflows: ingest, train, evaluate, promote, improve.

Each begins by reading what is on disk, so that running it again after a kill repeats nothing, and ends by enqueueing
its successor under an id derived from its own. None waits for another. An exception is an attempt; the third in a row
fails the job with its class, message and traceback, and everything else goes on.
"""

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from stokehold.core.errors import DiskFullError, DivergenceError, InputError, is_full
from stokehold.core.records import Checkpoint, Evaluation, Job, JobState, Priority
from stokehold.data.profile import profile_of
from stokehold.data.tokenizer import load_tokenizer
from stokehold.evaluation.promotion import Action
from stokehold.pipeline.device import DeviceQueue
from stokehold.pipeline.improve import write_next_file
from stokehold.pipeline.ingest import ingest_file
from stokehold.pipeline.promote import TAKEN_BACK
from stokehold.pipeline.trainer import Trainer
from stokehold.store.blobs import BlobStore
from stokehold.store.db import control, events, job_rows, journal
from stokehold.store.db.database import Database
from stokehold.store.db.jobs import JobsClient, workflow
from stokehold.store.failpoints import reach
from stokehold.store.files import hash_file
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import references, versions
from stokehold.training.loop import Outcome


class Place(Protocol):
    """Where workflows run: a process with a home, its jobs, and one thread that owns a device."""

    @property
    def home(self) -> Home: ...

    @property
    def jobs(self) -> JobsClient: ...

    @property
    def device(self) -> DeviceQueue: ...


@dataclass(frozen=True)
class Workshop:
    """What the workflows of a trainer's process share."""

    home: Home
    jobs: JobsClient
    device: DeviceQueue
    trainer: Trainer


LOG = logging.getLogger(__name__)
TRACE_CHARS = 8000
ROOM_POLL_S, ROOM_POLL_MOST_S = 5.0, 60.0
"""Seconds between two looks at a full disk, at first and at most; each may write a part of what did not fit."""

HASH_CHARS = 8
P = TypeVar("P", bound=Place)
T = TypeVar("T")
Stage = Callable[[P, Mapping[str, Any]], JobState]


def declare(workshop: P, stages: Mapping[str, Stage[P]]) -> None:
    """Declares every workflow of this process; call it before `jobs.launch`."""
    for kind, stage in stages.items():
        workflow(kind)(_runner(workshop, kind, stage))


def _runner(workshop: P, kind: str, stage: Stage[P]) -> Callable[[dict[str, Any]], str]:
    def run(payload: dict[str, Any]) -> str:
        return run_stage(workshop, stage, payload).value

    run.__name__ = kind
    return run


def run_stage(workshop: P, stage: Stage[P], payload: Mapping[str, Any]) -> JobState:
    """Runs a stage until it ends or has failed for good; the job's row says which."""
    db, job_id = workshop.jobs.db, str(payload["job"])
    job = with_room(db, job_id, lambda: job_rows.begin(db, job_id, *_place(workshop)))
    while job.state is JobState.RUNNING:
        try:
            state = with_room(db, job_id, lambda: stage(workshop, payload))
        except Exception as error:  # noqa: BLE001 - stored with its traceback, retried, at last failed: never swallowed
            job = with_room(db, job_id, partial(record_failure, workshop, job_id, error))
        else:
            return with_room(db, job_id, partial(settle, workshop, job_id, state))
    return job.state


def with_room(db: Database, job_id: str, do: Callable[[], T]) -> T:
    """What `do` returns. A full disk is no attempt: it is done again, and again, until there is room."""
    told, waits = False, pauses()
    while True:
        try:
            return do()
        except Exception as error:
            if not is_full(error):
                raise
            told = told or _tell_full(db, job_id, error)
        time.sleep(next(waits))


def pauses() -> Iterator[float]:
    """Seconds to wait for room, each time longer: what is tried in vain may be hours of work."""
    seconds = ROOM_POLL_S
    while True:
        yield seconds
        seconds = min(2 * seconds, ROOM_POLL_MOST_S)


def _tell_full(db: Database, job_id: str, error: Exception) -> bool:
    """Tells it in the log, and as an event; False where the database has no room for that either."""
    LOG.warning("%s: %s; it goes on when there is room", job_id, error)
    try:
        events.record(db, "disk_full", f"{job_id}: {error}; it goes on when there is room", job=job_id)
    except DiskFullError:
        return False
    return True


def settle(workshop: Place, job_id: str, state: JobState, reason: str | None = None) -> JobState:
    """Ends a job once: one that is over, its training taken back since perhaps, is left as it is."""
    job = job_rows.get_job(workshop.jobs.db, job_id)
    over = job.state not in job_rows.UNFINISHED
    return job.state if over else job_rows.set_state(workshop.jobs.db, job_id, state, reason).state


def record_failure(workshop: Place, job_id: str, error: Exception) -> Job:
    """Stores the exception; bad input and divergence fail at once, since the same bytes would do the same again.

    Steps are a sign of getting on for the job that trains, and for no other that runs meanwhile.
    """
    db, kind = workshop.jobs.db, type(error).__name__
    hopeless = isinstance(error, InputError | DivergenceError)
    text = str(error) if hopeless else f"{kind}: {error}"
    trace = "".join(traceback.format_exception(error))[-TRACE_CHARS:]
    events.record(db, "job_failed", f"{job_id}: {text}", job=job_id, error=kind, traceback=trace)
    if hopeless:
        return job_rows.set_state(db, job_id, JobState.FAILED, text)
    trains = job_rows.get_job(db, job_id).kind == "train"
    return job_rows.record_exception(db, job_id, text, *(_place(workshop) if trains else (None, 0)))


def ingest(workshop: Workshop, payload: Mapping[str, Any]) -> JobState:
    home, db = workshop.home, workshop.jobs.db
    tokenizer = load_tokenizer(references.resolve(home, db, "base"), profile_of(home.config().data))
    source = BlobStore(home.blobs, home.disk).path(payload["content_hash"])  # wherever the home is now
    dataset = ingest_file(home, home.config(), tokenizer, source, payload["content_hash"], payload["file"])
    reach("dataset.published")
    job_rows.set_dataset(db, payload["job"], dataset.id)
    priority = job_rows.get_job(db, payload["job"]).priority
    run = str(payload["job"]).split("-", 1)[1]
    follow(workshop, payload, "train", {"file": payload["file"], "dataset": dataset.id, "run": run}, priority)
    reach("ingest.enqueued")
    clear_inbox(home, Path(payload["path"]), payload["content_hash"])
    note = f"{dataset.accepted} rows, {dataset.held_out} held out, {dataset.rejected} rejected"
    events.record(db, "ingested", f"{dataset.file}: {note}", dataset=dataset.id)
    return JobState.COMPLETED


def train(workshop: Workshop, payload: Mapping[str, Any]) -> JobState:
    """Trains the file and, on the same device, judges what came of it before the next file may begin.

    With an evaluator of its own the judging is handed over, and the next file begins.
    """
    trainer, job, run = workshop.trainer, payload["job"], payload["run"]
    return workshop.device.run_then(
        lambda: trainer.train(job, run, payload["dataset"]), lambda outcome: _end_training(workshop, payload, outcome)
    )


def _end_training(workshop: Workshop, payload: Mapping[str, Any], outcome: Outcome) -> JobState:
    """Writes down how training a file ended, on the device's thread: what takes it back comes before it or after."""
    db, job, made = workshop.jobs.db, payload["job"], outcome.checkpoint
    events.record(db, outcome.state.value, f"{payload['file']}: {outcome.reason}", step=made.step)
    if outcome.reason == "skipped":
        requeue(workshop, payload)
    if workshop.trainer.hand_over is not None:
        if outcome.to_judge:
            workshop.trainer.hand_over(job, payload["file"], made)
    elif outcome.state is JobState.COMPLETED or outcome.reason == TAKEN_BACK:
        follow(
            workshop,
            payload,
            "evaluate",
            {"file": payload["file"], "step": made.step, "weights": made.weights_hash},
        )
    reach("train.ended")
    settle(workshop, job, outcome.state, None if outcome.state is JobState.COMPLETED else outcome.reason)
    # Last, so that a kill before it asks again; and whatever the end was, for the request was meant for this file.
    control.done(db, "stop")
    control.done(db, "skip")
    return outcome.state


def hand_over(jobs: JobsClient, job: str, file: str, checkpoint: Checkpoint) -> Job:
    """Enqueues the evaluation of a checkpoint of this train job; the same weights once."""
    weights = checkpoint.weights_hash
    facts = {"file": file, "step": checkpoint.step, "weights": weights}
    stem = job.split("-", 1)[1]
    return jobs.enqueue("evaluate", facts, job_id=f"evaluate-{stem}-{weights[:HASH_CHARS]}")


def requeue(workshop: Workshop, payload: Mapping[str, Any]) -> None:
    """Sends a skipped file to the end of the queue, with its cursor; a cancelled one stays away."""
    if job_rows.get_job(workshop.jobs.db, payload["job"]).state is not JobState.CANCELLED:
        skips = payload.get("skips", 0) + 1
        facts = {**{key: payload[key] for key in ("file", "dataset", "run")}, "skips": skips}
        workshop.jobs.enqueue("train", facts, Priority.LOW, f"train-{payload['run']}-skip{skips}")


def evaluate(workshop: Workshop, payload: Mapping[str, Any]) -> JobState:
    """Sees to it that the file's last weights are judged: they are, unless there was no suite then."""
    return see_judged(workshop, payload, workshop.trainer.evaluate_step)


def see_judged(workshop: Place, payload: Mapping[str, Any], judge: Callable[[int, str], Evaluation | None]) -> JobState:
    """Has the weights of a step judged unless that led to a decision before, and lets the decision follow.

    `judge(step, weights_hash)` runs on the device's thread, and finds its own earlier evaluation of them.
    """
    db, step, weights = workshop.jobs.db, payload["step"], payload["weights"]
    judged = evaluations.list_evaluations(workshop.home, db, weights)
    done = next((found for found in judged if evaluations.decided(db, found.id)[1]), None)
    done = done or workshop.device.run(lambda: judge(step, weights))
    if done is not None:
        facts = {"file": payload["file"], "evaluation": done.id, "step": step}
        follow(workshop, payload, "promote", facts)
    return JobState.COMPLETED


def promote(workshop: Workshop, payload: Mapping[str, Any]) -> JobState:
    """Sees to it that the evaluation was decided upon, and lets what it showed become the next file.

    A file that is being trained meanwhile is left between two steps, and begun again where the decision is to go back.
    """
    if evaluations.decided(workshop.jobs.db, payload["evaluation"])[1] is None:
        evaluation = evaluations.load(workshop.home, payload["evaluation"])
        workshop.device.run_between(lambda: decide(workshop, evaluation))
    follow(workshop, payload, "improve", {"file": payload["file"], "evaluation": payload["evaluation"]})
    return JobState.COMPLETED


def decide(workshop: Workshop, evaluation: Evaluation) -> None:
    """Lets the trainer decide. Files that began on weights which are taken back, and had no part in them, are enqueued
    again: on the champion they are another training. The device's thread does it, between two steps."""
    db = workshop.jobs.db
    begun = begun_after(db, evaluation.step or 0, workshop.home)
    workshop.trainer.decide(evaluation)
    if evaluations.decided(db, evaluation.id)[1] != Action.ROLLBACK:
        return
    for job in begun:
        facts = {key: value for key, value in job_rows.get_payload(db, job.id).items() if key != "job"}
        name = f"train-{facts['run']}-{evaluation.id[:HASH_CHARS]}"
        workshop.jobs.enqueue("train", facts, job.priority, name)


def begun_after(db: Database, step: int, home: Home) -> list[Job]:
    """Train jobs, done or at work, all of whose steps since the champion's are later than this one."""
    name = versions.alias(db)
    since = (versions.find_version(home, name).step if name else None) or 0
    early = {row.job for row in journal.steps(db, since, limit=max(0, step - since))}
    late = journal.jobs_after(db, step)
    found = [job for job in job_rows.list_jobs(db, (JobState.RUNNING, JobState.COMPLETED)) if job.kind == "train"]
    return [job for job in found if job.id not in early and (job.id in late or job.state is JobState.RUNNING)]


def improve(workshop: Workshop, payload: Mapping[str, Any]) -> JobState:
    written = write_next_file(workshop.home, workshop.jobs, payload["evaluation"], payload["job"])
    events.record(workshop.jobs.db, "improve", written.reason, file=written.file)
    return JobState.COMPLETED


STAGES: Mapping[str, Stage[Workshop]] = {
    "ingest": ingest,
    "train": train,
    "evaluate": evaluate,
    "promote": promote,
    "improve": improve,
}


def follow(
    workshop: Place,
    payload: Mapping[str, Any],
    kind: str,
    facts: Mapping[str, Any],
    priority: Priority = Priority.NORMAL,
) -> None:
    """Enqueues the successor; its id follows from ours, so a repeated stage enqueues it once."""
    stem = str(payload["job"]).split("-", 1)[1]
    workshop.jobs.enqueue(kind, facts, priority, f"{kind}-{stem}")


def clear_inbox(home: Home, path: Path, content: str) -> None:
    """Takes the submitted file out of the inbox, now that a published dataset holds exactly its content."""
    if path.is_relative_to(home.inbox) and path.is_file() and hash_file(path) == content:
        path.unlink()


def _place(workshop: Place) -> tuple[int | None, int]:
    last = journal.last_step(workshop.jobs.db)
    return (None, 0) if last is None else (last.step, last.branch)
