"""Checkpoints judged by a process of their own: what it reads is what the trainer would, and training never waits."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import torch
from bench import Bench

from journal_step import journal_step
from stokehold.core.config import describe
from stokehold.core.errors import ConfigError, IntegrityError
from stokehold.core.records import Evaluation, Job, JobState, Verdict
from stokehold.inference.engine import Engine
from stokehold.pipeline.device import DeviceQueue
from stokehold.pipeline.evaluator import STAGES, Bureau, Evaluator
from stokehold.pipeline.promote import BEST, TAKEN_BACK
from stokehold.pipeline.rivals import judge_rivals, opened_on
from stokehold.pipeline.worker import Leave
from stokehold.pipeline.workflows import hand_over, run_stage
from stokehold.store.db import events, job_rows, jobs, journal
from stokehold.store.disk import DISK, Disk
from stokehold.store.home import Home
from stokehold.store.housekeeping.gc import steps_in_use
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, versions
from tiny_world import facts, held_out_facts, write_jsonl
from waiting import until

APART = {"evaluator": "cpu"}


class Apart(Bench):
    """A trainer that hands its checkpoints over, and the evaluator on a thread of its own."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.trainer.hand_over = partial(hand_over, self.client)
        self.trainer.errands = self.workshop.device.errands
        self.bureau = Bureau(home, self.client, DeviceQueue(), Evaluator(home, home.config(), self.db, Leave()))
        threading.Thread(target=self.bureau.device.serve, args=(lambda: self.closed,), daemon=True).start()

    def run(self, job: Job) -> JobState:
        if job.kind != "evaluate":
            return super().run(job)
        return run_stage(self.bureau, STAGES["evaluate"], job_rows.get_payload(self.db, job.id))

    def meanwhile(self, work: Callable[[], object]) -> Callable[[], None]:
        """For `at`: begins `work` on a thread and goes on when it waits for the device."""

        def begin() -> None:
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            while thread.is_alive() and self.workshop.device._errands.empty():
                time.sleep(0.001)

        return begin


@pytest.fixture
def apart(make_home: Callable[..., Home]) -> Iterator[Callable[..., Apart]]:
    made: list[Apart] = []

    def make(disk: Disk = DISK, **tables: Any) -> Apart:
        home = replace(make_home(devices=APART, **tables), disk=disk)
        write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:12])
        made.append(Apart(home))
        return made[-1]

    yield make
    for one in made:
        one.close()


def readings(one: Bench) -> dict[str, Any]:
    """Everything judged: by its id the readings and the words, without what depends on the clock."""
    return {found.id: (suites_of(found), words_of(found)) for found in evaluations.list_evaluations(one.home, one.db)}


def suites_of(evaluation: Evaluation) -> dict[str, Any]:
    return {name: asdict(result) for name, result in evaluation.suites.items()}


def words_of(evaluation: Evaluation) -> bytes:
    return (Path(evaluation.path) / "completions.jsonl").read_bytes()


def test_judged_apart_is_judged_alike_and_nothing_else_is_learned(
    apart: Callable[..., Apart], bench: Callable[..., Bench]
) -> None:
    inside = {"eval_steps": 4, "checkpoint_steps": 50}
    free = {"overhead": 0.0, "holdout_share": 0.0, "max_new_tokens": 24}
    shared = bench(training=inside, evaluation=free)
    write_jsonl(shared.home.suites / "facts.jsonl", held_out_facts()[:12])
    away = apart(training=inside, evaluation=free, store={"keep_checkpoints": 1})
    for one in (shared, away):
        for number in (1, 2):
            one.submit(f"{number}.jsonl", facts(60, seed=number))
        one.drain(["ingest", "train"])
    assert readings(away) == {}, "training waited for no judgement"
    waiting = {job_rows.get_payload(away.db, job.id)["step"] for job in away.queued("evaluate")}
    assert len(waiting) >= 2
    assert steps_in_use(away.home, away.db) == waiting, "one is kept, and those that wait for their judgement"
    assert waiting <= {found.step for found in checkpoints.list_checkpoints(away.home)}
    assert away.weights() == shared.weights()
    for one in (shared, away):
        one.drain()
    assert away.weights() == shared.weights()
    told, expected = readings(away), readings(shared)
    assert len(told) >= 2
    assert told.items() <= expected.items(), "the same ids, the same readings, the same words"
    assert {found.step for found in evaluations.list_evaluations(away.home, away.db)} == waiting
    assert away.queued("promote", "improve") == []
    assert versions.alias(away.db) is not None
    assert steps_in_use(away.home, away.db).isdisjoint(waiting - {v.step for v in versions.list_versions(away.home)})


