"""`stoke train`: the same trainer in the foreground, no daemon; killing the command kills the work.

`python -m stokehold.pipeline.foreground --home H FILE… [--steps N] [--resume] [--json]`
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.errors import DuplicateError, InputError, StokeholdError, UsageError
from stokehold.core.records import Job, JobState
from stokehold.data.tokenizer import ChatTokenizer, load_tokenizer
from stokehold.pipeline.ingest import DATASET_ID_CHARS, ingest_file
from stokehold.pipeline.trainer import Trainer
from stokehold.pipeline.worker import Leave, use_threads
from stokehold.store import checkpoints, job_rows, journal, versions
from stokehold.store.database import Database, connect
from stokehold.store.files import hash_file
from stokehold.store.home import Home


def train_files(home: Home, files: Sequence[Path], steps: int | None, resume: bool, leave: Leave) -> dict[str, Any]:
    """Trains each file in turn, up to the first that does not complete; returns what `--json` ends with."""
    config = home.config()
    use_threads(config)
    with home.lock("trainer", "stoke train"):
        db = connect(home)
        trainer = Trainer(home, config, db, leave)
        tokenizer = load_tokenizer(versions.resolve(home, db, "base"))
        done: list[Job] = []
        for path in files:
            job = open_job(home, db, tokenizer, path, resume)
            if job.state is not JobState.COMPLETED:
                job = run(db, trainer, job, steps)
            done.append(job)
            if job.state is not JobState.COMPLETED:
                break
        return report(home, db, done)


def open_job(home: Home, db: Database, tokenizer: ChatTokenizer, path: Path, resume: bool) -> Job:
    """The job of this file, its dataset ingested; refuses what was interrupted or done unless `resume`."""
    if not path.is_file():
        raise InputError("no such file", str(path), "check the path")
    content = hash_file(path)
    dataset = ingest_file(home, home.config(), tokenizer, path, content, path.name)
    job_id = f"train-{content[:DATASET_ID_CHARS]}"
    payload = {"file": path.name, "dataset": dataset.id, "run": job_id}
    job = job_rows.register(db, job_id, "train", payload, content, dataset.bytes)
    if resume or job.state is JobState.QUEUED:
        return job
    if job.state is JobState.COMPLETED:
        raise DuplicateError(f"already trained as {job.dataset}", str(path), "--resume shows its result again")
    raise UsageError(f"the training of this file is {job.state.value}", str(path), "go on with --resume")


def run(db: Database, trainer: Trainer, job: Job, steps: int | None) -> Job:
    """Trains one job from its cursor; an exception fails it and goes on to the caller."""
    job_rows.set_state(db, job.id, JobState.QUEUED)
    job_rows.begin(db, job.id)
    assert job.dataset is not None
    try:
        outcome = trainer.train(job.id, job.id, job.dataset, steps)
    except Exception as error:
        job_rows.set_state(db, job.id, JobState.FAILED, f"{type(error).__name__}: {error}")
        raise
    return job_rows.set_state(
        db, job.id, outcome.state, None if outcome.state is JobState.COMPLETED else outcome.reason
    )


def report(home: Home, db: Database, jobs: Sequence[Job]) -> dict[str, Any]:
    """Totals over the jobs' journal, however many calls it took; `tokens_per_s` is over the steps' own seconds."""
    steps = [step for job in jobs for step in journal.job_steps(db, job.id)]
    newest = checkpoints.latest(home, db).checkpoint
    tokens, seconds = sum(step.tokens for step in steps), sum(step.seconds for step in steps)
    return {
        "step": newest.step if newest else 0,
        "loss": steps[-1].loss if steps else None,
        "examples": sum(step.examples for step in steps),
        "tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds else None,
        "checkpoint": newest.path if newest else None,
        "jobs": [{"id": job.id, "file": job.file, "state": job.state.value, "reason": job.error} for job in jobs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    leave = Leave()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave.on_signal)
    try:
        home = Home.open(arguments.home)
        result = train_files(home, arguments.files, arguments.steps, arguments.resume, leave)
    except StokeholdError as error:
        sys.stderr.write(f"stoke: {error}\n")
        raise SystemExit(error.exit_code) from error
    if arguments.json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
    else:
        loss = "-" if result["loss"] is None else f"{result['loss']:.4f}"
        sys.stdout.write(f"step {result['step']}, loss {loss}, {result['examples']} examples, {result['checkpoint']}\n")


if __name__ == "__main__":
    main()
