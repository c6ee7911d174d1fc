"""The device thread's trainer: one warm model, and what happens between its steps.

Everything here runs on the thread that owns the device. The model stays in memory between files; it is opened again
from disk when the newest checkpoint is not the one it was left at (a failure, a going back, another process).
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from stokehold.core.config import Config
from stokehold.core.errors import DiskFullError, IntegrityError
from stokehold.core.records import Checkpoint, Evaluation, JobState, Sample, Step
from stokehold.data.batches import Cursor
from stokehold.inference.engine import Engine
from stokehold.pipeline.device import Leaving
from stokehold.pipeline.divergence import pass_over
from stokehold.pipeline.evaluate import affordable, evaluate_weights
from stokehold.pipeline.promote import TAKEN_BACK, finish_going_back, go_back, is_going_back, promote
from stokehold.pipeline.replay import difference
from stokehold.pipeline.rivals import judge_rivals, opened_on
from stokehold.pipeline.sampling import ask_one, first_rows
from stokehold.pipeline.status import STATUS_EVERY_S, TrainerStatus
from stokehold.pipeline.suites import Suite, open_suites
from stokehold.pipeline.token_reports import token_counter
from stokehold.store.datasets import dataset_folder, load_dataset
from stokehold.store.db import control, events, job_rows, journal, skips
from stokehold.store.db.database import Database
from stokehold.store.files import utc_now, verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import space, trash
from stokehold.store.housekeeping.gc import steps_in_use
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, going_back, references
from stokehold.telemetry.session import Recorder
from stokehold.training.activity import movement
from stokehold.training.consolidation import MergeError, consolidate
from stokehold.training.cuda import check_device
from stokehold.training.guards import BadBatch
from stokehold.training.loop import ENDS, FREED, PAUSE_POLL_S, Hooks, Outcome, Work, run_job
from stokehold.training.progress import share
from stokehold.training.state import Lineage, Progress, Snapshot, check_locked, open_lineage, stored_weights


@dataclass
class Trainer:
    """The model of one home and its surroundings. `leaving` is asked at every step.

    `errands` does, between two steps, what others want of the device's thread. With `hand_over(job, file, checkpoint)`
    checkpoints are judged elsewhere: what comes of it is handed to `decide`, as an errand.
    """

    home: Home
    config: Config
    db: Database
    leaving: Callable[[], bool]
    errands: Callable[[], None] = lambda: None
    hand_over: Callable[[str, str, Checkpoint], object] | None = None
    lineage: Lineage | None = None
    job: str | None = None
    file: str | None = None
    _taken_back: bool = False
    _progress_told: float = 0.0
    _rows: int = 0
    _replayed_until: int = 0
    _samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.status = TrainerStatus(self.home, self.config, self.db)
        self._guard = space.Guard(self.config.store, lambda: space.room(self.home.root), self.status.record)

    @property
    def state(self) -> str:
        """What was told last."""
        return self.status.state

    def ready(self, anew: bool = False) -> Lineage:
        """The lineage at the newest checkpoint that verifies, or at the base model before there is any.

        `anew` begins a branch there: what was journalled after it will not be repeated as it was.
        """
        going_back.finish(self.home, self.db)
        finish_going_back(self.home, self.db)
        found = checkpoints.latest(self.home, self.db)
        for passed in found.passed_over:
            events.record(self.db, "checkpoint_passed_over", f"{Path(passed.path).name}: {passed.reason}")
        newest = Path(found.checkpoint.path) if found.checkpoint else self._base(found.passed_over)
        if self.lineage is None or (self.lineage.parent or self.lineage.source.name) != newest.name:
            self.lineage = None  # the old one's memory goes first
            self.lineage = open_lineage(newest, self.config)
            self.lineage.saved = found.checkpoint
            if different := ", ".join(self.lineage.differences):
                events.record(self.db, "resumed", f"{newest.name}: not bit-comparable: {different}")
        if self.lineage.step < journal.spans(self.db)[0].after:
            journal.new_branch(self.db, self.lineage.step, "the checkpoint returned to cannot be used any more")
        elif anew:
            journal.new_branch(self.db, self.lineage.step, "a batch spoilt a step after it")
        self.lineage.branch = journal.current_branch(self.db)
        self._replayed_until = self._last_step()
        return self.lineage

    def check(self) -> None:
        """Raises ConfigError where `stoke.toml` does not fit this machine or what was trained: every job would fail."""
        check_device(self.config)
        newest = checkpoints.latest(self.home, self.db).checkpoint
        if newest is not None:
            check_locked(Path(newest.path), self.config)

    def train(self, job: str, run: str, dataset: str, until_step: int | None = None) -> Outcome:
        """Trains one dataset to its end or until told otherwise, then evaluates what came of it."""
        folder = dataset_folder(self.home, dataset)
        record = load_dataset(self.home, dataset)
        count = record.accepted - record.held_out
        self.job, self.file, self._taken_back = job, record.file, False
        self.status.facts = {"job": job, "current_file": record.file, "epoch": None}
        self._rows = count
        self._samples = first_rows(folder / "rows.jsonl")
        session = self.home.sessions / f"{utc_now().replace(':', '')}-{job}"
        try:
            if self._memory_wanted():
                self._wait_without_model(self._last_step())
            lineage = self.ready()
            if (row := job_rows.get_job(self.db, job)).state is JobState.PARTIAL and lineage.saved:
                # A going back that a kill interrupted was ours, and is finished now.
                progress = lineage.runs.get(run) or Progress(dataset, Cursor.start())
                return Outcome(row.state, progress, lineage.saved, None, TAKEN_BACK)
            self._leave_others_steps(lineage, job)
            with Recorder(session, self.config.telemetry, self.config.model.base, self.config.model.method) as recorder:
                self.status.recorder = recorder
                counted = token_counter(self.home, self.db, lineage.tokenizer, record, self.config.data.max_length)
                work = Work(job, run, dataset, folder / "rows.jsonl", count, until_step, counted=counted)
                del lineage  # nobody else may hold the model when its memory is asked back
                outcome = self._run(work)
                if unusable := outcome.progress.unusable:
                    text = f"{record.file}: {len(unusable)} rows could not be trained, first line {unusable[0]}"
                    events.record(self.db, "unusable_rows", text, dataset=dataset)
                ended = self.hand_over is None and outcome.to_judge
                if ended and self.lineage and (why := self.evaluate_live(self.lineage, outcome.checkpoint)):
                    outcome = replace(outcome, state=JobState.PARTIAL, reason=why)
        except BaseException as error:
            self.lineage = None  # its weights may be anything; the next job opens the last checkpoint
            if isinstance(error, DiskFullError) and self.leaving():
                raise Leaving from error
            raise
        finally:
            self.status.recorder = self.job = self.file = None
            self.status.facts = {}
            self.tell("idle", None)
        return outcome

    def _run(self, work: Work) -> Outcome:
        """Runs the loop; a batch that spoils a step is passed over from the newest checkpoint on, in a new branch."""
        anew, merging = False, bool(self.config.adapter.merge_files)
        while True:
            lineage = self.lineage or self.ready(anew)
            anew = False
            if merging and not self._merge(lineage):
                self.lineage, merging = None, False
                del lineage  # with the merged model, before the adapters come from disk again
                continue
            try:
                outcome = run_job(self.home, lineage, replace(work, skips=skips.keys(self.db, work.run)), self.hooks())
            except BadBatch as bad:
                pass_over(self.db, work.run, lineage.branch, bad)
                anew = True
            else:
                if outcome.reason != FREED:
                    return self._given_up(outcome) if outcome.reason == ENDS["back"] else outcome
            step = lineage.step
            del lineage  # from disk again: memory is wanted back, or may be what is wrong
            self._wait_without_model(step)

    def _given_up(self, outcome: Outcome) -> Outcome:
        """Sets aside what was being written when training was taken back."""
        kept = checkpoints.latest(self.home, self.db).checkpoint
        assert kept is not None
        checkpoints.set_aside(self.home, kept.step, TAKEN_BACK, journal.current_branch(self.db))
        return replace(outcome, reason=TAKEN_BACK, checkpoint=kept)

    def _merge(self, lineage: Lineage) -> bool:
        """Merges the adapters where that is due; False where that was refused, and the lineage must be opened again."""
        try:
            base = consolidate(lineage, self.home, self.db, job_rows.completed_runs(self.db))
        except MergeError as error:
            events.record(self.db, "merge_refused", f"step {lineage.step}: {error}")
            return False
        if base:
            events.record(self.db, "merged", f"step {lineage.step}: the adapters are part of base {base.name} now")
        return True

    def _memory_wanted(self) -> bool:
        return control.current(self.db) == "pause" and control.frees_memory(self.db)

    def _give_memory_back(self) -> None:
        self.lineage = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _wait_without_model(self, step: int) -> None:
        """Blocks while a pause wants the model's memory; returns at once where none does."""
        self._give_memory_back()
        paused = False
        while (command := self._command()) == "free":
            paused = True
            self.tell("paused", step)
            time.sleep(PAUSE_POLL_S)
        if paused and command == "leave":
            raise Leaving  # opening the model first would take what others use by now

    def _last_step(self) -> int:
        last = journal.last_step(self.db)
        return last.step if last else 0

    def evaluate_live(self, lineage: Lineage, checkpoint: Checkpoint) -> str | None:
        """Judges the live weights and lets the verdict decide; returns why the job must end, None to go on."""
        suites = open_suites(self.home, self.config.evaluation.suites)
        if not suites:
            return None
        try:
            self.decide(self._judge(lineage, checkpoint, suites))
        except Leaving:
            return ENDS["leave"]
        if self.lineage is lineage:
            return None
        lineage.saved = checkpoint  # what was judged is what the run ends with
        return TAKEN_BACK

    def _evaluate_due(self, lineage: Lineage, checkpoint: Checkpoint) -> str | None:
        """Inside a file: `evaluate_live` within its share of the time; handed over, when none waits to be judged."""
        if self.hand_over is not None:
            unfinished = job_rows.list_jobs(self.db, job_rows.UNFINISHED)
            if self.job and not any(job.kind == "evaluate" for job in unfinished):
                self.hand_over(self.job, str(self.file), checkpoint)
            return None
        if not affordable(self.home, self.db, self.config, lineage.step):
            return None
        return self.evaluate_live(lineage, checkpoint)

    def evaluate_step(self, step: int, weights: str) -> Evaluation | None:
        """As `evaluate_live`, for a checkpoint whose own evaluation did not come about; decides nothing.

        None where there is no suite, and where these weights were pruned or given up.
        """
        suites = open_suites(self.home, self.config.evaluation.suites)
        checkpoint = checkpoints.find_weights(self.home, step, weights)
        if not suites or checkpoint is None:
            return None
        lineage = self.ready()
        if lineage.step == step:
            return self._judge(lineage, checkpoint, suites)
        self.lineage = None  # one model at a time; the next job opens the newest again, with its random state
        return self._judge(open_lineage(Path(checkpoint.path), self.config), checkpoint, suites)

    def decide(self, evaluation: Evaluation) -> None:
        """Promotes, holds or goes back, once per evaluation; going back drops the live model."""
        if evaluations.decided(self.db, evaluation.id)[1] is None:
            judge_rivals(self.home, self.db, self.config, evaluation, opened_on(self.config), self._between)
            promote(self.home, self.db, self.config, evaluation)
        if is_going_back(self.home, self.db, evaluation):
            live, self.lineage, self._taken_back = self.lineage, None, True
            if live is not None:
                live.give_up_writing()
            go_back(self.home, self.db, f"step {evaluation.step} was worse than the champion")
            if live is not None:  # what a run in progress ends with: its own steps are not to be saved
                live.saved = checkpoints.latest(self.home, self.db).checkpoint

    def idle(self) -> None:
        """Says so after a judging between two files, and nothing has to happen within `hang_s` any more.

        Gives the model's memory back where a pause wants it: the next file opens the newest checkpoint. Drops `stop`
        and `skip` where nothing is or will be trained: they were not meant for next week's file.
        """
        if self.state == "eval":
            self.tell("idle", None)
        if self.lineage and self._memory_wanted():
            self._give_memory_back()
        asked = control.current(self.db)
        if asked not in ("stop", "skip"):
            return
        unfinished = job_rows.list_jobs(self.db, job_rows.UNFINISHED)
        if not any(job.kind in ("ingest", "train") for job in unfinished) and control.done(self.db, asked):
            events.record(self.db, "control", f"{asked}: there is nothing to {asked}")

    def hooks(self) -> Hooks:
        """What the loop may ask of us between two steps."""
        return Hooks(
            command=self._command,
            journal=self._journal,
            energy_j=self._energy_j,
            state=self.tell,
            saved=self._saved,
            evaluate=self._evaluate_due,
            sample=self._sample,
            note=self.status.record,
        )

    def tell(self, state: str, step: int | None) -> None:
        """What the process is doing; see `TrainerStatus.tell`."""
        self.status.tell(state, step)

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
            between=lambda: self._between(lineage.step),
            energy_j=self._energy_j,
        )

    def _energy_j(self) -> float | None:
        """Joules since the session began, None without a power sensor."""
        return self.status.recorder.energy_j() if self.status.recorder else None

    def _between(self, step: int | None) -> None:
        self.tell("eval", step)
        if self.leaving():
            raise Leaving

    def _base(self, damaged: Sequence[checkpoints.PassedOver]) -> Path:
        """The base model; refused where there are checkpoints, for none of what they learned would be in it."""
        if damaged:
            where = f"{len(damaged)} checkpoints, first {Path(damaged[0].path).name}: {damaged[0].reason}"
            raise IntegrityError("no checkpoint can be used", where, "restore one, or move them away to begin anew")
        folder = references.resolve(self.home, self.db, "base")
        if bad := verify(folder):
            raise IntegrityError(f"the base model is damaged: {bad[0].reason}", str(folder / bad[0].path), "restore it")
        return folder

    def _leave_others_steps(self, lineage: Lineage, job: str) -> None:
        """Steps of another job that never reached a checkpoint (it failed, it was cancelled) are no part of us."""
        if {step.job for step in journal.steps(self.db, since=lineage.step)} - {job}:
            lineage.branch = journal.new_branch(self.db, lineage.step, "the steps after it were never saved")

    def _saved(self, snapshot: Snapshot, _checkpoint: Checkpoint) -> None:
        before = self.home.checkpoints / str(snapshot.facts["parent"])
        self.status.facts |= movement(stored_weights(before), snapshot.weights, snapshot.gradients)
        checkpoints.prune(self.home, steps_in_use(self.home, self.db), self.config.store.keep_checkpoints)
        trash.empty(self.home)

    def _command(self) -> str | None:
        if self.leaving():
            return "leave"
        self.errands()
        if self._taken_back:
            return "back"
        command = control.current(self.db)
        if command == "pause" and control.frees_memory(self.db):
            return "free"
        if command in (None, "resume"):
            return "pause" if self._guard.full(time.monotonic()) else None
        return command

    def _journal(self, step: Step, progress: Progress) -> None:
        if step.step <= self._replayed_until:
            self._compare(step)
        journal.append(self.db, step)
        if self.status.recorder:
            self.status.recorder.count(step.tokens)
        now = time.monotonic()
        if now - self._progress_told >= STATUS_EVERY_S:
            self._progress_told = now
            done = self.share(progress)
            self.status.facts["epoch"] = done * self.config.training.epochs
            job_rows.set_progress(self.db, step.job, done)

    def share(self, progress: Progress) -> float:
        """How much of the present file's run is behind it."""
        return share(progress, self._rows, self.config.training.epochs)

    def _compare(self, step: Step) -> None:
        """A step repeated after a kill must be the one that was journalled; tells the first time that it is not."""
        if how := difference(self.db, step, self.lineage.differences if self.lineage else ()):
            self._replayed_until = 0
            self.status.record("replay_differs", how)

    def _sample(self, lineage: Lineage, step: int) -> None:
        if self._samples:
            self.status.facts["current_system_prompt"] = ask_one(self.db, self.config, lineage, step, self._samples)
