"""The training loop, top to bottom: obey, take a batch, step, journal, checkpoint, evaluate.

A job is one file. It ends `completed` when every accepted row was trained `epochs` times, `partial` when somebody
stopped or skipped it, the step limit was reached or the verdict took the model back; all leave a checkpoint behind. An
exception leaves none: the weights on disk are those of the last checkpoint.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from stokehold.core.errors import InputError, IntegrityError
from stokehold.core.records import Checkpoint, JobState, Rejection, Step
from stokehold.data.batches import Batch, Batches, Cursor
from stokehold.store.checkpoints import publish_checkpoint
from stokehold.store.home import Home
from stokehold.training.state import Lineage, Progress, take_snapshot, write_snapshot
from stokehold.training.step import StepResult, optimiser_step

ENDS = {"stop": "stopped", "skip": "skipped", "leave": "leaving"}
"""Commands that end a job early, and the reason it then gives."""

PAUSE_POLL_S = 0.1
"""How soon a paused run notices `resume`; reading the control row costs about 0.1 ms."""


@dataclass(frozen=True)
class Work:
    """One job to train: its dataset's `count` rows, and where to stop (`until_step` is absolute, None for the end).

    `run` names the cursor: a file that was skipped and comes back under another job goes on where it was.
    """

    job: str
    run: str
    dataset: str
    rows: Path
    count: int
    until_step: int | None = None


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of the world between two steps; each is a plain function handed in by the pipeline."""

    command: Callable[[], str | None]
    """`pause`, `stop`, `skip`, `leave` or None, read at every step."""
    journal: Callable[[Step, Progress], None]
    energy_j: Callable[[], float | None]
    """Joules since the session began, None without a power sensor."""
    state: Callable[[str, int], None]
    """Tells telemetry and the status what the process is doing: training_step, checkpoint, eval, paused."""
    saved: Callable[[], None]
    """A checkpoint was published: older ones may go."""
    evaluate: Callable[[Lineage, Checkpoint], str | None]
    """Judges the weights; returns why the job must end here, None to go on."""
    sample: Callable[[Lineage, int], None]


@dataclass(frozen=True)
class Outcome:
    """How a job ended, with its totals; `reason` is "leaving" when the process was asked to leave with work undone."""

    state: JobState
    progress: Progress
    checkpoint: Checkpoint
    loss: float | None
    reason: str


def run_job(home: Home, lineage: Lineage, work: Work, hooks: Hooks) -> Outcome:
    """Trains `work` from its cursor to its end, or to where it is told to stop."""
    config = lineage.config.training
    progress = lineage.runs.setdefault(work.run, Progress(work.dataset, Cursor.start()))
    loss: float | None = None
    state = JobState.PARTIAL

    with open_batches(lineage, work, progress) as batches:
        groups = grouped(batches, config.accumulation)
        while True:
            # First, so that the evaluation of a checkpoint is made up for when a kill came between the two.
            if lineage.saved and lineage.step > 0 and due(lineage.step, config.eval_steps):
                hooks.state("eval", lineage.step)
                if reason := hooks.evaluate(lineage, lineage.saved):
                    break
            command = hooks.command()
            if command == "pause":
                save(home, lineage, hooks)
                command = wait_while_paused(hooks, lineage.step)
            if command in ENDS:
                reason = ENDS[command]
                break
            if work.until_step is not None and lineage.step >= work.until_step:
                reason = f"reached step {work.until_step}"
                break
            started, energy = time.perf_counter(), hooks.energy_j()
            group = next(groups, None)
            if group is None:
                state, reason = JobState.COMPLETED, end_of_file(lineage, work, batches.rejected)
                break

            hooks.state("training_step", lineage.step + 1)
            result = optimiser_step(lineage, group)
            lineage.saved = None
            progress = advance(lineage.runs[work.run], group, batches.rejected)
            lineage.runs[work.run] = progress
            joules = spent(energy, hooks.energy_j())
            seconds = time.perf_counter() - started
            hooks.journal(journal_row(lineage, work, result, seconds, joules), progress)
            loss = result.loss

            if lineage.step % config.checkpoint_steps == 0 or due(lineage.step, config.eval_steps):
                save(home, lineage, hooks)
            if due(lineage.step, config.sample_steps):
                hooks.sample(lineage, lineage.step)

    return Outcome(state, lineage.runs[work.run], save(home, lineage, hooks), loss, reason)


def open_batches(lineage: Lineage, work: Work, progress: Progress) -> Batches:
    """The batches that follow the job's cursor; the same ones however often the run was started."""
    data, training = lineage.config.data, lineage.config.training
    return Batches(
        work.rows,
        lineage.tokenizer,
        window_rows=data.window_rows,
        capacity=training.micro_batch_tokens,
        max_length=data.max_length,
        seed=data.seed,
        epochs=training.epochs,
        cursor=progress.cursor,
    )


def grouped(batches: Batches, size: int) -> Iterator[list[Batch]]:
    """Batches in groups of `size`, the last one shorter: one group is one optimiser step."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def advance(progress: Progress, group: list[Batch], rejected: Iterable[Rejection]) -> Progress:
    """Progress after a step on `group`."""
    return replace(
        progress,
        cursor=group[-1].cursor,
        examples=progress.examples + sum(batch.examples for batch in group),
        tokens=progress.tokens + sum(len(batch.ids) for batch in group),
        unusable=unusable_lines(progress, rejected),
    )


def unusable_lines(progress: Progress, rejected: Iterable[Rejection]) -> tuple[int, ...]:
    return tuple(sorted({*progress.unusable, *(one.line for one in rejected)}))


def end_of_file(lineage: Lineage, work: Work, rejected: Sequence[Rejection]) -> str:
    """The reason of a job whose rows ran out. Completion is decided by examples consumed, never by having got here.

    Raises InputError when nothing could be trained, IntegrityError when fewer rows were than the file has.
    """
    progress = lineage.runs[work.run]
    progress = replace(progress, unusable=unusable_lines(progress, rejected))
    lineage.runs[work.run] = progress
    if progress.examples == 0:
        why = f"line {rejected[0].line}: {rejected[0].reason}" if rejected else "it has no row to train"
        raise InputError("no row of this file could be trained", f"dataset {work.dataset}", why)
    wanted = lineage.config.training.epochs * (work.count - len(progress.unusable))
    if progress.examples < wanted:
        lost = f"{progress.examples} of {wanted} examples were trained"
        raise IntegrityError("rows are missing", f"dataset {work.dataset}", f"{lost}; verify the dataset's rows.jsonl")
    return f"trained {progress.examples} examples"


def save(home: Home, lineage: Lineage, hooks: Hooks) -> Checkpoint:
    """The checkpoint of these weights, published unless they are on disk already."""
    if lineage.saved is None:
        hooks.state("checkpoint", lineage.step)
        datasets = sorted({progress.dataset for progress in lineage.runs.values()})
        facts = {"parent": lineage.parent, "branch": lineage.branch, "datasets": datasets}
        snapshot = take_snapshot(lineage)
        lineage.saved = publish_checkpoint(home, lineage.step, lambda folder: write_snapshot(snapshot, folder), facts)
        lineage.parent = Path(lineage.saved.path).name
        hooks.saved()
    return lineage.saved


def wait_while_paused(hooks: Hooks, step: int) -> str | None:
    """Blocks until the command is no longer `pause`; returns the command that ended it."""
    while (command := hooks.command()) == "pause":
        hooks.state("paused", step)
        time.sleep(PAUSE_POLL_S)
    return command


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
