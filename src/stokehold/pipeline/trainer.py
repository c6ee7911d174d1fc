"""The device thread's trainer: one warm model, and what happens between its steps.

Everything here runs on the thread that owns the device. The model stays in memory between files; it is opened again
from disk when the newest checkpoint is not the one it was left at (a failure, a going back, another process).
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.config import Config
from stokehold.core.records import Checkpoint, Evaluation, JobState, Sample, Step
from stokehold.data.formats import from_row
from stokehold.evaluation.promotion import Action
from stokehold.evaluation.scorers import score
from stokehold.inference.engine import Engine
from stokehold.pipeline.evaluate import evaluate_weights
from stokehold.pipeline.promote import BEST, go_back, promote
from stokehold.pipeline.suites import Suite, open_suites
from stokehold.store import checkpoints, control, evaluations, events, job_rows, journal, versions
from stokehold.store.database import Database
from stokehold.store.datasets import dataset_folder, load_dataset
from stokehold.store.files import utc_now, write_atomic
from stokehold.store.home import Home
from stokehold.telemetry.session import Recorder
from stokehold.training.loop import Hooks, Outcome, Work, run_job
from stokehold.training.state import Lineage, Progress, open_lineage

STATUS_EVERY_S = 0.5
SAMPLE_ROWS = 64
"""Rows of a file that in-training samples are taken from."""


@dataclass
class Trainer:
    """The model of one home and its surroundings. `leaving` is asked at every step."""

    home: Home
    config: Config
    db: Database
    leaving: Callable[[], bool]
    lineage: Lineage | None = None
    recorder: Recorder | None = None
    state: str = "idle"
    job: str | None = None
    file: str | None = None
    _told: float = 0.0
    _progress_told: float = 0.0
    _rows: int = 1
    _epoch: float | None = None
    _samples: list[Sample] = field(default_factory=list)

    def ready(self) -> Lineage:
        """The lineage at the newest checkpoint that verifies, or at the base model."""
        found = checkpoints.latest(self.home, self.db)
        for passed in found.passed_over:
            events.record(self.db, "checkpoint_passed_over", f"{Path(passed.path).name}: {passed.reason}")
        newest = Path(found.checkpoint.path) if found.checkpoint else versions.resolve(self.home, self.db, "base")
        if self.lineage is None or (self.lineage.parent or self.lineage.source.name) != newest.name:
            self.lineage = None  # the old one's memory goes first
            self.lineage = open_lineage(newest, self.config)
        self.lineage.branch = journal.current_branch(self.db)
        return self.lineage

    def train(self, job: str, run: str, dataset: str, until_step: int | None = None) -> Outcome:
        """Trains one dataset to its end or until told otherwise, then evaluates what came of it."""
        folder = dataset_folder(self.home, dataset)
        record = load_dataset(self.home, dataset)
        self.job, self.file = job, record.file
        self._rows = max(1, (record.accepted - record.held_out) * self.config.training.epochs)
        self._samples = _first_rows(folder / "rows.jsonl")
        session = self.home.sessions / f"{utc_now().replace(':', '')}-{job}"
        lineage = self.ready()
        try:
            with Recorder(session, self.config.telemetry, self.config.model.base, self.config.model.method) as recorder:
                self.recorder = recorder
                work = Work(job, run, dataset, folder / "rows.jsonl", until_step)
                outcome = run_job(self.home, lineage, work, self.hooks())
                if unusable := outcome.progress.unusable:
                    text = f"{record.file}: {len(unusable)} rows could not be trained, first line {unusable[0]}"
                    events.record(self.db, "unusable_rows", text, dataset=dataset)
                if outcome.state is JobState.COMPLETED:
                    self.evaluate_live(lineage, outcome.checkpoint)
        except BaseException:
            self.lineage = None  # its weights may be anything; the next job opens the last checkpoint
            raise
        finally:
            self.recorder = self.job = self.file = self._epoch = None
            self.tell("idle", None)
        checkpoints.prune(self.home, self._steps_in_use(), self.config.store.keep_checkpoints)
        return outcome

    def evaluate_live(self, lineage: Lineage, checkpoint: Checkpoint) -> None:
        """Judges the live weights and lets the verdict decide; going back drops the live model."""
        suites = open_suites(self.home, self.config.evaluation.suites)
        if suites:
            self.decide(self._judge(lineage, checkpoint, suites))

    def evaluate_step(self, step: int) -> Evaluation | None:
        """As `evaluate_live`, for a checkpoint whose own evaluation a kill prevented; None where there is no suite."""
        suites = open_suites(self.home, self.config.evaluation.suites)
        checkpoint = checkpoints.load_checkpoint(checkpoints.find_step(self.home, step))
        lineage = self.ready()
        if lineage.step != step:
            lineage = open_lineage(Path(checkpoint.path), self.config)
        return self._judge(lineage, checkpoint, suites) if suites else None

    def decide(self, evaluation: Evaluation) -> None:
        """Promotes, holds or goes back, once per evaluation."""
        if evaluations.decided(self.db, evaluation.id)[1] is not None:
            return
        promotion = promote(self.home, self.db, self.config, evaluation)
        if promotion.decision.action is Action.ROLLBACK:
            go_back(self.home, self.db, promotion.decision.reason)
            self.lineage = None

    def hooks(self) -> Hooks:
        """What the loop may ask of us between two steps."""
        return Hooks(
            command=self._command,
            journal=self._journal,
            energy_j=lambda: self.recorder.energy_j() if self.recorder else None,
            state=self.tell,
            evaluate=self.evaluate_live,
            sample=self._sample,
        )

    def tell(self, state: str, step: int | None) -> None:
        """Writes `status/trainer.json`, at most every STATUS_EVERY_S unless the state changed."""
        now = time.monotonic()
        if self.recorder:
            self.recorder.mark(WORKLOAD.get(state), step)
        if state == self.state and now - self._told < STATUS_EVERY_S:
            return
        self.state, self._told = state, now
        facts: dict[str, Any] = {
            "pid": os.getpid(),
            "state": SHOWN.get(state, state),
            "step": step,
            "job": self.job,
            "current_file": self.file,
            "epoch": self._epoch,
            "model_name": self.config.model.architecture or None,
            "max_output_tokens": self.config.evaluation.max_new_tokens,
            "context_window": self.config.data.max_length,
            "total_steps": self.config.training.total_steps or None,
            "telemetry": self.recorder.latest() if self.recorder else {},
            "updated": utc_now(),
        }
        write_atomic(self.home.status / "trainer.json", orjson.dumps(facts))

    def _judge(self, lineage: Lineage, checkpoint: Checkpoint, suites: list[Suite]) -> Evaluation:
        self.tell("eval", lineage.step)
        return evaluate_weights(
            self.home,
            self.db,
            self.config,
            Engine(lineage.model, lineage.tokenizer),
            f"step:{checkpoint.step}",
            checkpoint.weights_hash,
            checkpoint.step,
            suites,
            between=lambda: self.tell("eval", lineage.step),
        )

    def _command(self) -> str | None:
        if self.leaving():
            return "leave"
        command = control.current(self.db)
        return None if command == "resume" else command

    def _journal(self, step: Step, progress: Progress) -> None:
        journal.append(self.db, step)
        if self.recorder:
            self.recorder.count(step.tokens)
        now = time.monotonic()
        if now - self._progress_told >= STATUS_EVERY_S:
            self._progress_told = now
            self._epoch = (progress.examples + len(progress.unusable)) / self._rows * self.config.training.epochs
            job_rows.set_progress(self.db, step.job, self._epoch / self.config.training.epochs)

    def _sample(self, lineage: Lineage, step: int) -> None:
        """Asks the model one of the rows it is trained on, and keeps what it said."""
        if not self._samples:
            return
        sample = self._samples[step // max(1, self.config.training.sample_steps) % len(self._samples)]
        engine = Engine(lineage.model, lineage.tokenizer)
        limits = self.config.evaluation
        completion = engine.complete([sample], limits.max_new_tokens, 1, limits.gold_multiple)[0]
        question = "\n".join(message.content for message in sample.question)
        exact = score(sample, completion).exact
        journal.add_sample(self.db, step, question, sample.gold, completion.text, exact)

    def _steps_in_use(self) -> set[int]:
        """Steps that training may go back to: those of the champion, the one before it, and the best."""
        names = {versions.alias(self.db), versions.previous(self.db), versions.alias(self.db, BEST)} - {None}
        return {v.step for v in versions.list_versions(self.home) if v.name in names and v.step is not None}


WORKLOAD = {"training_step": "training_step", "checkpoint": "checkpoint", "eval": "eval", "paused": "idle"}
SHOWN = {"training_step": "training", "checkpoint": "training", "eval": "evaluating"}


def _first_rows(path: Path) -> list[Sample]:
    with path.open("rb") as file:
        rows = [from_row(orjson.loads(line)) for line in islice(file, SAMPLE_ROWS)]
    return [row for row in rows if row.messages]
