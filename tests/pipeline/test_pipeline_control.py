"""Pause, stop, skip and cancel reach exactly the file they were meant for, and no row is trained twice or lost."""

import threading
import weakref
from collections import Counter
from collections.abc import Callable

import pytest
from bench import Bench

from stokehold.core.records import JobState, Priority
from stokehold.pipeline.device import Leaving
from stokehold.store.db import control, events, job_rows, journal
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints
from tiny_world import facts, held_out_facts, write_jsonl

ROWS = 150


def straight(bench: Callable[..., Bench]) -> str:
    plain = bench()
    plain.run(plain.dataset("facts.jsonl", facts(ROWS)))
    return plain.weights()


def test_stop_leaves_partial_with_a_checkpoint_and_retry_goes_on(bench: Callable[..., Bench]) -> None:
    one = bench()
    job = one.dataset("facts.jsonl", facts(ROWS))
    one.at = {4: [lambda: control.request(one.db, "stop")]}
    assert one.run(job) is JobState.PARTIAL
    assert (one.step(), control.current(one.db)) == (4, None)
    assert job_rows.get_job(one.db, job.id).error == "stopped"
    one.client.retry(job.id)
    assert one.run(job) is JobState.COMPLETED
    assert (one.rows_trained(), one.weights()) == (ROWS, straight(bench))


def test_a_skipped_file_comes_back_last_with_its_cursor_however_often(bench: Callable[..., Bench]) -> None:
    one = bench()
    first, second = one.dataset("one.jsonl", facts(ROWS)), one.dataset("two.jsonl", facts(60, seed=5))
    skip = lambda: control.request(one.db, "skip")  # noqa: E731
    one.at = {3: [skip]}
    assert one.run(first) is JobState.PARTIAL
    low = one.queued("train")[-1]
    assert (low.priority, one.queued("train")[0].id, one.step()) == (Priority.LOW, second.id, 3)
    one.run(second)
    # Twice without a step in between: the file must not get lost under an id that was used before.
    one.at = {one.step(): [skip, skip]}
    assert [one.run(one.queued("train")[0]) for _ in range(2)] == [JobState.PARTIAL] * 2
    one.drain(["train"])
    states = [job.state for job in one.client.list_jobs() if job.kind == "train"]
    assert Counter(states) == {JobState.PARTIAL: 3, JobState.COMPLETED: 2}
    assert one.rows_trained() == ROWS + 60


def test_a_kill_between_the_parts_of_a_skip_repeats_no_row(bench: Callable[..., Bench]) -> None:
    one = bench()
    job = one.dataset("one.jsonl", facts(ROWS))
    one.at = {3: [lambda: control.request(one.db, "skip")]}
    one.run(job)
    job_rows.set_state(one.db, job.id, JobState.QUEUED)  # as if its end had not been written down
    control.request(one.db, "skip")
    assert one.run(job) is JobState.PARTIAL
    assert len(one.queued("train")) == 1
    one.drain(["train"])
    assert one.rows_trained() == ROWS


def test_cancelling_the_running_file_touches_no_other(bench: Callable[..., Bench]) -> None:
    one = bench()
    first, second = one.dataset("one.jsonl", facts(ROWS)), one.dataset("two.jsonl", facts(60, seed=5))
    one.at = {3: [lambda: one.client.cancel(first.id)]}
    assert one.run(first) is JobState.CANCELLED
    assert one.step() == 3
    one.drain(["train"])
    assert (one.state(first), one.state(second)) == (JobState.CANCELLED, JobState.COMPLETED)


def test_a_cancel_that_comes_too_late_skips_nobody_else(bench: Callable[..., Bench]) -> None:
    plain, one = bench(), bench()
    plain.run(plain.dataset("one.jsonl", facts(ROWS)))
    first, second = one.dataset("one.jsonl", facts(ROWS)), one.dataset("two.jsonl", facts(60, seed=5))
    write_jsonl(one.home.suites / "facts.jsonl", held_out_facts()[:4])
    # The loop has asked for the last time; the next asking is in the middle of the evaluation.
    one.at = {plain.step(): [lambda: None, lambda: one.client.cancel(first.id)]}
    assert one.run(first) is JobState.CANCELLED
    assert control.current(one.db) is None
    assert one.run(second) is JobState.COMPLETED


def test_a_stop_while_nothing_is_trained_does_not_wait_for_the_next_file(bench: Callable[..., Bench]) -> None:
    one = bench()
    control.request(one.db, "stop")
    one.trainer.idle()
    assert control.current(one.db) is None
    assert [event.text for event in events.events(one.db, kind="control")] == ["stop: there is nothing to stop"]
    job = one.dataset("facts.jsonl", facts(60))
    control.request(one.db, "skip")
    one.trainer.idle()
    assert control.current(one.db) == "skip", "a file is about to be trained: it may be meant"
    control.request(one.db, "pause")
    one.trainer.idle()
    assert control.current(one.db) == "pause"
    control.request(one.db, None)
    assert one.run(job) is JobState.COMPLETED


