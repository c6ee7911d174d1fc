"""The evaluator worker: checkpoints are judged here, on a device of its own or a node's, while the trainer goes on.

`python -m stokehold.pipeline.evaluator --home H` serves the queue `evaluate` until its supervisor's pipe closes or a
signal asks it to leave. What a reading leads to is decided where the lineage lives: the job `promote` that follows is
the trainer's. Killing it at any instant is fine: an evaluation is there whole or not at all, and the next start judges
what was not judged.
"""

import argparse
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stokehold.core.config import Config
from stokehold.core.errors import ConfigError, IntegrityError, StokeholdError
from stokehold.core.records import Evaluation, JobState
from stokehold.pipeline import watchdog
from stokehold.pipeline.asking import NODE, answered
from stokehold.pipeline.device import DeviceQueue, Leaving
from stokehold.pipeline.evaluate import evaluate_weights
from stokehold.pipeline.rivals import judge_rivals, opened_on
from stokehold.pipeline.suites import open_suites
from stokehold.pipeline.worker import Leave, go, use_threads
from stokehold.pipeline.workflows import Stage, declare, see_judged
from stokehold.store.db import job_rows, jobs
from stokehold.store.db.database import Database
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home
from stokehold.store.models import checkpoints
from stokehold.store.parent import listen
from stokehold.store.transfer import evaluation_requests

EXECUTOR = "evaluator-0"
QUEUES = (jobs.QUEUE_OF["evaluate"],)


class NotWanted(Exception):
    """The job was cancelled while its checkpoint was being judged."""


@dataclass(frozen=True)
class Evaluator:
    """Judges a home's checkpoints on `devices.evaluator`.

    After every batch of items, and while a node is waited for, `leaving` is asked and the job is looked at.
    """

    home: Home
    config: Config
    db: Database
    leaving: Leave

    def check(self) -> None:
        """Raises ConfigError where this machine has no such device, or the device no such weights."""
        device, where = self.config.devices.evaluator, f"devices.evaluator = {self.config.devices.evaluator!r}"
        if not self.config.devices.own_evaluator:
            raise ConfigError("the trainer evaluates by itself", where, 'set it to "cpu" or "cuda:1"')
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("no CUDA device here", where, 'set it to "cpu" or "share"')
        if device == "cpu" and self.config.model.method == "qlora":
            raise ConfigError("4-bit weights need a CUDA device", where, 'set it to "cuda:N" or "share"')

    def evaluate_step(self, step: int, weights: str, job: str | None = None) -> Evaluation | None:
        """The evaluation of the checkpoint after `step`, champion and best judged alike; decides nothing.

        None where there is no suite, and where these weights were pruned or given up. Raises NotWanted where `job` is
        cancelled meanwhile.
        """
        suites = open_suites(self.home, self.config.evaluation.suites)
        checkpoint = checkpoints.find_weights(self.home, step, weights)
        if not suites or checkpoint is None:
            return None
        folder = Path(checkpoint.path)
        if bad := checkpoints.verify_checkpoint(folder):
            raise IntegrityError(f"it is damaged: {bad[0].reason}", str(folder / bad[0].path), "train on from another")
        device = self.config.devices.evaluator
        opened = partial(answered, self.home, self.config) if device == NODE else opened_on(self.config, device)
        between, ref = partial(self._between, job), f"step:{step}"
        try:
            between()
            engine = opened(folder, ref, suites, between)
            evaluation = evaluate_weights(self.home, self.db, self.config, engine, ref, weights, step, suites, between)
            del engine  # one model at a time
            judge_rivals(self.home, self.db, self.config, evaluation, opened, between)
        finally:
            watchdog.expect(0.0)
        return evaluation

    def idle(self) -> None:
        """Ends what was asked of a node by a job that is over, however that was: nobody waits for the answers."""
        if evaluation_requests.current(self.home) is None:
            return
        if not any(job.kind == "evaluate" for job in job_rows.list_jobs(self.db, job_rows.UNFINISHED)):
            evaluation_requests.close(self.home)

    def _between(self, job: str | None, _step: int | None = None) -> None:
        watchdog.expect(self.config.training.hang_s)
        if self.leaving():
            raise Leaving
        if job is not None and job_rows.get_job(self.db, job).state is JobState.CANCELLED:
            raise NotWanted(job)


@dataclass(frozen=True)
class Bureau:
    """What the workflows of an evaluator's process share."""

    home: Home
    jobs: JobsClient
    device: DeviceQueue
    evaluator: Evaluator


def evaluate(bureau: Bureau, payload: Mapping[str, Any]) -> JobState:
    """Judges the checkpoint that was handed over; the trainer decides what follows."""
    try:
        return see_judged(bureau, payload, partial(bureau.evaluator.evaluate_step, job=payload["job"]))
    except NotWanted:
        return job_rows.get_job(bureau.jobs.db, payload["job"]).state  # of now: it may have been retried since


STAGES: Mapping[str, Stage[Bureau]] = {"evaluate": evaluate}


def work(home: Home, leave: Leave) -> None:
    """Serves the home's evaluations on this thread until `leave`."""
    config = home.config()
    use_threads(config)
    with home.lock("evaluator", "judging checkpoints"), jobs.client(home) as client:
        device = DeviceQueue()
        evaluator = Evaluator(home, config, client.db, leave)
        evaluator.check()
        declare(Bureau(home, client, device, evaluator), STAGES)
        jobs.launch(home, EXECUTOR, QUEUES)
        device.serve(leave, evaluator.idle)
        go(client, QUEUES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--parent-fd", type=int, help="leave when this pipe reads its end")
    arguments = parser.parse_args()
    leave = Leave()
    try:
        home = Home.open(arguments.home)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, leave.on_signal)
        if arguments.parent_fd is not None:
            listen(arguments.parent_fd, home.logs / "evaluator.log", leave.at_once)
        work(home, leave)
    except StokeholdError as error:
        sys.stderr.write(f"stoke: {error}\n")
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
