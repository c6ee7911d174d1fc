"""The training loop, top to bottom: obey, take a batch, step, journal, checkpoint, evaluate.

A job is one file. It ends `completed` when every accepted row was trained `epochs` times, `partial` when somebody
stopped or skipped it, the step limit was reached or the verdict took the model back; all leave a checkpoint behind. An
exception leaves none: the weights on disk are those of the last checkpoint.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from stokehold.core.errors import DiskFullError
from stokehold.core.records import Checkpoint, JobState, Step, WindowTokens
from stokehold.data.batches import Batch, Batches, Cursor
from stokehold.store.failpoints import reach
from stokehold.store.home import Home
from stokehold.training.guards import ceiling, group_key, guarded_step, level_key
from stokehold.training.progress import completed, passed_over, trained
from stokehold.training.state import Lineage, Progress, Snapshot
from stokehold.training.step import StepResult
from stokehold.training.writer import ROOM_POLL_S, CheckpointWriter

FREED = "paused without the model"
ENDS = {"stop": "stopped", "skip": "skipped", "leave": "leaving", "free": FREED, "back": "taken back"}
"""Commands that end a job early, and the reason it then gives."""

PAUSE_POLL_S = 0.1
"""How soon a paused run notices `resume`; reading the control row costs about 0.1 ms."""

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """One job to train: its dataset's `count` rows, and where to stop (`until_step` is absolute, None for the end).

    `run` names the cursor: a file that was skipped and comes back under another job goes on where it was. `skips` are
    the keys of batch groups that spoilt a step before and are passed over, and of steps where losses rose for good.
    """

    job: str
    run: str
    dataset: str
    rows: Path
    count: int
    until_step: int | None = None
    skips: frozenset[str] = frozenset()
    counted: Callable[[WindowTokens], None] | None = None
    """Told the lengths of each window of rows when it is begun in the first epoch."""


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of the world between two steps; each is a plain function handed in by the pipeline."""

    command: Callable[[], str | None]
    """`pause`, `free` (a pause that wants the memory), `stop`, `skip`, `leave`, `back` (these weights were given up) or
    None, read at every step."""
    journal: Callable[[Step, Progress], None]
    energy_j: Callable[[], float | None]
    """Joules since the session began, None without a power sensor."""
    state: Callable[[str, int], None]
    """Tells telemetry and the status what the process is doing: training_step, checkpoint, eval, paused, disk_full."""
    saved: Callable[[Snapshot, Checkpoint], None]
    """A checkpoint was published: older ones may go. Called on the writer's thread."""
    evaluate: Callable[[Lineage, Checkpoint], str | None]
    """Judges the weights; returns why the job must end here, None to go on."""
    sample: Callable[[Lineage, int], None]
    note: Callable[[str, str], None]
    """An event for people: its kind and a sentence."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended, with its totals; `reason` is "leaving" when the process was asked to leave with work undone."""

    state: JobState
    progress: Progress
    checkpoint: Checkpoint
    loss: float | None
    reason: str

    @property
    def to_judge(self) -> bool:
        """Whether what came of it is judged: it was trained to its end, or as far as somebody wanted."""
        return self.state is JobState.COMPLETED or self.reason == ENDS["stop"]


