"""The trainer worker: one process, one warm model, one visible loop.

`python -m stokehold.pipeline.worker --home H` serves the queues of a home until its supervisor's pipe closes or a
signal asks it to leave; it then finishes the step, writes a checkpoint and goes. Killing it at any instant is fine:
the next start takes up every job where the disk says it was.

With `--stand-by` it loads everything, holds nothing, and waits to be told to begin: a spare for when another dies.
"""

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
import transformers

from stokehold.core.config import Config
from stokehold.core.errors import StokeholdError
from stokehold.core.records import JobState
from stokehold.pipeline import upkeep
from stokehold.pipeline.asking import NODE
from stokehold.pipeline.device import DeviceQueue
from stokehold.pipeline.trainer import Trainer
from stokehold.pipeline.workflows import STAGES, Workshop, declare, hand_over
from stokehold.store.db import job_rows, jobs
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.parent import listen, wait_for_go
from stokehold.store.transfer import evaluation_requests

EXECUTOR = "trainer-0"
OOM_SCORE = Path("/proc/self/oom_score_adj")
FIRST_TO_GO = "1000"


class Leave:
    """Set by a signal, or by the end of the supervisor's pipe; asked at every step."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._event.set()

    def at_once(self) -> None:
        self._event.set()


def work(home: Home, leave: Leave) -> None:
    """Serves the home's jobs on this thread until `leave`."""
    config = home.config()
    use_threads(config)
    with home.lock("trainer", "training"), jobs.client(home) as client:
        device = DeviceQueue()
        apart = partial(hand_over, client) if config.devices.own_evaluator else None
        trainer = Trainer(home, config, client.db, leave, device.errands, apart)
        trainer.check()
        home.sweep()
        trash.empty(home)
        if config.devices.evaluator != NODE:
            evaluation_requests.close(home)  # asked under another setting: nobody waits for the answers any more
        declare(Workshop(home, client, device, trainer), STAGES)
        upkeep.start(home, client)
        queues = [queue for queue in jobs.QUEUES if apart is None or queue != jobs.QUEUE_OF["evaluate"]]
        jobs.launch(home, EXECUTOR, queues)
        trainer.tell("idle", None)
        device.serve(leave, trainer.idle)
        trainer.tell("stopped", None)
        go(client, queues)


def go(client: jobs.JobsClient, queues: Sequence[str]) -> NoReturn:
    """Ends a process that served these queues: leaving in order is no attempt of the jobs it was at.

    What was interrupted stays unfinished: its workflow's thread is left waiting, and ends with us.
    """
    for job in client.list_jobs([JobState.RUNNING]):
        if jobs.QUEUE_OF[job.kind] in queues:
            job_rows.set_state(client.db, job.id, JobState.QUEUED)
    os._exit(0)


def stand_by(home: Home, descriptor: int) -> bool:
    """Loads what a trainer of this home needs, then waits to be told to begin; False when it never will be.

    When memory runs out the system takes a process that stands by before any that works.
    """
    last = OOM_SCORE.read_text() if OOM_SCORE.exists() else None
    if last is not None:
        OOM_SCORE.write_text(FIRST_TO_GO)
    config = home.config()
    getattr(transformers, config.model.architecture, None)  # loads the module of this kind of model
    if config.model.method != "full":
        importlib.import_module("stokehold.training.adapters")
    begin = wait_for_go(descriptor, log_of(home))
    if last is not None:
        OOM_SCORE.write_text(last)
    return begin


def log_of(home: Home) -> Path:
    """Where the supervisor lets our output go."""
    return home.logs / "trainer.log"


def use_threads(config: Config) -> None:
    """Torch's threads, from the config: they are part of exactness on a CPU."""
    if config.training.threads:
        torch.set_num_threads(config.training.threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--parent-fd", type=int, help="leave when this pipe reads its end")
    parser.add_argument("--stand-by", action="store_true", help="begin when told to by that pipe")
    arguments = parser.parse_args()
    leave = Leave()
    try:
        home = Home.open(arguments.home)
        if arguments.stand_by and not stand_by(home, arguments.parent_fd):
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, leave.on_signal)
        if arguments.parent_fd is not None:
            listen(arguments.parent_fd, log_of(home), leave.at_once)
        work(home, leave)
    except StokeholdError as error:
        sys.stderr.write(f"stoke: {error}\n")
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
