"""`stoke train`: the same trainer in the foreground, no daemon; killing the command kills the work.

`python -m stokehold.pipeline.foreground --home H FILE… [--steps N] [--resume] [--json]`
"""

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from stokehold.core.errors import DuplicateError, InputError, StokeholdError, UsageError
from stokehold.core.records import Job, JobState
from stokehold.core.records import Step as StepRecord
from stokehold.core.shares import percent
from stokehold.data.profile import profile_of
from stokehold.data.tokenizer import ChatTokenizer, load_tokenizer
from stokehold.pipeline.device import Leaving
from stokehold.pipeline.ingest import DATASET_ID_CHARS, ingest_file
from stokehold.pipeline.trainer import Trainer
from stokehold.pipeline.worker import Leave, use_threads
from stokehold.pipeline.workflows import TRACE_CHARS
from stokehold.store.db import control, events, job_rows, journal
from stokehold.store.db.database import Database, connect
from stokehold.store.files import hash_file
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.models import checkpoints, references
from stokehold.training.loop import ENDS, Hooks
from stokehold.training.state import Progress as Trained

LINE_S = 10.0
"""Seconds between two plain lines where stderr is no terminal."""

RATE_MEMORY = 0.9
"""Share of the speed shown that comes from earlier steps."""

NAME_CHARS = 28
ENDS_THE_RUN = (ENDS["stop"], ENDS["leave"])


