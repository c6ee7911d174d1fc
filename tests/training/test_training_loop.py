"""The loop obeys within a step, counts what it consumed, and leaves on disk only what can be gone on from."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from stokehold.core.errors import DivergenceError, InputError, IntegrityError
from stokehold.core.records import Checkpoint, JobState, Step
from stokehold.data.formats import Parsed, parse_line, to_row
from stokehold.data.lines import Line, read_lines
from stokehold.store.home import Home
from stokehold.store.models import checkpoints
from stokehold.training.loop import Hooks, Outcome, Work, run_job
from stokehold.training.state import Lineage, Progress, open_lineage
from tiny_world import facts, write_jsonl

ROWS = 150


@dataclass
class World:
    """The loop's surroundings: a command by step, and what it told."""

    home: Home
    rows: Path
    count: int
    commands: dict[int, list[str]] = field(default_factory=dict)
    verdicts: dict[int, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    skips: frozenset[str] = frozenset()
    published: int = 0

    def open(self) -> Lineage:
        newest = checkpoints.latest(self.home).checkpoint
        config = self.home.config()
        lineage = open_lineage(Path(newest.path) if newest else self.home.root / config.model.base, config)
        lineage.saved = newest
        return lineage

    def run(self, lineage: Lineage, until: int | None = None) -> Outcome:
        hooks = Hooks(
            command=lambda: self._command(lineage.step),
            journal=self._journal,
            energy_j=lambda: None,
            state=lambda *_: None,
            saved=self._saved,
            evaluate=self._evaluate,
            sample=lambda *_: None,
            note=lambda *told: self.notes.append(told),
        )
        return run_job(self.home, lineage, Work("job", "run", "data", self.rows, self.count, until, self.skips), hooks)

    def _command(self, step: int) -> str | None:
        waiting = self.commands.get(step)
        return waiting.pop(0) if waiting else None

    def _journal(self, step: Step, _progress: Progress) -> None:
        self.steps.append(step)

    def _saved(self, *_: object) -> None:
        self.published += 1

    def _evaluate(self, lineage: Lineage, _checkpoint: Checkpoint) -> str | None:
        self.judged.append(lineage.step)
        return self.verdicts.get(lineage.step)


@pytest.fixture
def world(make_home: Callable[..., Home], tmp_path: Path) -> Callable[..., World]:
    def make(rows: list[dict[str, Any]] | None = None, **training: Any) -> World:
        home = make_home(training={"micro_batch_tokens": 256, "checkpoint_steps": 100, **training})
        raw = write_jsonl(tmp_path / "raw.jsonl", facts(ROWS) if rows is None else rows)
        samples = []
        for line in read_lines(raw, 100_000):
            assert isinstance(line, Line)
            parsed = parse_line(line, "raw.jsonl")
            assert isinstance(parsed, Parsed)
            samples.append(to_row(parsed.sample))
        return World(home, write_jsonl(home.root / "rows.jsonl", samples), len(samples))

    return make


def weights(outcome: Outcome) -> str:
    return outcome.checkpoint.weights_hash


def test_a_stop_ends_after_the_step_and_the_rest_is_trained_once(world: Callable[..., World]) -> None:
    straight = world()
    whole = straight.run(straight.open())
    assert (whole.state, whole.progress.examples) == (JobState.COMPLETED, ROWS)
    stopped = world()
    stopped.commands = {3: ["stop"], 5: ["skip"], 6: ["leave"]}
    for step, reason in ((3, "stopped"), (5, "skipped"), (6, "leaving")):
        outcome = stopped.run(stopped.open())
        assert (outcome.state, outcome.reason, outcome.checkpoint.step) == (JobState.PARTIAL, reason, step)
    rest = stopped.run(stopped.open())
    assert (rest.state, weights(rest)) == (JobState.COMPLETED, weights(whole))
    assert [step.fingerprint for step in stopped.steps] == [step.fingerprint for step in straight.steps]
    assert sum(step.examples for step in stopped.steps) == ROWS


def test_a_pause_saves_once_however_often_it_is_taken_up(world: Callable[..., World]) -> None:
    straight, paused = world(), world()
    paused.commands = {2: ["pause", "pause", "leave", "pause", "leave", "pause"]}
    lineage = paused.open()
    for _ in range(2):
        assert paused.run(lineage).reason == "leaving"
        lineage = paused.open()
    assert paused.published == 1
    assert list(paused.home.trash.iterdir()) == []
    assert weights(paused.run(lineage)) == weights(straight.run(straight.open()))


def test_a_run_paused_before_its_first_step_goes_on_from_disk(world: Callable[..., World]) -> None:
    straight, paused = world(), world()
    paused.commands = {0: ["pause", "leave"]}
    assert paused.run(paused.open()).checkpoint.step == 0
    assert weights(paused.run(paused.open())) == weights(straight.run(straight.open()))


def long_row(number: int) -> dict[str, Any]:
    return {"prompt": f"row {number}", "completion": "apple sea grass " * 80}


def test_a_file_of_which_no_row_can_be_trained_fails_with_the_first_reason(world: Callable[..., World]) -> None:
    hopeless = world([long_row(number) for number in range(70)])
    with pytest.raises(InputError, match=r"no row of this file could be trained.*line 1: .*max_length"):
        hopeless.run(hopeless.open())
    assert checkpoints.list_checkpoints(hopeless.home) == []
    empty = world([])
    with pytest.raises(InputError, match="no row to train"):
        empty.run(empty.open())


def test_unusable_rows_are_counted_to_the_last_window(world: Callable[..., World]) -> None:
    tail = world([*facts(64), *(long_row(number) for number in range(3))], epochs=2)
    outcome = tail.run(tail.open())
    assert outcome.progress.unusable == (65, 66, 67)
    assert (outcome.state, outcome.progress.examples) == (JobState.COMPLETED, 128)


def test_what_was_passed_over_behind_a_checkpoint_is_in_the_last_one(world: Callable[..., World]) -> None:
    straight = world()
    straight.run(straight.open())
    *_, before, last = straight.steps
    skipping = world(checkpoint_steps=before.step)
    skipping.skips = frozenset({f"0:{last.fingerprint}"})
    outcome = skipping.run(skipping.open())
    assert (outcome.checkpoint.step, outcome.progress.skipped) == (before.step, last.examples)
    assert skipping.open().runs["run"] == outcome.progress


def test_rows_refused_behind_a_checkpoint_are_in_the_last_one(world: Callable[..., World]) -> None:
    rows = [*facts(64), *(long_row(number) for number in range(3))]
    straight = world(rows)
    straight.run(straight.open())
    tail = world(rows, checkpoint_steps=straight.steps[-1].step)
    outcome = tail.run(tail.open())
    assert outcome.progress.unusable == (65, 66, 67)
    assert tail.open().runs["run"] == outcome.progress


def test_a_file_that_lost_rows_is_not_completed(world: Callable[..., World]) -> None:
    short = world()
    short.count += 1
    with pytest.raises(IntegrityError, match=f"{ROWS} of {ROWS + 1} examples"):
        short.run(short.open())


def test_what_is_not_finite_is_never_saved(world: Callable[..., World]) -> None:
    broken = world(checkpoint_steps=2)
    lineage = broken.open()
    broken.run(lineage, until=3)
    with torch.no_grad():
        next(lineage.model.parameters())[:] = float("nan")
    with pytest.raises(DivergenceError, match=r"step 4, batch [0-9a-f]{16}"):
        broken.run(lineage)
    assert [one.step for one in checkpoints.list_checkpoints(broken.home)] == [2, 3]
    fresh, straight = broken.open(), world()
    assert weights(broken.run(fresh)) == weights(straight.run(straight.open()))


def test_a_verdict_may_end_the_job_and_nothing_is_saved_after_it(world: Callable[..., World]) -> None:
    judged = world(eval_steps=2)
    judged.verdicts = {4: "taken back"}
    outcome = judged.run(judged.open())
    assert (outcome.state, outcome.reason, outcome.checkpoint.step) == (JobState.PARTIAL, "taken back", 4)
    assert (judged.judged, judged.published) == ([2, 4], 2)


def test_an_evaluation_that_a_kill_prevented_is_made_up_for(world: Callable[..., World]) -> None:
    killed = world(eval_steps=2)
    killed.verdicts = {2: "leaving"}
    assert killed.run(killed.open()).checkpoint.step == 2
    killed.verdicts = {}
    killed.run(killed.open(), until=4)
    assert Counter(killed.judged) == {2: 2, 4: 1}
