"""Training goes on from a version: the journal, the checkpoints and the jobs say so, whatever breaks it off."""

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from matrix import every_fault

from stokehold.core.config import Config
from stokehold.core.errors import BusyError, IntegrityError, StokeholdError
from stokehold.core.records import Evaluation, JobState, Priority, Step, Verdict
from stokehold.store import files
from stokehold.store.db import job_rows, journal
from stokehold.store.db.database import Database, connect
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, deletions, going_back, versions
from tiny_world import safetensors


def step(number: int, branch: int = 0, job: str = "j1") -> Step:
    told = {"components": {"nll": 1.0}, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 1, "loss_tokens": 1}
    counted = {"examples": 1, "seconds": 1.0, "joules": None, "fingerprint": "f", "created": "2026-01-01T00:00:00.000Z"}
    return Step(number, branch, job, "d1", 1.0, **told, **counted)


def checkpoint(home: Home, number: int, branch: int = 0) -> Path:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(safetensors(f"weights {number} {branch}".encode()))
        (folder / "optimizer.safetensors").write_bytes(safetensors(f"moments {number} {branch}".encode()))
        (folder / "trainer.json").write_text(json.dumps({"step": number, "branch": branch, "optimizer_since": 0}))

    facts = {"branch": branch, "datasets": ["d1"], "base": "base/b"}
    return Path(checkpoints.publish_checkpoint(home, number, write, facts).path)


def train(home: Home, db: Database, first: int, last: int, branch: int = 0, job: str = "j1") -> None:
    """Steps, each with a row of the journal, and a checkpoint every ten."""
    for number in range(first, last + 1):
        journal.append(db, step(number, branch, job))
        if number % 10 == 0:
            checkpoint(home, number, branch)


def add_job(db: Database, name: str) -> None:
    with db.write() as connection:
        job_rows.insert(connection, name, "train", Priority.NORMAL, {"file": f"{name}.jsonl", "run": name})
    job_rows.begin(db, name)
    job_rows.set_state(db, name, JobState.COMPLETED)


def latest(home: Home, db: Database) -> tuple[int, str]:
    found = checkpoints.latest(home, db).checkpoint
    assert found is not None
    return found.step, (Path(found.path) / "model.safetensors").read_bytes()[-10:].decode().strip('"')


@pytest.fixture
def trained(home: Home, db: Database) -> Home:
    """Thirty steps of two jobs; v0001 is of step 10."""
    add_job(db, "j1")
    add_job(db, "j2")
    train(home, db, 1, 10)
    train(home, db, 11, 30, job="j2")
    versions.create(home, db, checkpoints.checkpoint_folder(home, 10))
    return home


def test_from_a_version_whose_checkpoint_is_there(trained: Home, db: Database) -> None:
    done = going_back.train_from(trained, db, "v1")
    assert (done.step, done.branch, done.optimiser) == (10, 1, "kept")
    assert done.set_aside == ("step_000000020", "step_000000030")
    assert latest(trained, db)[0] == 10
    last = journal.last_step(db)
    assert last is not None
    assert (last.step, journal.current_branch(db)) == (10, 1)
    assert job_rows.get_job(db, "j1").state is JobState.COMPLETED, "it is in the weights"
    taken = job_rows.get_job(db, "j2")
    assert (taken.state, "taken back to v0001; retry" in str(taken.error)) == (JobState.PARTIAL, True)
    assert len(journal.steps(db, branch=0)) == 30, "the journal forgets nothing"
    assert going_back.finish(trained, db) is None


def test_from_a_version_whose_checkpoint_was_pruned(trained: Home, db: Database) -> None:
    checkpoints.prune(trained, set(), 1)
    assert going_back.train_from(trained, db, "v1").optimiser == "kept"
    assert latest(trained, db)[0] == 10


def test_from_a_version_whose_checkpoint_is_gone_the_optimiser_begins_anew(trained: Home, db: Database) -> None:
    checkpoints.prune(trained, set(), 1)
    trash.empty(trained, 0, 0)
    done = going_back.train_from(trained, db, "v1")
    assert done.optimiser == "fresh"
    folder = checkpoints.checkpoint_folder(trained, 10)
    assert files.verify(folder) == []
    assert json.loads((folder / "trainer.json").read_text()) == {"step": 10, "branch": 0, "optimizer_since": 10}
    assert (folder / "optimizer.safetensors").read_bytes()[8:] == b"{}"
    assert latest(trained, db)[0] == 10


def test_from_a_version_that_kept_its_optimiser(trained: Home, db: Database) -> None:
    made = versions.create(trained, db, checkpoints.checkpoint_folder(trained, 20), optimiser=True)
    checkpoints.prune(trained, set(), 1)
    trash.empty(trained, 0, 0)
    assert going_back.train_from(trained, db, made.name).optimiser == "kept"
    folder = checkpoints.checkpoint_folder(trained, 20)
    assert b"moments 20 0" in (folder / "optimizer.safetensors").read_bytes()


