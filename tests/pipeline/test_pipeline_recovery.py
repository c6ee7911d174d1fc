"""Faults, kills and restarts: what is told, what is kept, and that the rest of the queue goes on from good weights."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
import torch
from bench import Bench

from stokehold.core.config import describe
from stokehold.core.errors import IntegrityError
from stokehold.core.records import JobState, Verdict
from stokehold.pipeline.promote import TAKEN_BACK
from stokehold.store.backup import offsite, restoring
from stokehold.store.backup.locations import open_location
from stokehold.store.db import control, events, job_rows, jobs, journal, rebuild
from stokehold.store.files import verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import space
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, versions
from stokehold.supervisor import status
from tiny_world import facts, held_out_facts, write_jsonl
from waiting import until

ROWS = 150
EPOCHS = 8


def ruin(one: Bench, value: float) -> None:
    """Makes the live weights finite nonsense, or not finite."""
    assert one.trainer.lineage is not None
    with torch.no_grad():
        first = next(one.trainer.lineage.model.parameters())
        first.copy_(torch.randn(first.shape, generator=torch.Generator().manual_seed(1)) * value)


def damage(folder: str) -> None:
    path = Path(folder) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def test_a_divergence_fails_its_job_alone_and_no_ruined_weight_is_saved(bench: Callable[..., Bench]) -> None:
    one, straight = bench(training={"checkpoint_steps": 3}), bench(training={"checkpoint_steps": 3})
    first, second = one.dataset("one.jsonl", facts(ROWS)), one.dataset("two.jsonl", facts(8, seed=5))
    one.at = {5: [lambda: ruin(one, float("nan"))] * 20}
    assert one.run(first) is JobState.FAILED
    row = job_rows.get_job(one.db, first.id)
    assert "3 batches in a row spoilt the step" in str(row.error)
    (told,) = events.events(one.db, kind="job_failed")
    assert told.data["error"] == "DivergenceError"
    assert "finish_step" in told.data["traceback"]
    assert one.step() == 3
    one.at = {}
    assert one.run(second) is JobState.COMPLETED
    for job in (straight.dataset("one.jsonl", facts(ROWS)), straight.dataset("two.jsonl", facts(8, seed=5))):
        assert job.dataset is not None
        run = str(job_rows.get_payload(straight.db, job.id)["run"])
        straight.trainer.train(job.id, run, job.dataset, until_step=3 if job.file == "one.jsonl" else None)
    assert one.weights() == straight.weights()
    # The ledger has no step that the weights do not have, though the failed file got further than the next one.
    assert one.step() == journal.last_step(one.db).step  # type: ignore[union-attr]
    assert [step.step for step in journal.steps(one.db)] == list(range(1, one.step() + 1))


def test_a_learning_rate_beyond_all_bounds_saves_nothing(bench: Callable[..., Bench]) -> None:
    one = bench(training={"learning_rate": 1e30, "warmup_steps": 0})
    assert one.run(one.dataset("one.jsonl", facts(ROWS))) is JobState.FAILED
    assert checkpoints.list_checkpoints(one.home) == []


def test_a_file_of_too_long_rows_fails_and_is_never_completed(bench: Callable[..., Bench]) -> None:
    one = bench()
    job = one.dataset("long.jsonl", [{"prompt": f"row {n}", "completion": "apple sea " * 200} for n in range(5)])
    assert one.run(job) is JobState.FAILED
    assert "line 1" in str(job_rows.get_job(one.db, job.id).error)
    assert "max_length" in str(job_rows.get_job(one.db, job.id).error)
    assert one.run(one.dataset("good.jsonl", facts(20))) is JobState.COMPLETED


def test_a_checkpoint_damaged_while_the_model_is_warm_is_passed_over(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.run(one.dataset("one.jsonl", facts(ROWS)))
    last = one.step()
    damage(checkpoints.list_checkpoints(one.home)[-1].path)
    one.run(one.dataset("two.jsonl", facts(20, seed=5)))
    assert len(events.events(one.db, kind="checkpoint_passed_over")) == 1
    assert one.step() < last
    assert [step.step for step in journal.steps(one.db)] == list(range(1, one.step() + 1))


def test_without_one_usable_checkpoint_nothing_starts_over_silently(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.run(one.dataset("one.jsonl", facts(ROWS)))
    for found in checkpoints.list_checkpoints(one.home):
        damage(found.path)
    job = one.dataset("two.jsonl", facts(20, seed=5))
    assert one.run(job) is JobState.FAILED
    assert "no checkpoint can be used" in str(job_rows.get_job(one.db, job.id).error)


def test_a_damaged_base_is_refused(bench: Callable[..., Bench]) -> None:
    one = bench()
    damage(str(one.home.root / one.home.config().model.base))
    with pytest.raises(IntegrityError, match="base model is damaged"):
        one.trainer.ready()


def test_a_warm_model_outlives_the_checkpoint_it_came_from(bench: Callable[..., Bench]) -> None:
    one = bench(store={"keep_checkpoints": 1}, training={"checkpoint_steps": 2})
    one.run(one.dataset("one.jsonl", facts(60)))
    other = one.restarted()
    for seed in (5, 6):
        other.run(other.dataset(f"{seed}.jsonl", facts(60, seed=seed)))
        other.weights()
    assert len(checkpoints.list_checkpoints(other.home)) == 1
    assert other.restarted().trainer.ready().step == other.step()


def test_a_full_disk_fails_the_job_and_leaves_the_last_checkpoint(bench: Callable[..., Bench]) -> None:
    one = bench(training={"checkpoint_steps": 4})
    job = one.dataset("one.jsonl", facts(ROWS))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        with one.db.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        newest = until(lambda: checkpoints.list_checkpoints(one.home))[-1]  # written beside training
        size = (Path(newest.path) / "optimizer.safetensors").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard))

    one.at = {7: [fill]}
    try:
        assert one.run(job) is JobState.FAILED
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = str(job_rows.get_job(one.db, job.id).error)
    assert "File too large" in error
    assert [path.name for path in one.home.checkpoints.iterdir()] == ["step_000000004"]
    assert one.step() == 4
    one.client.retry(job.id)
    assert one.run(job) is JobState.COMPLETED
    assert one.rows_trained() == ROWS


def test_going_back_inside_a_file_ends_it_and_retry_trains_it_from_the_champion(bench: Callable[..., Bench]) -> None:
    one = bench(training={"eval_steps": 4, "micro_batch_tokens": 128})
    write_jsonl(one.home.suites / "facts.jsonl", held_out_facts())
    job = one.dataset("one.jsonl", facts(ROWS))
    one.at = {step: [lambda: ruin(one, 1.0)] for step in (5, 6, 7, 9, 10, 11)}
    assert one.run(job) is JobState.PARTIAL
    assert TAKEN_BACK in str(job_rows.get_job(one.db, job.id).error)
    champion = versions.find_version(one.home, versions.alias(one.db) or "")
    assert (champion.step, one.step()) == (4, 4)
    one.at = {}
    one.drain(["evaluate", "promote", "improve"])
    assert len(events.events(one.db, kind="improve")) == 1, "what was seen may still become the next file"
    assert one.run(one.dataset("two.jsonl", facts(30, seed=5))) is JobState.COMPLETED
    one.client.retry(job.id)
    assert one.run(job) is JobState.COMPLETED
    assert one.rows_trained() == ROWS + 30
    assert [step.step for step in journal.steps(one.db)] == list(range(1, one.step() + 1))


def test_a_going_back_that_a_kill_cut_short_is_finished_before_the_next_file(bench: Callable[..., Bench]) -> None:
    one = bench()
    write_jsonl(one.home.suites / "facts.jsonl", held_out_facts()[:8])
    one.run(one.dataset("one.jsonl", facts(60)))
    champion = one.step()
    lost = one.dataset("two.jsonl", facts(60, seed=5))
    one.run(lost)
    newest = evaluations.list_evaluations(one.home, one.db, limit=1)[0]
    versions.set_alias(one.home, one.db, versions.CHAMPION, "v0001")
    evaluations.record_decision(one.db, newest.id, Verdict.WORSE, "rollback")
    other = one.restarted()
    assert other.run(other.dataset("three.jsonl", facts(30, seed=6))) is JobState.COMPLETED
    assert other.state(lost) is JobState.PARTIAL
    assert other.rows_trained() == 60 + 30
    assert [span.after for span in journal.spans(other.db)] == [champion, -1]
    other.close()


def test_a_champion_judged_under_other_settings_is_judged_again(bench: Callable[..., Bench]) -> None:
    one = bench()
    write_jsonl(one.home.suites / "facts.jsonl", held_out_facts()[:8])
    one.run(one.dataset("one.jsonl", facts(60)))
    config = one.home.config()
    shorter = config.evaluation.model_copy(update={"max_new_tokens": 8})
    one.home.write_config(describe(config.model_copy(update={"evaluation": shorter})))
    other = one.restarted()
    other.run(other.dataset("two.jsonl", facts(60, seed=5)))
    newest = next(e for e in evaluations.list_evaluations(other.home, other.db) if e.step == other.step())
    assert evaluations.decided(other.db, newest.id)[0] not in (None, Verdict.BROKEN)
    other.close()


def test_leaving_in_the_middle_of_an_evaluation_is_made_up_for(bench: Callable[..., Bench]) -> None:
    one = bench(evaluation={"batch_size": 2})
    write_jsonl(one.home.suites / "facts.jsonl", held_out_facts()[:8])
    job = one.dataset("one.jsonl", facts(60))
    run, dataset = str(job_rows.get_payload(one.db, job.id)["run"]), str(job.dataset)
    steps: list[int] = []

    def leave() -> None:
        if one.trainer.state == "eval":
            steps.append(one.trainer.lineage.step if one.trainer.lineage else 0)
            one.gone = True

    one.at = {step: [leave] * 4 for step in range(1, 100)}
    outcome = one.trainer.train(job.id, run, dataset)
    assert (outcome.state, outcome.reason, len(steps)) == (JobState.PARTIAL, "leaving", 1)
    assert list(one.home.evaluations.iterdir()) == []
    other = one.restarted()
    other.run(job)
    assert other.step() == outcome.checkpoint.step
    assert versions.alias(other.db) == "v0001"
    other.close()


def test_after_a_judging_that_was_made_up_for_the_trainer_is_idle_and_not_watched(bench: Callable[..., Bench]) -> None:
    """Where it still said "evaluating", an idle trainer would be ended as one that hangs."""
    one = bench()
    told = one.home.status / "trainer.json"
    one.run(one.dataset("one.jsonl", facts(60)))
    write_jsonl(one.home.suites / "facts.jsonl", held_out_facts()[:8])
    one.drain(["evaluate"])
    assert len(evaluations.list_evaluations(one.home, one.db)) == 1
    assert orjson.loads(told.read_bytes())["state"] == "evaluating"
    one.trainer.idle()
    assert orjson.loads(told.read_bytes())["state"] == "idle"


@pytest.mark.parametrize("kind", ["ingest", "train", "evaluate", "promote", "improve"])
def test_every_stage_may_run_twice(bench: Callable[..., Bench], kind: str) -> None:
    one = bench()
    write_jsonl(one.home.suites / "facts.jsonl", held_out_facts()[:8])
    one.submit("one.jsonl", facts(40))
    one.drain()
    before = (one.weights(), one.rows_trained(), len(one.client.list_jobs()), versions.list_versions(one.home))
    job = next(job for job in one.client.list_jobs() if job.kind == kind)
    for _ in range(2):
        job_rows.set_state(one.db, job.id, JobState.QUEUED)
        assert one.run(job) is JobState.COMPLETED
        one.drain()
        now = (one.weights(), one.rows_trained(), len(one.client.list_jobs()), versions.list_versions(one.home))
        assert now == before
        one = one.restarted()
    one.close()


def worker(home: Home, environment: dict[str, str], pipe: int | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "stokehold.pipeline.worker", "--home", str(home.root)]
    command += [] if pipe is None else ["--parent-fd", str(pipe)]
    with (home.logs / "test.log").open("ab") as log:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, pass_fds=() if pipe is None else (pipe,)
        )


def test_a_worker_leaves_in_order_and_another_release_takes_its_jobs_up(
    bench: Callable[..., Bench], environment: dict[str, str]
) -> None:
    """Left while paused by a closed pipe, while training by a signal; its jobs are of an older release then."""
    one, straight = bench(training={"epochs": EPOCHS}), bench(training={"epochs": EPOCHS})
    straight.submit("one.jsonl", facts(ROWS))
    straight.drain()
    home, db = one.home, one.db
    reading, writing = os.pipe()
    first = worker(home, environment, reading)
    os.close(reading)
    control.request(db, "pause")
    one.submit("one.jsonl", facts(ROWS))
    until(lambda: state_of(home) == "paused", home)
    os.close(writing)
    assert first.wait(60) == 0
    (job,) = one.queued("train")
    grown_old(one)
    assert one.client.adopt_old_versions() == [job.id]
    control.request(db, "resume")
    second = worker(home, environment)
    until(lambda: (last := journal.last_step(db)) is not None and last.step >= 5, home)
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0
    assert one.state(job) is JobState.QUEUED
    assert one.step() == journal.last_step(db).step  # type: ignore[union-attr]
    grown_old(one)
    assert one.client.adopt_old_versions() == [job.id]
    third = worker(home, environment)
    until(lambda: one.state(job) is JobState.COMPLETED and not one.queued("evaluate"), home)
    third.send_signal(signal.SIGTERM)
    assert third.wait(60) == 0
    assert one.rows_trained() == EPOCHS * ROWS
    assert one.weights() == straight.weights()


def test_a_worker_refuses_a_changed_locked_key_before_it_takes_a_job(
    bench: Callable[..., Bench], environment: dict[str, str]
) -> None:
    one = bench()
    one.run(one.dataset("one.jsonl", facts(20)))
    waiting = one.dataset("two.jsonl", facts(20, seed=5))
    config = one.home.config()
    data = config.data.model_copy(update={"max_length": 64})
    one.home.write_config(describe(config.model_copy(update={"data": data})))
    process = worker(one.home, environment)
    assert process.wait(60) == 2
    assert "data.max_length = 64" in (one.home.logs / "test.log").read_text()
    assert one.state(waiting) is JobState.QUEUED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 128 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def told(home: Home, db: Any) -> set[str]:
    return {alert["kind"] for alert in status.payload(home, db)["active_alerts"]}


def test_training_waits_while_the_disk_is_nearly_full_and_no_version_goes(
    bench: Callable[..., Bench], environment: dict[str, str], small_disk: Path
) -> None:
    made = bench(training={"epochs": 2000, "checkpoint_steps": 5000})
    shutil.copytree(made.home.root, small_disk / "home", symlinks=True)
    home, ballast = Home.open(small_disk / "home"), small_disk / "ballast"
    one = Bench(home)
    job = one.dataset("one.jsonl", facts(ROWS))
    run = str(job_rows.get_payload(one.db, job.id)["run"])
    one.trainer.train(job.id, run, str(job.dataset), until_step=2)
    versions.create(home, one.db, checkpoints.checkpoint_folder(home, 2))
    process = worker(home, environment)
    until(lambda: last_step(one) > 5, home)
    assert not told(home, one.db) & {"disk_pause", "disk_short"}
    there = space.room(home.root)
    ballast.write_bytes(bytes(there.free - there.total // 25))
    until(lambda: state_of(home) == "paused", home)
    assert "disk_pause" in told(home, one.db)
    (event,) = events.events(one.db, kind="disk_pause")
    assert "training waits for room" in event.text
    waiting = last_step(one)
    time.sleep(1.5 * space.LOOK_S)
    assert (last_step(one), state_of(home), one.state(job)) == (waiting, "paused", JobState.RUNNING)
    ballast.unlink()
    until(lambda: last_step(one) > waiting, home)
    assert [event.kind for event in events.events(one.db) if event.kind == "disk_room"] == ["disk_room"]
    assert "disk_pause" not in told(home, one.db)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    (version,) = versions.list_versions(home)
    assert verify(Path(version.path)) == []
    assert [step.step for step in journal.steps(one.db)] == list(range(1, one.step() + 1)), "each step once"
    one.close()


def last_step(one: Bench) -> int:
    last = journal.last_step(one.db)
    return last.step if last else 0


def rows_of_datasets(one: Bench, step: int | None = None) -> list[int]:
    """How many rows of each file the weights of this step have seen, the newest by default."""
    return sorted(journal.examples_by_dataset(one.db, one.step() if step is None else step).values())


def half_way(one: Bench) -> Bench:
    """One file trained, the second half, the third waiting; the second's job was at work."""
    names = ("one", "two", "three")
    first, second, _ = [one.dataset(f"{name}.jsonl", facts(60, seed)) for seed, name in enumerate(names)]
    one.run(first)
    job_rows.begin(one.db, second.id)
    run = str(job_rows.get_payload(one.db, second.id)["run"])
    one.trainer.train(second.id, run, str(second.dataset), until_step=one.step() + 4)
    return one