def test_the_same_weights_are_handed_over_once_and_others_of_the_same_step_again(apart: Callable[..., Apart]) -> None:
    one = apart()
    job = one.dataset("one.jsonl", facts(40))
    one.run(job)
    (waiting,) = one.queued("evaluate")
    (made,) = [found for found in checkpoints.list_checkpoints(one.home) if found.step == one.step()]
    hand_over(one.client, job.id, "one.jsonl", made)
    assert one.queued("evaluate") == [waiting]
    assert one.run(waiting) is JobState.COMPLETED
    job_rows.set_state(one.db, waiting.id, JobState.QUEUED)
    assert one.run(waiting) is JobState.COMPLETED
    assert len(evaluations.list_evaluations(one.home, one.db)) == len(one.queued("promote")) == 1


def test_a_decision_is_taken_between_two_steps_of_the_next_file(apart: Callable[..., Apart]) -> None:
    one = apart()
    one.run(one.dataset("one.jsonl", facts(60)))
    first, second = one.step(), one.dataset("two.jsonl", facts(60, seed=5))
    one.drain(["evaluate"])
    (promote,) = one.queued("promote")
    seen: list[str | None] = []
    one.at = {
        first + 2: [one.meanwhile(lambda: one.run(promote))],
        first + 3: [lambda: seen.append(versions.alias(one.db))],
    }
    assert one.run(second) is JobState.COMPLETED
    assert seen == ["v0001"]
    assert versions.find_version(one.home, "v0001").step == first
    assert one.rows_trained() == 120


def ruin(one: Bench) -> None:
    """Makes the live weights nonsense."""
    assert one.trainer.lineage is not None
    with torch.no_grad():
        first = next(one.trainer.lineage.model.parameters())
        noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(1))
        first.copy_(noise * one.trainer.lineage.step)  # worse every time: who recovers is not taken back


def test_the_verdict_takes_two_files_back_and_the_third_begins_again(apart: Callable[..., Apart]) -> None:
    one = apart(training={"spike_factor": 0.0, "micro_batch_tokens": 128})
    one.run(one.dataset("one.jsonl", facts(60)))
    one.drain(["evaluate", "promote", "improve"])
    champion = one.step()
    worse = [one.dataset(f"{seed}.jsonl", facts(40, seed=seed)) for seed in (5, 6)]
    one.at = {step: [lambda: ruin(one)] for step in range(champion + 1, champion + 100)}
    for job in worse:
        one.run(job)
    one.drain(["evaluate"])
    first, second = one.queued("promote")
    one.run(first)
    one.at = {one.step() + 3: [one.meanwhile(lambda: one.run(second))]}
    innocent = one.dataset("innocent.jsonl", facts(50, seed=7))
    assert one.run(innocent) is JobState.PARTIAL
    assert [one.state(job) for job in worse] == [JobState.PARTIAL] * 2, "they are not trained again by themselves"
    assert one.step() == champion
    assert evaluations.decided(one.db, str(job_rows.get_payload(one.db, second.id)["evaluation"]))[1] == "rollback"
    (again,) = one.queued("train")
    assert (again.file, again.dataset) == (innocent.file, innocent.dataset)
    one.drain()
    assert one.state(again) is JobState.COMPLETED
    assert one.rows_trained() == 60 + 50
    judged = {
        job_rows.get_payload(one.db, job.id)["evaluation"] for job in one.client.list_jobs() if job.kind == "improve"
    }
    assert len(judged) == 4, "what was seen of weights taken back may become the next file too"
    assert [step.step for step in journal.steps(one.db)] == list(range(1, one.step() + 1))