def run_job(home: Home, lineage: Lineage, work: Work, hooks: Hooks) -> Outcome:
    """Trains `work` from its cursor to its end, or to where it is told to stop.

    Raises BadBatch, with no weight changed, when a batch must be passed over: go back to the newest checkpoint, add its
    key to `skips`, and call again.
    """
    config = lineage.config.training
    progress = lineage.runs.setdefault(work.run, Progress(work.dataset, Cursor.start()))
    loss: float | None = None
    state = JobState.PARTIAL
    noted = 0

    with (
        open_batches(lineage, work, progress, hooks) as batches,
        CheckpointWriter(home, lineage, hooks.saved, lambda error: wait_for_room(hooks, lineage.step, error)) as writer,
    ):
        groups = grouped(batches, config.accumulation)
        while True:
            writer.collect()
            # First, so that the evaluation of a checkpoint is made up for when a kill came between the two.
            if lineage.step > 0 and due(lineage.step, config.eval_steps):
                hooks.state("checkpoint", lineage.step)
                writer.wait()
                if lineage.saved and (reason := judged(lineage, lineage.saved, hooks)):
                    break
            command = hooks.command()
            if command == "pause":
                writer.finish()
                command = wait_while_paused(hooks, lineage.step)
            if command in ENDS:
                reason = ENDS[command]
                break
            if work.until_step is not None and lineage.step >= work.until_step:
                reason = f"reached step {work.until_step}"
                break
            started, energy = time.perf_counter(), hooks.energy_j()
            group = next(groups, None)
            progress, fresh = lineage.runs[work.run], batches.rejected[noted:]
            noted += len(fresh)
            if group is None:
                done = completed(progress, work.count, config.epochs, fresh, work.dataset)
                if done != progress:
                    move_on(lineage, work.run, done, writer)
                state, reason = JobState.COMPLETED, f"trained {progress.examples} examples"
                break
            if group_key(group) in work.skips:
                move_on(lineage, work.run, passed_over(progress, group, fresh), writer)
                continue

            if level_key(lineage.step + 1) in work.skips:
                progress = replace(progress, steps=0, mean_loss=None)
            hooks.state("training_step", lineage.step + 1)
            highest = ceiling(progress, config.spike_factor)
            result = guarded_step(lineage, group, highest, partial(hooks.note, "out_of_memory"))
            reach("step.updated")
            lineage.saved, loss = None, result.loss
            progress = trained(progress, group, fresh, loss)
            lineage.runs[work.run] = progress
            joules = spent(energy, hooks.energy_j())
            row = journal_row(lineage, work, result, time.perf_counter() - started, joules)
            with_room(hooks, row.step, partial(hooks.journal, row, progress))
            reach("step.journalled")

            if lineage.step % config.checkpoint_steps == 0 or due(lineage.step, config.eval_steps):
                writer.begin()
            if due(lineage.step, config.sample_steps):
                hooks.sample(lineage, lineage.step)

        hooks.state("checkpoint", lineage.step)
        return Outcome(state, lineage.runs[work.run], writer.finish(), loss, reason)


def open_batches(lineage: Lineage, work: Work, progress: Progress, hooks: Hooks) -> Batches:
    """The batches that follow the job's cursor; the same ones however often the run was started."""
    data, training = lineage.config.data, lineage.config.training
    count = work.counted
    return Batches(
        work.rows,
        lineage.tokenizer,
        window_rows=data.window_rows,
        capacity=training.micro_batch_tokens,
        max_length=data.max_length,
        seed=data.seed,
        epochs=training.epochs,
        cursor=progress.cursor,
        counted=count and (lambda window: with_room(hooks, lineage.step, partial(count, window))),
    )


def grouped(batches: Batches, size: int) -> Iterator[list[Batch]]:
    """Batches in groups of `size`, the last one shorter: one group is one optimiser step."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def move_on(lineage: Lineage, run: str, progress: Progress, writer: CheckpointWriter) -> None:
    """Progress of a run without a step: a checkpoint of these weights that is there, or being written, lacks it."""
    writer.wait()
    lineage.runs[run], lineage.saved = progress, None


def judged(lineage: Lineage, checkpoint: Checkpoint, hooks: Hooks) -> str | None:
    hooks.state("eval", lineage.step)
    return hooks.evaluate(lineage, checkpoint)


def wait_while_paused(hooks: Hooks, step: int) -> str | None:
    """Blocks until the command is no longer `pause`; returns the command that ended it."""
    while (command := hooks.command()) == "pause":
        hooks.state("paused", step)
        time.sleep(PAUSE_POLL_S)
    return command


def wait_for_room(hooks: Hooks, step: int, error: DiskFullError) -> None:
    """Tells that the run waits for room on the disk; raises the error again when the process is to leave."""
    hooks.state("disk_full", step)
    if hooks.command() == "leave":
        raise error


def with_room(hooks: Hooks, step: int, write: Callable[[], T]) -> T:
    """What `write` returns, tried until the disk has room for it."""
    while True:
        try:
            return write()
        except DiskFullError as error:
            wait_for_room(hooks, step, error)
            time.sleep(ROOM_POLL_S)


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def spent(before: float | None, after: float | None) -> float | None:
    """Joules between two readings, None where either is unknown."""
    return None if before is None or after is None else after - before


def journal_row(lineage: Lineage, work: Work, result: StepResult, seconds: float, joules: float | None) -> Step:
    return Step(
        step=lineage.step,
        branch=lineage.branch,
        job=work.job,
        dataset=work.dataset,
        seconds=seconds,
        joules=joules,
        created=datetime.now(UTC).isoformat(),
        **result.__dict__,
    )