class Meter:
    """How long work gets on, on stderr: a bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            TextColumn("{task.fields[done]:>5}  {task.fields[facts]}", markup=False),
        )
        self._bar = Progress(*columns, console=self._console, transient=True, redirect_stdout=False)
        self._task: TaskID | None = None
        self._line_s = 0.0

    def __enter__(self) -> "Meter":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def show(self, name: str, share: float, facts: str) -> None:
        """`share` of the work in [0, 1] is done; `facts` is a few words on how it goes."""
        if self._console.is_terminal:
            self._task = self._bar.add_task("", total=1.0, done="", facts="") if self._task is None else self._task
            done = percent(share, 0)
            self._bar.update(self._task, description=name[-NAME_CHARS:], completed=share, done=done, facts=facts)
        elif time.monotonic() >= self._line_s:
            self._line_s = time.monotonic() + LINE_S
            self.say(f"{name}: {percent(share, 0)}, {facts}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, soft_wrap=True)


@dataclass
class ShownTrainer(Trainer):
    """The trainer, telling a person how it gets on."""

    meter: Meter = field(default_factory=Meter)
    _rate: float | None = None
    _share: float = 0.0
    _facts: str = ""

    def hooks(self) -> Hooks:
        hooks = super().hooks()

        def journal_and_show(step: StepRecord, progress: Trained) -> None:
            hooks.journal(step, progress)
            rate = step.tokens / step.seconds
            self._rate = rate if self._rate is None else RATE_MEMORY * self._rate + (1 - RATE_MEMORY) * rate
            self._share = self.share(progress)
            self._facts = f"step {step.step}  loss {step.loss:.4f}  {self._rate:,.0f} tokens/s"
            self.meter.show(self.file or "", self._share, self._facts)

        return replace(hooks, journal=journal_and_show)

    def tell(self, state: str, step: int | None) -> None:
        changed = state != self.state
        super().tell(state, step)
        if changed and state == "paused":
            self.meter.say(f"paused at step {step}; `stoke resume` goes on")
        elif changed and state == "eval":
            self.meter.show(self.file or "", self._share, f"{self._facts}  evaluating")


def train_files(
    home: Home, files: Sequence[Path], steps: int | None, resume: bool, leave: Leave, meter: Meter
) -> dict[str, Any]:
    """Trains each file in turn, to its end or to where it is told to stop; returns what `--json` ends with.

    Every file is looked at before the first is trained: nobody wants to learn tomorrow of the second one's name.
    """
    config = home.config()
    use_threads(config)
    with home.lock("trainer", "stoke train"):
        db = connect(home)
        trainer = ShownTrainer(home, config, db, leave, meter=meter)
        trainer.check()
        home.sweep()
        trash.empty(home)
        control.done(db, "stop")  # asked of nobody, before we came
        control.done(db, "skip")
        tokenizer = load_tokenizer(references.resolve(home, db, "base"), profile_of(config.data))
        waiting = [open_job(home, db, tokenizer, path, resume) for path in files]
        if len({job.id for job in waiting}) < len(waiting):
            raise UsageError("the same content is given twice", ", ".join(map(str, files)), "give each file once")
        done: list[Job] = []
        for job in waiting:
            done.append(job if job.state is JobState.COMPLETED else run(home, db, trainer, job, steps))
            if steps_reached(done[-1], steps) or done[-1].error in ENDS_THE_RUN:
                break
        return report(home, db, done)


def steps_reached(job: Job, steps: int | None) -> bool:
    return job.state is JobState.PARTIAL and job.error == f"reached step {steps}"


def open_job(home: Home, db: Database, tokenizer: ChatTokenizer, path: Path, resume: bool) -> Job:
    """The job of this file, its dataset ingested; refuses what was interrupted or done unless `resume`.

    A file that came by the inbox and was not finished there is taken up where it is.
    """
    if not path.is_file():
        raise InputError("no such file", str(path), "check the path")
    content = hash_file(path)
    refuse_waiting(db, content, path)
    dataset = ingest_file(home, home.config(), tokenizer, path, content, path.name)
    known = [job for job in job_rows.list_jobs(db) if job.kind == "train" and job.dataset == dataset.id]
    if known:
        job = known[-1]
    else:
        job_id = f"train-{content[:DATASET_ID_CHARS]}"
        payload = {"file": path.name, "dataset": dataset.id, "run": job_id}
        job = job_rows.register(db, job_id, "train", payload, content, dataset.bytes)
    if resume or job.state is JobState.QUEUED:
        return job
    if job.state is JobState.COMPLETED:
        raise DuplicateError(f"already trained as {job.dataset}", str(path), "--resume shows its result again")
    raise UsageError(f"the training of this file is {job.state.value}", str(path), "go on with --resume")


def refuse_waiting(db: Database, content: str, path: Path) -> None:
    """Submitted and not looked at yet: its own job would train it once more."""
    for job in job_rows.list_jobs(db, job_rows.UNFINISHED):
        if job.kind == "ingest" and job_rows.get_payload(db, job.id)["content_hash"] == content:
            raise DuplicateError(f"already in the queue as {job.id}", str(path), "`stoke up`, or `stoke cancel` it")


def run(home: Home, db: Database, trainer: Trainer, job: Job, steps: int | None) -> Job:
    """Trains one job from its cursor; an exception, and a file without a row to train, fail it and are raised."""
    job_rows.set_state(db, job.id, JobState.QUEUED)
    job_rows.begin(db, job.id)
    assert job.dataset is not None
    try:
        outcome = trainer.train(job.id, job_rows.get_payload(db, job.id)["run"], job.dataset, steps)
        if outcome.state is JobState.FAILED:
            raise InputError(outcome.reason, str(job.file), f"look into {home.datasets / job.dataset}")
    except Leaving:  # in the middle of what can be done again
        return job_rows.set_state(db, job.id, JobState.PARTIAL, ENDS["leave"])
    except StokeholdError as error:
        fail(db, job, error, str(error))
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        fail(db, job, error, text)
        fix = "`stoke events --json` has the traceback; go on with --resume"
        raise StokeholdError(f"training failed: {text.splitlines()[0]}", str(job.file), fix) from error
    finally:
        control.done(db, "stop")  # whatever the end was, the request was meant for this file
        control.done(db, "skip")
    completed = outcome.state is JobState.COMPLETED
    return job_rows.set_state(db, job.id, outcome.state, None if completed else outcome.reason)


def fail(db: Database, job: Job, error: Exception, text: str) -> None:
    """Fails the job with its reason, and keeps the traceback as an event."""
    trace = "".join(traceback.format_exception(error))[-TRACE_CHARS:]
    job_rows.set_state(db, job.id, JobState.FAILED, text)
    events.record(db, "job_failed", f"{job.id}: {text}", job=job.id, error=type(error).__name__, traceback=trace)


def report(home: Home, db: Database, jobs: Sequence[Job]) -> dict[str, Any]:
    """Totals over the jobs' journal, however many calls it took; `tokens_per_s` is over the steps' own seconds."""
    totals = journal.job_totals(db, [job.id for job in jobs])
    newest = checkpoints.latest(home, db).checkpoint
    return {
        "step": newest.step if newest else 0,
        "loss": totals.loss,
        "examples": totals.examples,
        "tokens": totals.tokens,
        "tokens_per_s": totals.tokens / totals.seconds if totals.seconds else None,
        "checkpoint": newest.path if newest else None,
        "jobs": [{"id": job.id, "file": job.file, "state": job.state.value, "reason": job.error} for job in jobs],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="stokehold.pipeline.foreground")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    leave = Leave()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave.on_signal)
    with told("train", given.home):
        home = Home.open(given.home)
        with Meter() as meter:
            result = train_files(home, given.files, given.steps, given.resume, leave, meter)
    if given.json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return
    loss = "-" if result["loss"] is None else f"{result['loss']:.4f}"
    for job in result["jobs"]:
        sys.stdout.write(f"{job['file']}: {job['state']}{', ' + job['reason'] if job['reason'] else ''}\n")
    sys.stdout.write(f"step {result['step']}, loss {loss}, {result['examples']} examples, {result['checkpoint']}\n")


@contextmanager
def told(role: str, home: Path) -> Iterator[None]:
    """Errors as one line with their fix and their exit code; of an unforeseen one the traceback goes to the logs."""
    try:
        yield
    except StokeholdError as error:
        sys.stderr.write(f"stoke: {error}\n")
        raise SystemExit(error.exit_code) from error
    except Exception as error:
        log = home / "logs" / f"{role}.log"
        with log.open("a") as file:
            traceback.print_exception(error, file=file)
        first = str(error).partition("\n")[0]
        sys.stderr.write(f"stoke: {type(error).__name__}: {first} · {home} · `stoke logs {role}` has the traceback\n")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
