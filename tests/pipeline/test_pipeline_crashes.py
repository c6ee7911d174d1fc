"""The crash matrix: every named place × SIGKILL, and × a full disk, and the run that comes out is the straight one."""

import errno
import os
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import journey
import pytest
import sqlalchemy as sa
from bench import Bench

from full_disk import full_disk
from stokehold.cli.inspect import account
from stokehold.core.records import JobState
from stokehold.pipeline import workflows
from stokehold.pipeline.workflows import Workshop, run_stage
from stokehold.store import failpoints
from stokehold.store.db import events, job_rows, journal
from stokehold.store.db.database import Database, connect
from stokehold.store.disk import Disk
from stokehold.store.files import verify
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, versions
from tiny_world import facts, held_out_facts, write_jsonl

ROWS = facts(90)
PUBLISHES = {"publish.written": (1, 2, 4, 5, 6), "publish.manifest": (1, 3, 5), "publish.renamed": (1, 3, 5)}
"""What is published in turn: the dataset, checkpoints, the evaluation, the version."""

LATER = {"step.computed": (7,), "step.updated": (5,), "step.journalled": (5, 6), "checkpoint.weights": (2,)}
PLACES = [f"{name}@{time}" for name in failpoints.NAMES for time in PUBLISHES.get(name, LATER.get(name, (1,)))]


@pytest.fixture
def home(make_home: Callable[..., Home]) -> Callable[[], Home]:
    def make() -> Home:
        made = make_home(training={"checkpoint_steps": 3, "epochs": 2})
        write_jsonl(made.suites / "facts.jsonl", held_out_facts()[:6])
        return made

    return make


def outcome(home: Home) -> dict[str, Any]:
    """What must be equal however often the journey was broken off; and whether all that is on disk is whole."""
    db = connect(home)
    newest = checkpoints.latest(home, db)
    assert newest.checkpoint is not None
    assert newest.passed_over == ()
    folders = [*home.checkpoints.iterdir(), *home.versions.iterdir(), *home.datasets.iterdir()]
    folders += list(home.evaluations.iterdir())
    assert [path.name for path in folders if path.name.startswith(".")] == [], "nothing half written stays"
    assert [fault for folder in folders for fault in verify(folder)] == []
    (row,) = account(home, db, Path(newest.checkpoint.path))
    assert row.balanced
    steps = journal.steps(db)
    found = {
        "weights": newest.checkpoint.weights_hash,
        "steps": [(step.step, step.fingerprint, step.loss, step.grad_norm) for step in steps],
        "ledger": row,
        "champion": versions.find_version(home, versions.alias(db) or "").weights_hash,
        "versions": len(versions.list_versions(home)),
        "evaluations": len(evaluations.list_evaluations(home, db)),
        "jobs": [(job.kind, job.state) for job in job_rows.list_jobs(db)],
    }
    db.close()
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {}


def reference(straight: dict[str, Any], home: Callable[[], Home]) -> dict[str, Any]:
    """The journey that nothing broke off, once for the module."""
    if not straight:
        made = home()
        assert journey.process(made.root, ROWS) == 0
        straight |= outcome(made)
        assert straight["ledger"].trained == len(ROWS)
        assert all(state is JobState.COMPLETED for _, state in straight["jobs"])
        assert straight["versions"] == 1
    return straight


@pytest.mark.parametrize("place", PLACES)
def test_killed_there_and_started_again_it_is_the_same_run(
    home: Callable[[], Home], straight: dict[str, Any], place: str
) -> None:
    name, _, time = place.partition("@")
    made = home()
    assert journey.process(made.root, ROWS, f"{name}:kill@{time}") == -signal.SIGKILL
    assert journey.process(made.root, ROWS) == 0
    assert outcome(made) == reference(straight, home)


