"""The training loop, top to bottom: obey, take a batch, step, journal, checkpoint, evaluate.

A job is one file. It ends `completed` when every accepted row was trained `epochs` times, `partial` when somebody
stopped or skipped it or the step limit was reached; both leave a checkpoint behind. An exception leaves none: the
weights on disk are those of the last checkpoint.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from stokehold.core.records import Checkpoint, JobState, Step
from stokehold.data.batches import Batch, Batches, Cursor
from stokehold.store.checkpoints import publish_checkpoint
from stokehold.store.home import Home
from stokehold.training.state import Lineage, Progress, write_state
from stokehold.training.step import StepResult, optimiser_step

PAUSE_POLL_S = 0.1
"""How soon a paused run notices `resume`; reading the control row costs about 0.1 ms."""


@dataclass(frozen=True)
class Work:
    """One job to train: its dataset's rows, and where to stop (`until_step` is absolute, None for the end).

    `run` names the cursor: a file that was skipped and comes back under another job goes on where it was.
    """

    job: str
    run: str
    dataset: str
    rows: Path
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
    evaluate: Callable[[Lineage, Checkpoint], None]
    sample: Callable[[Lineage, int], None]


@dataclass(frozen=True)
class Outcome:
    """How a job ended, with its totals; `left` is true when the process was asked to leave with work undone."""

    state: JobState
    progress: Progress
    checkpoint: Checkpoint
    loss: float | None
    reason: str
    left: bool = False


def run_job(home: Home, lineage: Lineage, work: Work, hooks: Hooks) -> Outcome:
    """Trains `work` from its cursor to its end, or to where it is told to stop."""
    config = lineage.config.training
    progress = lineage.runs.get(work.run) or Progress(work.dataset, Cursor.start())
    lineage.runs[work.run] = progress
    loss: float | None = None
    saved: Checkpoint | None = None

    with open_batches(lineage, work, progress) as batches:
        groups = grouped(batches, config.accumulation)
        while True:
            command = hooks.command()
            if command == "pause":
                saved = saved or save(home, lineage, work, hooks)
                command = wait_while_paused(hooks, lineage.step)
            if command in ("stop", "skip", "leave"):
                state, reason = JobState.PARTIAL, {"stop": "stopped", "skip": "skipped", "leave": "leaving"}[command]
                break
            if work.until_step is not None and lineage.step >= work.until_step:
                state, reason = JobState.PARTIAL, f"reached step {work.until_step}"
                break
            started, energy = time.perf_counter(), hooks.energy_j()
            group = next(groups, None)
            if group is None:
                state, reason = end_of_file(lineage.runs[work.run])
                break

            hooks.state("training_step", lineage.step + 1)
            result = optimiser_step(lineage, group)
            progress = advance(lineage.runs[work.run], group, (one.line for one in batches.rejected))
            lineage.runs[work.run] = progress
            joules = spent(energy, hooks.energy_j())
            seconds = time.perf_counter() - started
            hooks.journal(journal_row(lineage, work, result, seconds, joules), progress)
            loss, saved = result.loss, None

            if lineage.step % config.checkpoint_steps == 0 or due(lineage.step, config.eval_steps):
                saved = save(home, lineage, work, hooks)
            if due(lineage.step, config.sample_steps):
                hooks.sample(lineage, lineage.step)
            if saved and due(lineage.step, config.eval_steps):
                hooks.state("eval", lineage.step)
                hooks.evaluate(lineage, saved)

    saved = saved or save(home, lineage, work, hooks)
    return Outcome(state, lineage.runs[work.run], saved, loss, reason, left=reason == "leaving")


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


def advance(progress: Progress, group: list[Batch], unusable: Iterable[int]) -> Progress:
    """Progress after a step on `group`."""
    return replace(
        progress,
        cursor=group[-1].cursor,
        examples=progress.examples + sum(batch.examples for batch in group),
        tokens=progress.tokens + sum(len(batch.ids) for batch in group),
        unusable=tuple(sorted({*progress.unusable, *unusable})),
    )


def end_of_file(progress: Progress) -> tuple[JobState, str]:
    """A job whose rows ran out is complete only if it trained some: an empty run is a failure, not a success."""
    if progress.examples == 0:
        return JobState.FAILED, "no row of this file could be trained; see its rejected.jsonl"
    return JobState.COMPLETED, f"trained {progress.examples} examples"


def save(home: Home, lineage: Lineage, work: Work, hooks: Hooks) -> Checkpoint:
    """Publishes a checkpoint of this step; the same step is never written twice."""
    hooks.state("checkpoint", lineage.step)
    datasets = sorted({progress.dataset for progress in lineage.runs.values()})
    facts = {"parent": lineage.parent, "branch": lineage.branch, "datasets": datasets}
    checkpoint = publish_checkpoint(home, lineage.step, lambda folder: write_state(lineage, folder), facts)
    lineage.parent = Path(checkpoint.path).name
    return checkpoint


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