def goes_on(one: Bench, straight: Bench, begins: int) -> None:
    """The waiting jobs are enqueued once, and training ends with the bits of a run that lost nothing."""
    waiting = [job.id for job in one.queued("train")]
    assert len(waiting) == len(set(waiting)) == 2
    one.client.reconcile()
    assert one.client.reconcile() == []
    assert sorted(row.workflow_id for row in one.client._dbos.list_workflows(workflow_ids=waiting)) == sorted(waiting)
    one.drain()
    assert rows_of_datasets(one) == [60, 60, 60]
    assert min(step.step for step in journal.steps(one.db, since=begins)) == begins + 1
    assert (one.step(), one.weights()) == (straight.step(), straight.weights())
    one.close()


def test_a_home_whose_database_was_remade_trains_on_to_the_same_weights(bench: Callable[..., Bench]) -> None:
    straight, one = half_way(bench()), half_way(bench())
    (straight := straight.restarted()).run(straight.client.list_jobs([JobState.RUNNING])[0])
    straight.drain()
    begins = one.step()
    one.close()
    for path in one.home.root.glob("stoke.db*"):
        path.unlink()
    made = rebuild.rebuild(one.home)
    assert (made.datasets, made.queued) == (3, 2)
    goes_on(Bench(one.home), straight, begins)


def test_a_home_restored_from_its_backup_trains_on_to_the_same_weights(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    straight, one = half_way(bench()), half_way(bench())
    offsite.run(one.home, one.db, "a test", str(tmp_path / "away"))
    (straight := straight.restarted()).run(straight.client.list_jobs([JobState.RUNNING])[0])
    straight.drain()
    begins = one.step()
    one.close()
    shutil.rmtree(one.home.root)
    restoring.restore(open_location(str(tmp_path / "away")), tmp_path / "new")
    anew = Bench(Home.open(tmp_path / "new"))
    assert control.current(anew.db) == "pause"
    assert rows_of_datasets(anew) == rows_of_datasets(straight, begins)
    control.request(anew.db, "resume")
    goes_on(anew, straight, begins)


def state_of(home: Home) -> str:
    path = home.status / "trainer.json"
    return str(orjson.loads(path.read_bytes())["state"]) if path.exists() else ""


def grown_old(one: Bench) -> None:
    """As if the waiting workflows had been enqueued by an older release."""
    assert jobs.JOBS_VERSION != "0"
    with one.db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE workflow_status SET application_version = '0'"))
