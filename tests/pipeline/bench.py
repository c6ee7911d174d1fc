"""The workflows of one home in this process: the real trainer on the real device queue, jobs taken by priority.

What DBOS adds (delivery, recovery after a kill) is proved with real workers in test_pipeline_recovery.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stokehold.core.records import Job, JobState
from stokehold.pipeline.device import DeviceQueue
from stokehold.pipeline.trainer import Trainer
from stokehold.pipeline.worker import use_threads
from stokehold.pipeline.workflows import STAGES, Workshop, run_stage
from stokehold.store.db import job_rows, jobs, journal
from stokehold.store.home import Home
from stokehold.store.models import checkpoints
from tiny_world import write_jsonl


class Bench:
    """`at[step]` are called, one at each asking between two steps: they may ask for a pause, or tell to go."""

    def __init__(self, home: Home) -> None:
        use_threads(home.config())  # as a worker does: they are part of exactness
        self.home, self.client = home, jobs.client(home)
        self.db = self.client.db
        self.at: dict[int, list[Callable[[], object]]] = {}
        self.gone = self.closed = False
        self.broke: Exception | None = None
        self.trainer = Trainer(home, home.config(), self.db, self._leaving)
        self.workshop = Workshop(home, self.client, DeviceQueue(), self.trainer)
        serve = self.workshop.device.serve
        threading.Thread(target=serve, args=(lambda: self.closed, lambda: None), daemon=True).start()

    def _leaving(self) -> bool:
        step = self.trainer.lineage.step if self.trainer.lineage else 0
        if waiting := self.at.get(step):
            try:
                waiting.pop(0)()
            except Exception as error:
                self.broke = error
                raise
        return self.gone

    def submit(self, name: str, rows: list[dict[str, Any]], again: bool = False) -> Job:
        return self.client.submit_file(write_jsonl(self.home.root / name, rows), again=again)

    def dataset(self, name: str, rows: list[dict[str, Any]]) -> Job:
        """Ingests a file and returns its waiting train job."""
        self.submit(name, rows)
        self.drain(["ingest"])
        return self.queued("train")[-1]

    def queued(self, *kinds: str) -> list[Job]:
        waiting = [job for job in self.client.list_jobs([JobState.QUEUED]) if job.kind in kinds]
        return sorted(waiting, key=lambda job: job.priority.rank)

    def run(self, job: Job) -> JobState:
        """How the job ended. Raises what a call of `at` raised: the stage takes it for a fault and tries again."""
        state = run_stage(self.workshop, STAGES[job.kind], job_rows.get_payload(self.db, job.id))
        if self.broke:
            raise self.broke
        return state

    def drain(self, kinds: Sequence[str] = tuple(STAGES)) -> None:
        """Runs what waits, the most urgent first, until nothing of these kinds does."""
        while waiting := self.queued(*kinds):
            self.run(waiting[0])

    def state(self, job: Job | str) -> JobState:
        return job_rows.get_job(self.db, job if isinstance(job, str) else job.id).state

    def rows_trained(self) -> int:
        return sum(step.examples for step in journal.steps(self.db))

    def step(self) -> int:
        newest = checkpoints.latest(self.home, self.db).checkpoint
        return newest.step if newest else 0

    def weights(self) -> str:
        newest = checkpoints.latest(self.home, self.db).checkpoint
        assert newest is not None
        assert (Path(newest.path) / "tokenizer.json").is_file()
        return newest.weights_hash

    def restarted(self) -> "Bench":
        """Another process on the same home: nothing of this one is remembered."""
        self.close()
        return Bench(self.home)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.client.close()