def test_a_pause_holds_through_a_restart_and_resume_ends_it(bench: Callable[..., Bench]) -> None:
    one = bench()
    job = one.dataset("facts.jsonl", facts(ROWS))
    run = str(job_rows.get_payload(one.db, job.id)["run"])
    assert job.dataset is not None
    gone = threading.Event()

    def go() -> None:
        one.gone = True
        gone.set()

    one.at = {3: [lambda: control.request(one.db, "pause"), lambda: None, go]}
    outcome = one.trainer.train(job.id, run, job.dataset)
    assert (outcome.reason, outcome.checkpoint.step, gone.is_set()) == ("leaving", 3, True)
    other = one.restarted()
    paused: list[str] = []
    look = lambda: paused.append(other.trainer.state)  # noqa: E731
    other.at = {3: [lambda: None, lambda: None, look, lambda: control.request(other.db, "resume")]}
    assert other.run(job) is JobState.COMPLETED
    assert paused == ["paused"]
    assert [step.step for step in journal.steps(other.db)] == list(range(1, other.step() + 1))
    assert (other.rows_trained(), other.weights()) == (ROWS, straight(bench))
    other.close()


def test_a_pause_may_give_the_memory_back(bench: Callable[..., Bench]) -> None:
    one = bench()
    job = one.dataset("facts.jsonl", facts(ROWS))
    models: list[weakref.ref[object]] = []
    alive: list[object] = []

    def ask() -> None:
        assert one.trainer.lineage is not None
        models.append(weakref.ref(one.trainer.lineage.model))
        control.request(one.db, "pause", free=True)

    def look() -> None:
        alive.append((one.trainer.state, one.trainer.lineage, models[0]()))
        control.request(one.db, "resume")

    # Without a model the bench sees step 0: by then the pause holds.
    one.at = {3: [ask], 0: [lambda: None, lambda: None, look]}
    assert one.run(job) is JobState.COMPLETED
    assert alive == [("paused", None, None)]
    assert (one.rows_trained(), one.weights()) == (ROWS, straight(bench))


def test_a_pause_between_two_files_gives_the_memory_back_too(bench: Callable[..., Bench]) -> None:
    one, straight = bench(), bench()
    for name, rows in (("one.jsonl", facts(ROWS)), ("two.jsonl", facts(60, seed=5))):
        straight.run(straight.dataset(name, rows))
    assert one.run(one.dataset("one.jsonl", facts(ROWS))) is JobState.COMPLETED
    assert one.trainer.lineage is not None
    model = weakref.ref(one.trainer.lineage.model)
    control.request(one.db, "pause")
    one.trainer.idle()
    assert model() is not None, "an ordinary pause keeps it warm"
    control.request(one.db, "pause", free=True)
    one.trainer.idle()
    assert (one.trainer.lineage, model()) == (None, None)
    seen: list[object] = []

    def look() -> None:
        seen.append((one.trainer.state, one.trainer.lineage))
        control.request(one.db, "resume")

    # A file that comes meanwhile does not open it either.
    job = one.dataset("two.jsonl", facts(60, seed=5))
    one.at = {0: [lambda: None, look]}
    assert one.run(job) is JobState.COMPLETED
    assert seen == [("paused", None)]
    assert one.weights() == straight.weights()


def test_who_leaves_during_such_a_pause_does_not_open_the_model_first(bench: Callable[..., Bench]) -> None:
    one = bench()
    job = one.dataset("one.jsonl", facts(ROWS))
    assert job.dataset is not None
    control.request(one.db, "pause", free=True)
    one.at = {0: [lambda: None, lambda: setattr(one, "gone", True)]}
    with pytest.raises(Leaving):
        one.trainer.train(job.id, job.id, job.dataset)
    assert (one.trainer.lineage, one.step()) == (None, 0)


def test_leaving_while_the_champion_is_judged_anew_ends_in_order(bench: Callable[..., Bench]) -> None:
    one = bench()
    write_jsonl(one.home.suites / "facts.jsonl", held_out_facts()[:4])
    one.run(one.dataset("one.jsonl", facts(ROWS)))
    one.home.write_config(one.home.config_path.read_text().replace("max_new_tokens = 24", "max_new_tokens = 9"))
    other = one.restarted()
    job = other.dataset("two.jsonl", facts(60, seed=5))
    assert job.dataset is not None
    judged = lambda: evaluations.list_evaluations(other.home, other.db)  # noqa: E731
    other.trainer.leaving = lambda: len(judged()) > 1
    outcome = other.trainer.train(job.id, str(job_rows.get_payload(other.db, job.id)["run"]), job.dataset)
    assert (outcome.state, outcome.reason, len(judged())) == (JobState.PARTIAL, "leaving", 2)
    newest = next(found for found in judged() if found.step == other.step())
    assert evaluations.decided(other.db, newest.id)[1] is None
    other.trainer.leaving = lambda: False
    assert other.run(job) is JobState.COMPLETED
    assert evaluations.decided(other.db, newest.id)[1] is not None
    other.close()


def test_a_file_with_rows_that_cannot_be_trained_gets_to_its_end(bench: Callable[..., Bench]) -> None:
    one = bench(training={"epochs": 3, "accumulation": 99})
    long = [{"prompt": str(n), "completion": "red " * 400} for n in range(5)]
    job = one.dataset("mixed.jsonl", [*facts(20), *long])
    told: list[object] = []
    one.at = {1: [lambda: told.append((job_rows.get_job(one.db, job.id).progress, one.trainer.status.facts["epoch"]))]}
    assert one.run(job) is JobState.COMPLETED
    assert (one.step(), told) == (1, [(1.0, 3.0)])


def test_the_same_rows_again_are_a_run_of_their_own(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.submit("facts.jsonl", facts(60))
    one.drain()
    one.submit("facts.jsonl", facts(60), again=True)
    one.drain()
    assert one.rows_trained() == 120
    assert [job.state for job in one.client.list_jobs() if job.kind == "train"] == [JobState.COMPLETED] * 2
    assert len(checkpoints.list_checkpoints(one.home)) <= one.home.config().store.keep_checkpoints
