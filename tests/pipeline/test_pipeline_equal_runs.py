"""Ways of getting to the end of the same files that must not change one bit of the weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import Bench

from stokehold.core.config import describe
from stokehold.core.records import JobState
from stokehold.store.db import control, events, job_rows, journal
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints
from tiny_world import facts, held_out_facts, write_jsonl

FIRST, SECOND = facts(150), facts(120, seed=5)


def through(one: Bench, *files: list[dict[str, Any]]) -> str:
    """The weights after these files in turn."""
    for number, rows in enumerate(files):
        one.submit(f"{number}.jsonl", rows)
        one.drain()
    return one.weights()


def test_evaluations_and_samples_in_the_process_change_nothing(bench: Callable[..., Bench]) -> None:
    silent = bench()
    watched = bench(
        training={"eval_steps": 4, "sample_steps": 2, "checkpoint_steps": 3},
        telemetry={"interval_s": 0.05},
    )
    write_jsonl(watched.home.suites / "facts.jsonl", held_out_facts()[:8])
    assert through(watched, FIRST, SECOND) == through(silent, FIRST, SECOND)
    assert len(journal.latest_samples(watched.db, 100)) > 5
    assert len(list(watched.home.evaluations.iterdir())) > 3
    assert len(list(watched.home.sessions.iterdir())) == 2


def test_evaluations_inside_a_file_wait_for_their_share_of_the_time(bench: Callable[..., Bench]) -> None:
    counts = {}
    for overhead in (0, 1e-9):
        one = bench(training={"eval_steps": 2}, evaluation={"overhead": overhead})
        write_jsonl(one.home.suites / "facts.jsonl", held_out_facts()[:8])
        through(one, FIRST)
        judged = [evaluation.step for evaluation in evaluations.list_evaluations(one.home, one.db)]
        counts[overhead] = (len(judged), max(judged, default=0) == one.step())
    assert counts[1e-9] == (2, True), "the first, whose cost nobody knew, and the one at the end of the file"
    assert counts[0][0] > 4


def test_a_queue_that_grows_between_runs_is_the_queue_that_was_there(bench: Callable[..., Bench]) -> None:
    whole = bench()
    whole.submit("0.jsonl", FIRST)
    whole.submit("1.jsonl", SECOND)
    whole.drain()
    grown = bench()
    grown.submit("0.jsonl", FIRST)
    grown.drain()
    later = grown.restarted()
    later.submit("1.jsonl", SECOND)
    later.drain()
    assert later.weights() == whole.weights()
    later.close()


@pytest.mark.parametrize("stops", [(2,), (1, 2, 3), (7, 8), (4, 5, 11, 12)])
def test_the_number_of_restarts_changes_nothing(bench: Callable[..., Bench], stops: tuple[int, ...]) -> None:
    straight = bench()
    one = bench()
    job = one.dataset("one.jsonl", FIRST)
    for step in stops:
        one.at = {step: [lambda one=one: control.request(one.db, "stop")]}  # type: ignore[misc]
        assert one.run(job) is JobState.PARTIAL
        one = one.restarted()
        one.client.retry(job.id)
    assert one.run(job) is JobState.COMPLETED
    assert one.weights() == through(straight, FIRST)
    one.close()


def test_another_number_of_threads_is_told_and_goes_on(bench: Callable[..., Bench]) -> None:
    one = bench()
    through(one, FIRST)
    before, config = torch.get_num_threads(), one.home.config()
    training = config.training.model_copy(update={"threads": before + 1})
    one.home.write_config(describe(config.model_copy(update={"training": training})))
    try:
        other = one.restarted()
        through(other, SECOND)
    finally:
        torch.set_num_threads(before)
    (told,) = [event.text for event in events.events(other.db, kind="resumed")]
    assert f"not bit-comparable: threads {before} -> {before + 1}" in told
    assert other.rows_trained() == len(FIRST) + len(SECOND)
    other.close()


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit": flip,
    "no optimiser": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "no trainer state": lambda folder: (folder / "trainer.json").unlink(),
    "a truncated file": truncate,
    "an empty folder": empty,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_checkpoint_that_verifies_wins(bench: Callable[..., Bench], damage: str) -> None:
    straight, one = bench(), bench()
    job = one.dataset("one.jsonl", FIRST)
    one.at = {9: [lambda: control.request(one.db, "stop")]}
    one.run(job)
    newest = checkpoints.list_checkpoints(one.home)[-1]
    assert newest.step == 9
    DAMAGES[damage](Path(newest.path))
    other = one.restarted()
    other.client.retry(job.id)
    assert other.run(job) is JobState.COMPLETED
    (told,) = [event.text for event in events.events(other.db, kind="checkpoint_passed_over")]
    assert told.startswith("step_000000009: ")
    assert other.weights() == through(straight, FIRST)
    assert job_rows.get_job(other.db, job.id).attempt == 1
    other.close()