@pytest.mark.parametrize("place", PLACES)
def test_when_the_disk_is_full_there_it_waits_and_goes_on(
    home: Callable[[], Home], straight: dict[str, Any], place: str
) -> None:
    name, _, time = place.partition("@")
    made = home()
    assert journey.process(made.root, ROWS, f"{name}:full@{time}") == 0
    assert outcome(made) == reference(straight, home)


def test_killed_at_one_place_after_the_other(home: Callable[[], Home], straight: dict[str, Any]) -> None:
    made = home()
    places = ("dataset.published", "step.journalled", "publish.manifest", "checkpoint.published", "promotion.version")
    for name in places:
        assert journey.process(made.root, ROWS, f"{name}:kill@1") == -signal.SIGKILL
    assert journey.process(made.root, ROWS) == 0
    assert outcome(made) == reference(straight, home)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflows, "ROOM_POLL_S", journey.ROOM_POLL_S)
    monkeypatch.setattr(workflows, "ROOM_POLL_MOST_S", journey.ROOM_POLL_S)


def sessions(home: Home) -> list[list[str]]:
    """The endings of the files in each folder of a session."""
    return [sorted(path.suffix for path in folder.iterdir()) for folder in home.sessions.iterdir()]


def test_a_disk_that_is_full_when_training_begins_is_no_attempt(home: Callable[[], Home], quick: None) -> None:
    made = home()
    one = Bench(replace(made, root=full_disk(made.root, ".csv", 5)))
    job = one.dataset("one.jsonl", ROWS)
    assert one.run(job) is JobState.COMPLETED
    assert events.events(one.db, kind="job_failed") == []
    assert len(events.events(one.db, kind="disk_full")) == 1, "told once"
    assert sessions(made) == [[".csv", ".json"]]
    one.close()


class NoRoom(Disk):
    """Has no room for an evaluation, so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def write(self, path: Path, content: bytes, mode: int = 0o644) -> None:
        if "evaluations" in path.parts and self.left:
            self.left -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        super().write(path, content, mode)


def test_waiting_for_room_is_told_once_and_leaves_no_session_each_time(home: Callable[[], Home], quick: None) -> None:
    disk = NoRoom(5)
    one = Bench(replace(home(), disk=disk))
    job = one.dataset("one.jsonl", ROWS)
    assert one.run(job) is JobState.COMPLETED
    assert disk.left == 0
    assert len(events.events(one.db, kind="disk_full")) == 1
    assert len(sessions(one.home)) == 2, "of the steps, and of the judging that found room"
    one.close()


def test_the_longer_there_is_no_room_the_seldomer_it_is_tried() -> None:
    assert list(islice(workflows.pauses(), 6)) == [5, 10, 20, 40, 60, 60]


def refuse_writes(db: Database, at: int) -> list[bool]:
    """Lets the database have no room for the write of this number, nor for the next; returns what each one met."""
    met: list[bool] = []

    @sa.event.listens_for(db.engine, "begin", insert=True)
    def begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("stokehold_write"):
            met.append(at <= len(met) <= at + 1)
            if met[-1]:
                raise sa.exc.OperationalError("BEGIN", None, sqlite3.OperationalError("database or disk is full"))

    return met


@pytest.mark.parametrize("at", range(4))
def test_no_room_in_the_database_is_waited_for_wherever_a_job_is_written(
    bench: Callable[..., Bench], quick: None, at: int
) -> None:
    """In turn: its beginning, the event of its failure, the attempt, its end."""
    one = bench()
    job = one.client.enqueue("improve", {"file": "one.jsonl"})
    payload = job_rows.get_payload(one.db, job.id)
    faults = iter([ValueError("no")])

    def stage(_workshop: Workshop, _payload: Any) -> JobState:
        if fault := next(faults, None):
            raise fault
        return JobState.COMPLETED

    met = refuse_writes(one.db, at)
    assert run_stage(one.workshop, stage, payload) is JobState.COMPLETED
    assert sum(met) == 2
    assert one.state(job) is JobState.COMPLETED
    assert events.events(one.db, kind="job_failed")
