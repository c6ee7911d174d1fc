"""What stored evaluations lead to, one after another, and that a kill between any two writes leads to the same."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from stokehold.core.records import Evaluation, JobState, Priority, Step, SuiteResult, SuiteState, Verdict
from stokehold.pipeline.promote import BEST, finish_going_back, worse_in_a_row
from stokehold.pipeline.trainer import Trainer
from stokehold.store.db import events, job_rows, journal
from stokehold.store.db.database import Database, connect
from stokehold.store.files import utc_now, write_atomic
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, versions
from tiny_world import safetensors

ITEMS = 40


@dataclass
class World:
    """Checkpoints, journal and evaluations as training leaves them; the weights are a few bytes."""

    home: Home
    db: Database
    trainer: Trainer

    def trained(self, step: int, job: str = "train-a", content: str = "") -> str:
        """A step of `job` with its checkpoint; returns the hash of the weights."""
        known = {found.id for found in job_rows.list_jobs(self.db)}
        if job not in known:
            with self.db.write() as connection:
                job_rows.insert(connection, job, "train", Priority.NORMAL, {"job": job, "file": f"{job}.jsonl"})
            job_rows.set_state(self.db, job, JobState.COMPLETED)
        branch = journal.current_branch(self.db)
        row: dict[str, Any] = {"loss": 1.0, "components": {}, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 1}
        row |= {"loss_tokens": 1, "examples": 1, "seconds": 0.1, "joules": None, "fingerprint": "f", "dataset": "d"}
        journal.append(self.db, Step(step=step, branch=branch, job=job, created=utc_now(), **row))
        text = safetensors(f"weights of step {step} {content}".encode())
        files = {"model.safetensors": text, "config.json": b"{}", "tokenizer.json": b"{}"}

        def write(folder: Path) -> None:
            for name, data in files.items():
                (folder / name).write_bytes(data)

        return checkpoints.publish_checkpoint(self.home, step, write, {"branch": branch, "datasets": []}).weights_hash

    def judged(self, step: int, right: int, state: SuiteState = SuiteState.OK, **more: Any) -> Evaluation:
        """The evaluation of the checkpoint at `step`: the first `right` of the items are answered rightly.

        Fewer right ones also make every gold answer less likely, as trainings do.
        """
        weights = checkpoints.load_checkpoint(checkpoints.checkpoint_folder(self.home, step)).weights_hash
        result = {"s": SuiteResult("s", state, n=ITEMS, exact=right / ITEMS)}
        identity, mark = f"{weights[:16]}{more.get('how', 'how')}", f"{more.get('how', 'how')}-what"
        record = Evaluation(identity, f"step:{step}", weights, mark, result, 0.1, "", utc_now(), step)
        rows = [
            {"suite": "s", "sample_id": str(i), "score": float(i < right), "parts": {}, "reason": None}
            | {"gold_nll": (0.5 if i < right else 1.0) + 0.01 * (ITEMS - right), "gold_tokens": 5}
            for i in range(ITEMS)
        ]
        lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        return evaluations.save(
            self.home, self.db, record, lambda f: write_atomic(f / "completions.jsonl", lines) or None
        )

    def decided(self, step: int, right: int, job: str = "train-a", **more: Any) -> str | None:
        """Trains, judges and decides; returns what was decided."""
        self.trained(step, job)
        evaluation = self.judged(step, right, **more)
        self.trainer.decide(evaluation)
        return evaluations.decided(self.db, evaluation.id)[1]

    def steps(self) -> list[int]:
        return [found.step for found in checkpoints.list_checkpoints(self.home)]

    def end(self) -> dict[str, Any]:
        """All that must not depend on kills; numbers of versions may, for a number is never given twice."""
        made = versions.list_versions(self.home)
        weights = {version.name: version.weights_hash for version in made}
        return {
            "versions": sorted(weights.values()),
            "champion": weights.get(versions.alias(self.db) or ""),
            "best": weights.get(versions.alias(self.db, BEST) or ""),
            "decisions": sorted(
                str(evaluations.decided(self.db, e.id)) for e in evaluations.list_evaluations(self.home, self.db)
            ),
            "spans": journal.spans(self.db),
            "checkpoints": self.steps(),
            "jobs": {job.id: job.state for job in job_rows.list_jobs(self.db)},
            "aside": sorted(entry.origin for entry in trash.listing(self.home)),
        }


@pytest.fixture
def world(make_home: Callable[..., Home]) -> Callable[..., World]:
    def make(**tables: Any) -> World:
        home = make_home(**tables)
        db = connect(home)
        return World(home, db, Trainer(home, home.config(), db, lambda: False))

    return make


def test_the_first_better_and_equal_weights_become_champion(world: Callable[..., World]) -> None:
    one = world()
    assert [one.decided(10, 20), one.decided(20, 32), one.decided(30, 32)] == ["promote"] * 3
    made = versions.list_versions(one.home)
    assert [(version.step, version.parent) for version in made] == [(10, None), (20, "v0001"), (30, "v0002")]
    assert (versions.alias(one.db), versions.alias(one.db, BEST)) == ("v0003", "v0002")


def test_worse_is_held_once_and_taken_back_twice(world: Callable[..., World]) -> None:
    one = world()
    assert one.decided(10, 34, "train-a") == "promote"
    assert one.decided(20, 27, "train-b") == "hold"
    assert one.steps() == [10, 20]
    assert one.decided(30, 27, "train-c") == "rollback"
    assert (one.steps(), versions.alias(one.db)) == ([10], "v0001")
    assert [entry.origin for entry in trash.listing(one.home)] == [f"checkpoints/step_{n:09d}" for n in (20, 30)]
    assert [step.step for step in journal.steps(one.db)] == [10]
    assert [step.step for step in journal.steps(one.db, branch=0)] == [10, 20, 30]
    found = {job.id: (job.state, job.error) for job in job_rows.list_jobs(one.db)}
    assert found["train-a"] == (JobState.COMPLETED, None)
    for lost in ("train-b", "train-c"):
        assert found[lost][0] is JobState.PARTIAL
        assert "retry" in (found[lost][1] or "")
    assert len(events.events(one.db, kind="taken_back")) == 2
    # The count begins anew, and names are never used again: step 20 of the new branch is another checkpoint.
    one.trained(20, content="another")
    again = one.judged(20, 27)
    one.trainer.decide(again)
    assert evaluations.decided(one.db, again.id) == (Verdict.WORSE, "hold")
    assert checkpoints.latest(one.home, one.db).checkpoint == checkpoints.list_checkpoints(one.home)[-1]


def test_a_great_loss_is_taken_back_at_once(world: Callable[..., World]) -> None:
    one = world()
    assert [one.decided(10, 34), one.decided(20, 10)] == ["promote", "rollback"]
    assert one.steps() == [10]


def test_what_nothing_was_decided_on_does_not_count(world: Callable[..., World]) -> None:
    one = world()
    one.decided(10, 34)
    assert one.decided(20, 27) == "hold"
    one.judged(10, 34, how="asked-for")  # somebody looked at the champion meanwhile
    one.trained(30)
    assert worse_in_a_row(one.home, one.db, one.judged(30, 27)) == 1


@pytest.mark.parametrize(("state", "action"), [(SuiteState.BROKEN, "alert"), (SuiteState.NO_DATA, "hold")])
def test_without_a_reading_nothing_is_promoted(world: Callable[..., World], state: SuiteState, action: str) -> None:
    one = world()
    assert one.decided(10, 34, state=state) == action
    assert versions.list_versions(one.home) == []


def test_the_same_weights_are_no_second_version(world: Callable[..., World]) -> None:
    one = world()
    one.decided(10, 34)
    again = one.judged(10, 34, how="other")
    one.trainer.decide(again)
    assert len(versions.list_versions(one.home)) == 1


def test_a_champion_without_a_checkpoint_is_an_alert_not_a_failure(world: Callable[..., World]) -> None:
    one = world()
    one.decided(10, 34)
    trash.discard(one.home, checkpoints.checkpoint_folder(one.home, 10), "by hand")
    assert one.decided(20, 5) == "alert"
    assert one.steps() == [20]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test handles it."""