def test_going_back_gives_up_the_file_that_is_being_trained(apart: Callable[..., Apart]) -> None:
    one = apart(training={"checkpoint_steps": 3, "micro_batch_tokens": 128})
    one.run(one.dataset("one.jsonl", facts(60)))
    one.drain(["evaluate", "promote", "improve"])
    champion = one.step()
    lost = one.dataset("two.jsonl", facts(60, seed=5))
    one.run(lost)
    one.drain(["evaluate"])
    bad = next(found for found in evaluations.list_evaluations(one.home, one.db) if found.step == one.step())
    given_up = one.dataset("three.jsonl", facts(100, seed=6))

    def worse() -> None:
        evaluations.record_decision(one.db, bad.id, Verdict.WORSE, "rollback")
        one.workshop.device.run_between(lambda: one.trainer.decide(bad))

    one.at = {one.step() + 5: [one.meanwhile(worse)]}
    assert one.run(given_up) is JobState.PARTIAL
    assert one.state(lost) is JobState.PARTIAL
    for job in (lost, given_up):
        assert TAKEN_BACK in str(job_rows.get_job(one.db, job.id).error)
    assert max(found.step for found in checkpoints.list_checkpoints(one.home)) == champion == one.step()
    assert one.run(one.dataset("four.jsonl", facts(30, seed=7))) is JobState.COMPLETED
    for job in (lost, given_up):
        one.client.retry(job.id)
        assert one.run(job) is JobState.COMPLETED
    assert one.rows_trained() == 60 + 30 + 60 + 100
    assert [step.step for step in journal.steps(one.db)] == list(range(1, one.step() + 1))
    one.drain()
    assert one.queued("evaluate", "promote") == []


class SlowDisk(Disk):
    """Takes its time to move a checkpoint into the trash."""

    def rename(self, source: Path, target: Path) -> None:
        if "checkpoints" in source.parts and "trash" in target.parts:
            time.sleep(0.2)
        super().rename(source, target)


def test_going_back_waits_for_the_thread_that_writes_and_prunes(apart: Callable[..., Apart]) -> None:
    inside = {"checkpoint_steps": 3, "micro_batch_tokens": 128}
    one = apart(SlowDisk(), training=inside, store={"keep_checkpoints": 1})
    one.run(one.dataset("one.jsonl", facts(60)))
    one.drain(["evaluate", "promote", "improve"])
    champion = one.step()
    lost = one.dataset("two.jsonl", facts(60, seed=5))
    one.run(lost)
    one.drain(["evaluate"])
    bad = next(found for found in evaluations.list_evaluations(one.home, one.db) if found.step == one.step())

    def worse() -> None:
        evaluations.record_decision(one.db, bad.id, Verdict.WORSE, "rollback")
        one.trainer.decide(bad)

    at = next(step for step in range(one.step() + 4, one.step() + 8) if step % 3 == 0)
    one.at = {at: [worse]}
    job = one.dataset("three.jsonl", facts(100, seed=6))
    assert one.run(job) is JobState.PARTIAL
    assert TAKEN_BACK in str(job_rows.get_job(one.db, job.id).error)
    assert max(found.step for found in checkpoints.list_checkpoints(one.home)) == champion == one.step()
    assert list(one.home.checkpoints.glob(".*")) == []


def test_what_was_given_up_or_damaged_is_not_judged(apart: Callable[..., Apart]) -> None:
    one = apart()
    one.run(one.dataset("one.jsonl", facts(40)))
    (waiting,) = one.queued("evaluate")
    asked = job_rows.get_payload(one.db, waiting.id)
    folder = Path(checkpoints.list_checkpoints(one.home)[-1].path)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-9] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match="damaged"):
        one.bureau.evaluator.evaluate_step(asked["step"], asked["weights"])
    checkpoints.set_aside(one.home, 0, "given up")
    assert one.run(waiting) is JobState.COMPLETED
    assert one.queued("promote") == []
    assert readings(one) == {}


