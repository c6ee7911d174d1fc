"""The trainer worker: one process, one warm model, one visible loop.

`python -m stokehold.pipeline.worker --home H` serves the queues of a home until its supervisor's pipe closes or a
signal asks it to leave; it then finishes the step, writes a checkpoint and goes. Killing it at any instant is fine:
the next start takes up every job where the disk says it was.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import torch

from stokehold.core.config import Config
from stokehold.core.errors import StokeholdError
from stokehold.core.records import JobState
from stokehold.pipeline.device import DeviceQueue
from stokehold.pipeline.trainer import Trainer
from stokehold.pipeline.workflows import Workshop, declare
from stokehold.store import job_rows, jobs, trash
from stokehold.store.home import Home

EXECUTOR = "trainer-0"
QUEUES = jobs.QUEUES


class Leave:
    """Set by a signal, or by the end of the supervisor's pipe; asked at every step."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._event.set()

    def when_closed(self, descriptor: int) -> None:
        """Leaves when the other end of this pipe is closed, however that process ended."""

        def wait() -> None:
            while os.read(descriptor, 1):
                pass
            self._event.set()

        threading.Thread(target=wait, name="parent", daemon=True).start()


def work(home: Home, leave: Leave) -> None:
    """Serves the home's jobs on this thread until `leave`."""
    config = home.config()
    use_threads(config)
    with home.lock("trainer", "training"), jobs.client(home) as client:
        device = DeviceQueue()
        trainer = Trainer(home, config, client.db, leave)
        trainer.check()
        home.sweep()
        trash.empty(home)
        declare(Workshop(home, client, device, trainer))
        jobs.launch(home, EXECUTOR, QUEUES)
        trainer.tell("idle", None)
        device.serve(leave, trainer.idle)
        trainer.tell("stopped", None)
        for job in client.list_jobs([JobState.RUNNING]):
            job_rows.set_state(client.db, job.id, JobState.QUEUED)  # leaving in order is no attempt
        # What was interrupted stays unfinished: its workflow's thread is left waiting, and ends with us.
        os._exit(0)


def use_threads(config: Config) -> None:
    """Torch's threads, from the config: they are part of exactness on a CPU."""
    if config.training.threads:
        torch.set_num_threads(config.training.threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--parent-fd", type=int)
    arguments = parser.parse_args()
    leave = Leave()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave.on_signal)
    if arguments.parent_fd is not None:
        leave.when_closed(arguments.parent_fd)
    try:
        work(Home.open(arguments.home), leave)
    except StokeholdError as error:
        sys.stderr.write(f"stoke: {error}\n")
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