class Killer:
    """Ends us right before the n-th durable write: a commit of the database, or a renaming of a file."""

    def __init__(self) -> None:
        self.left = -1
        sys.addaudithook(lambda event, _: self.count() if event == "os.rename" else None)

    def count(self, *_: object) -> None:
        if self.left > 0:
            self.left -= 1
            if self.left == 0:
                self.left = -1
                raise Killed

    def watch(self, db: Database) -> None:
        sa.event.listen(db.engine, "commit", self.count)


@pytest.fixture(scope="module")
def killer() -> Killer:
    return Killer()


SCENARIOS = {
    "first": ([], 20),
    "better": ([(10, 20)], 34),
    "better than a champion that is not the best": ([(10, 20), (20, 20)], 34),
    "equal": ([(10, 30)], 30),
    "worse": ([(10, 34)], 27),
    "worse twice": ([(10, 34), (20, 27)], 27),
}


PLACES = [*((name, False) for name in SCENARIOS), ("worse twice", True)]


@pytest.mark.parametrize(("scenario", "at_start"), PLACES)
def test_a_kill_between_any_two_writes_changes_nothing(
    world: Callable[..., World], killer: Killer, scenario: str, at_start: bool
) -> None:
    """The rest is seen to when the job is taken up again, or already at the next start."""
    before, right = SCENARIOS[scenario]

    def prepared() -> tuple[World, Evaluation]:
        one = world()
        for step, good in before:
            one.decided(step, good)
        one.trained(40)
        return one, one.judged(40, right)

    straight, evaluation = prepared()
    straight.trainer.decide(evaluation)
    writes = 0
    while True:
        one, evaluation = prepared()
        killer.watch(one.db)
        killer.left = writes + 1
        try:
            one.trainer.decide(evaluation)
        except Killed:
            writes += 1
        else:
            break
        if at_start:
            finish_going_back(one.home, one.db)
        Trainer(one.home, one.home.config(), one.db, lambda: False).decide(evaluation)
        assert one.end() == straight.end(), f"killed before write {writes}"
    killer.left = -1
    assert writes >= 2