def test_a_judging_that_fails_is_given_up_also_while_the_trainer_steps(apart: Callable[..., Apart]) -> None:
    one = apart()
    one.run(one.dataset("one.jsonl", facts(40)))
    (waiting,) = one.queued("evaluate")
    tries = iter(range(one.step() + 1, one.step() + 1 + job_rows.MAX_ATTEMPTS))
    weights = Path(checkpoints.list_checkpoints(one.home)[-1].path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    def while_it_steps(bureau: Bureau, payload: Mapping[str, Any]) -> JobState:
        step = next(tries, None)
        assert step is not None or pytest.fail("tried again and again")
        journal.append(one.db, journal_step(step))
        return STAGES["evaluate"](bureau, payload)

    assert run_stage(one.bureau, while_it_steps, job_rows.get_payload(one.db, waiting.id)) is JobState.FAILED
    assert "damaged" in str(job_rows.get_job(one.db, waiting.id).error)
    assert len(events.events(one.db, kind="job_failed")) == job_rows.MAX_ATTEMPTS


def test_champion_and_best_are_judged_one_model_at_a_time(apart: Callable[..., Apart]) -> None:
    one = apart()
    for number in (1, 2):
        one.submit(f"{number}.jsonl", facts(40, seed=number))
        one.drain()
    first, second = versions.list_versions(one.home)
    versions.set_alias(one.home, one.db, versions.CHAMPION, second.name)
    versions.set_alias(one.home, one.db, BEST, first.name)
    config = one.home.config()
    other = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"max_new_tokens": 3})})
    evaluation = replace(evaluations.list_evaluations(one.home, one.db)[0], fingerprint="another-way")
    models: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def opened(*given: Any) -> Engine:
        alive.append(sum(model() is not None for model in models))
        engine = opened_on(other)(*given)
        assert isinstance(engine, Engine)
        models.append(weakref.ref(engine.model))
        return engine

    judge_rivals(one.home, one.db, other, evaluation, opened, lambda _step: None)
    assert alive == [0, 0]


def test_an_evaluator_that_cannot_work_here_says_so(make_home: Callable[..., Home]) -> None:
    for device, method, why in (("share", "full", "by itself"), ("cpu", "qlora", "4-bit")):
        home = make_home(devices={"evaluator": device}, model={"method": method})
        with jobs.client(home) as client, pytest.raises(ConfigError, match=why):
            Evaluator(home, home.config(), client.db, Leave()).check()
    with pytest.raises(ConfigError, match="evaluator"):
        make_home(devices={"evaluator": "gpu"})


def children(home: Home) -> dict[str, int | None]:
    path = home.status / "supervisor.json"
    told = orjson.loads(path.read_bytes())["children"] if path.exists() else []
    return {child["role"]: child["pid"] for child in told}


def test_a_killed_evaluator_is_started_again_and_judges_once(
    apart: Callable[..., Apart], environment: dict[str, str]
) -> None:
    """Under the real supervisor: killed with -9 in the middle of its job."""
    one, straight = apart(evaluation={"batch_size": 1, "max_new_tokens": 100}), apart()
    straight.submit("one.jsonl", facts(100))
    straight.drain()
    home = one.home
    write_jsonl(home.suites / "facts.jsonl", held_out_facts())
    one.submit("one.jsonl", facts(100))
    command = [sys.executable, "-m", "stokehold.supervisor.main", "--home", str(home.root)]
    with (home.logs / "supervisor.log").open("ab") as log:
        supervisor = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        job = until(lambda: next((job for job in one.client.list_jobs() if job.kind == "evaluate"), None), home)
        until(lambda: one.state(job) is JobState.RUNNING, home)
        victim = children(home)["evaluator"]
        assert victim is not None
        assert victim != children(home)["trainer"]
        os.kill(victim, signal.SIGKILL)
        assert list(home.evaluations.glob("*/manifest.json")) == []
        until(lambda: {job.state for job in one.client.list_jobs()} == {JobState.COMPLETED}, home)
        assert children(home)["evaluator"] not in (None, victim)
    finally:
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(60) == 0
    assert not any(pid and psutil.pid_exists(pid) for pid in children(home).values())
    (found,) = evaluations.list_evaluations(home, one.db)
    assert (found.weights_hash, found.step) == (straight.weights(), straight.step())
    assert versions.find_version(home, "v0001").weights_hash == found.weights_hash
    assert [told.data["role"] for told in events.events(one.db, kind="worker_exit")] == ["evaluator"]
    kinds = {job.kind for job in one.client.list_jobs()} - {"snapshot"}  # a night may fall into the test
    assert kinds == {"ingest", "train", "evaluate", "promote", "improve"}


def test_going_back_to_one_process_takes_up_what_waits(apart: Callable[..., Apart]) -> None:
    one = apart()
    one.run(one.dataset("one.jsonl", facts(40)))
    config = one.home.config()
    devices = config.devices.model_copy(update={"evaluator": "share"})
    one.home.write_config(describe(config.model_copy(update={"devices": devices})))
    other = Bench(one.home)
    other.drain()
    assert versions.alias(other.db) == "v0001"
    other.close()