def test_back_to_a_branch_that_was_left(trained: Home, db: Database) -> None:
    """Step 20 of branch 0 was left for step 10, from where branch 1 came to a step 20 of its own."""
    left = versions.create(trained, db, checkpoints.checkpoint_folder(trained, 20))
    going_back.train_from(trained, db, "v1")
    add_job(db, "j3")
    train(trained, db, 11, 25, branch=1, job="j3")
    versions.create(trained, db, checkpoints.checkpoint_folder(trained, 20))
    assert "weights 20 1" in latest(trained, db)[1] or latest(trained, db)[0] == 20
    done = going_back.train_from(trained, db, left.name)
    assert (done.step, done.branch, done.optimiser) == (20, 2, "kept")
    folder = checkpoints.checkpoint_folder(trained, 20)
    assert checkpoints.load_checkpoint(folder).weights_hash == left.weights_hash
    assert latest(trained, db)[0] == 20
    assert [(s.branch, s.step) for s in journal.steps(db)] == [(0, number) for number in range(1, 21)]
    assert job_rows.get_job(db, "j3").state is JobState.PARTIAL
    assert job_rows.get_job(db, "j1").state is JobState.COMPLETED
    train(trained, db, 21, 30, branch=2, job="j2")
    assert [s.branch for s in journal.steps(db, since=19)] == [0, *[2] * 10]
    again = going_back.train_from(trained, db, "v0003")
    assert (again.step, again.optimiser) == (20, "kept")
    assert [(s.branch, s.step) for s in journal.steps(db, since=9)] == [(0, 10), *[(1, n) for n in range(11, 21)]]


def test_what_was_decided_on_it_does_not_take_it_back_again(trained: Home, db: Database) -> None:
    version = versions.find_version(trained, "v1")
    judged = Evaluation("e1", "step:10", version.weights_hash, "f-s", {}, 1.0, "", files.utc_now(), 10)
    evaluations.save(trained, db, judged, lambda folder: None)
    evaluations.record_decision(db, "e1", Verdict.WORSE, "rollback")
    going_back.train_from(trained, db, "v1")
    assert evaluations.decided(db, "e1") == (Verdict.WORSE, "hold")


def test_it_is_refused_while_a_trainer_runs_and_for_what_is_no_place(trained: Home, db: Database) -> None:
    with trained.lock("trainer", "training"), pytest.raises(BusyError, match=r"held by process.*`stoke down` first"):
        going_back.train_from(trained, db, "v1")
    weights = trained.versions / "v0001" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(b"!" + content[1:])
    with pytest.raises(IntegrityError, match=r"damaged: model.safetensors.*versions restore v0001"):
        going_back.train_from(trained, db, "v1")
    (trained.base / "b").mkdir()
    files.publish(
        trained.base / "c", lambda stage: (stage / "model.safetensors").write_bytes(content) and None, {"kind": "base"}
    )
    of_base = versions.create(trained, db, trained.base / "c")
    with pytest.raises(StokeholdError, match="place in training was not kept"):
        going_back.train_from(trained, db, of_base.name)
    assert journal.current_branch(db) == 0
    assert len(checkpoints.list_checkpoints(trained)) == 3


def test_a_version_that_training_goes_back_to_is_not_deleted(trained: Home, db: Database) -> None:
    versions.create(trained, db, checkpoints.checkpoint_folder(trained, 20))
    going_back._begin(db, versions.find_version(trained, "v1"), 0)  # and then it was killed
    with pytest.raises(StokeholdError, match="training goes back to it"):
        deletions.delete(trained, db, "v1")
    assert going_back.finish(trained, db) is not None
    deletions.delete(trained, db, "v1")


def prepare(root: Path) -> None:
    home = Home.create(root, Config())
    db = connect(home)
    add_job(db, "j2")
    checkpoint(home, 10)
    checkpoint(home, 30)
    journal.append(db, step(10))
    journal.append(db, step(30, job="j2"))
    versions.create(home, db, checkpoints.checkpoint_folder(home, 10))
    trash.discard(home, checkpoints.checkpoint_folder(home, 10), trash.PRUNED)
    db.close()


def prepare_without_checkpoint(root: Path) -> None:
    prepare(root)
    trash.empty(Home.open(root), 0, 0)


def go(home: Home) -> None:
    db = connect(home)
    if journal.current_branch(db) == 0:
        going_back.train_from(home, db, "v1")
    going_back.finish(home, db)
    db.close()


def judge(home: Home, told: str | None) -> str:
    """As the trainer finds it at its next start."""
    db = connect(home)
    going_back.finish(Home(home.root), db)
    found, branch = checkpoints.latest(home, db), journal.current_branch(db)
    with db.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(journal.tables.control)).scalar() == 0
    state = job_rows.get_job(db, "j2").state
    db.close()
    if branch == 1 and found.checkpoint is None:
        return "named" if "content changed" in found.passed_over[0].reason else "lost"
    assert found.checkpoint is not None
    expected = {0: (30, JobState.COMPLETED), 1: (10, JobState.PARTIAL)}
    assert (found.checkpoint.step, state) == expected[branch]
    assert files.verify(home.versions / "v0001") == []
    return "new" if branch else "old"


@pytest.mark.parametrize("world", [prepare, prepare_without_checkpoint])
def test_going_back_under_every_fault(tmp_path: Path, world: object) -> None:
    counts = every_fault(world, go, judge, tmp_path, ("kill", "full", "flip"))  # type: ignore[arg-type]
    assert counts["kill"]["new"]
