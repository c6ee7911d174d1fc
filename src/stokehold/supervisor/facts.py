"""What the status payload and the alerts are made of: one consistent reading of a home, taken as it is now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import psutil
import sqlalchemy as sa

from stokehold.core.config import Config
from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.records import Evaluation, Job, JobState, Step
from stokehold.store.backup import drills, offsite
from stokehold.store.datasets import load_dataset
from stokehold.store.db import control, job_rows, journal, tables
from stokehold.store.db.database import Database
from stokehold.store.db.journal import TrainingSample
from stokehold.store.files import utc_now
from stokehold.store.home import Home
from stokehold.store.housekeeping import space
from stokehold.store.judged import evaluations, suites
from stokehold.store.transfer import evaluation_requests
from stokehold.supervisor.trainer import Trainer, read_trainer
from stokehold.supervisor.trends import EMA_STEPS, streaming_ce
from stokehold.telemetry import clock

SAMPLES_READ = 120
EVALUATIONS_READ = 60
CHILDREN_FILE = "supervisor.json"


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory and disk of this machine, in units of 10^9 bytes; None where the system does not tell."""

    ram_used_gb: float | None = None
    ram_total_gb: float | None = None
    ram_percent: float | None = None
    disk_free_gb: float | None = None
    disk_free_share: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything known; sequences are in time order, the newest last.

    `steps`: the last of the journal; `job_steps`: steps since the first of the present file; `job_examples`: what
    that file gives in all its epochs; `matches`: of the last in-training samples; `sampled`, `correct`: of all of
    them; `evaluations`: those of training, on the newest one's suites; `judged_loss`: the mean training loss at the
    newest one's step, nats per token; `damaged`: what is wrong with each evaluation that cannot be read; `children`:
    what the supervisor says of its processes; `boot_s`: when this was, in seconds since the machine was started;
    `node_silence_s`: as `evaluation_requests.silence_s`.
    """

    config: Config
    now: str
    trainer: Trainer | None = None
    command: str | None = None
    current_job: Job | None = None
    waiting_files: int = 0
    unfinished_jobs: int = 0
    started_files: int = 0
    last_file_state: JobState | None = None
    steps: Sequence[Step] = ()
    job_steps: int = 0
    job_examples: int | None = None
    sample: TrainingSample | None = None
    matches: Sequence[bool] = ()
    sampled: int = 0
    correct: int = 0
    evaluations: Sequence[Evaluation] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)
    judged_loss: float | None = None
    suites: int = 0
    machine: Machine = Machine()
    context_tokens: int | None = None
    drill: drills.Drill | None = None
    backup: offsite.Standing | None = None
    children: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    boot_s: float = 0.0
    node_silence_s: float | None = None


def gather(home: Home, db: Database) -> Facts:
    """Reads everything; what it reads of the journal is the same however long the run."""
    config = home.config()
    trainer = read_trainer(home.status)
    unfinished = job_rows.list_jobs(db, job_rows.UNFINISHED)
    current = _current_job(unfinished, trainer)
    last = journal.last_step(db)
    steps = journal.steps(db, since=last.step - EMA_STEPS - 1) if last is not None else []
    samples = journal.latest_samples(db, SAMPLES_READ)
    judged, damaged = evaluations.list_readable(home, db, EVALUATIONS_READ)
    series = _series(judged)
    sampled, correct = journal.sample_counts(db)
    return Facts(
        config=config,
        now=utc_now(),
        trainer=trainer,
        command=control.current(db),
        current_job=current,
        waiting_files=sum(job.state is JobState.QUEUED and job.kind in ("ingest", "train") for job in unfinished),
        unfinished_jobs=len(unfinished),
        started_files=_started_files(db),
        last_file_state=_last_file_state(db),
        steps=steps,
        job_steps=_job_steps(db, last) if last is not None and current is not None and last.job == current.id else 0,
        job_examples=_examples_of(home, current.dataset, config) if current and current.dataset else None,
        sample=samples[0] if samples else None,
        matches=[sample.match for sample in reversed(samples)],
        sampled=sampled,
        correct=correct,
        evaluations=series,
        damaged=damaged,
        judged_loss=_loss_at(db, series[-1].step) if series else None,
        suites=len(config.evaluation.suites or suites.suite_names(home)),
        machine=_machine(home),
        context_tokens=_context_tokens(str(home.root / config.model.base)) if config.model.base else None,
        drill=drills.latest(home),
        backup=offsite.standing(home, config.store.backup_to),
        children=read_children(home),
        boot_s=clock.boot_s(),
        node_silence_s=evaluation_requests.silence_s(home),
    )


def read_children(home: Home) -> list[Mapping[str, Any]]:
    """The supervisor's children as it last wrote them; none when no supervisor ever ran here."""
    try:
        written = orjson.loads((home.status / CHILDREN_FILE).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return []
    return list(written.get("children", ())) if isinstance(written, dict) else []


def _current_job(unfinished: Sequence[Job], trainer: Trainer | None) -> Job | None:
    """The train job at work: the one the trainer names, else the one that runs."""
    named = trainer.job if trainer is not None else None
    at_work = [job for job in unfinished if job.kind == "train" and job.state is not JobState.QUEUED]
    return next((job for job in unfinished if job.id == named), at_work[0] if at_work else None)


def _series(judged: Sequence[Evaluation]) -> list[Evaluation]:
    """Of these, newest first, those of training steps over the same suites as the newest, oldest first."""
    found = [e for e in judged if e.step is not None]
    return [e for e in reversed(found) if e.suites.keys() == found[0].suites.keys()]


def _started_files(db: Database) -> int:
    column = tables.jobs.c
    query = sa.select(sa.func.count()).where(column.kind == "train", column.state != JobState.QUEUED.value)
    with db.read() as connection:
        return int(connection.execute(query).scalar() or 0)


def _last_file_state(db: Database) -> JobState | None:
    """How the newest train job that is not waiting stands."""
    column = tables.jobs.c
    query = sa.select(column.state).where(column.kind == "train", column.state != JobState.QUEUED.value)
    with db.read() as connection:
        state = connection.execute(query.order_by(column.updated.desc()).limit(1)).scalar()
    return None if state is None else JobState(state)


def _job_steps(db: Database, last: Step) -> int:
    """Steps since the first of the job that took the last one."""
    first = journal.first_step(db, last.job)
    return 0 if first is None else last.step - first + 1


def _examples_of(home: Home, dataset: str, config: Config) -> int | None:
    """Rows of this dataset times the epochs; None where its folder does not read, which `doctor` tells."""
    try:
        record = load_dataset(home, dataset)
    except (IntegrityError, NotFoundError):
        return None
    return (record.accepted - record.held_out) * config.training.epochs


def _loss_at(db: Database, step: int | None) -> float | None:
    """The exponential mean of the training loss when that step had been taken."""
    if step is None:
        return None
    before = journal.steps(db, since=step - EMA_STEPS, limit=EMA_STEPS)
    return streaming_ce([one.loss for one in before if one.step <= step])


def _machine(home: Home) -> Machine:
    memory, disk = psutil.virtual_memory(), space.room(home.root)
    return Machine(
        ram_used_gb=(memory.total - memory.available) / 1e9,
        ram_total_gb=memory.total / 1e9,
        ram_percent=memory.percent,
        disk_free_gb=disk.free / 1e9,
        disk_free_share=disk.share,
    )


@lru_cache(maxsize=8)
def _context_tokens(base: str) -> int | None:
    """The longest input the base model was built for; bases never change."""
    path = Path(base) / "config.json"
    if not path.is_file():
        return None
    written = orjson.loads(path.read_bytes())
    found = written.get("text_config", written).get("max_position_embeddings")
    return found if isinstance(found, int) else None
