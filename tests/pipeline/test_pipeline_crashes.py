"""The crash matrix: every named place × SIGKILL, and × a full disk, and the run that comes out is the straight one."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import journey
import pytest

from stokehold.cli.inspect import account
from stokehold.core.records import JobState
from stokehold.store import failpoints
from stokehold.store.db import job_rows, journal
from stokehold.store.db.database import connect
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
