"""Bad batches, too little memory, a full disk, a hang: each is told, costs what it must, and the run goes on."""

import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import Bench

from stokehold.cli.inspect import account
from stokehold.core.records import Job, JobState
from stokehold.store import failpoints
from stokehold.store.db import events, job_rows, journal, skips, tables
from stokehold.store.home import Home
from stokehold.store.models import checkpoints
from tiny_world import facts

ROWS = 150


@pytest.fixture
def failpoint() -> Iterator[Callable[[str], None]]:
    yield failpoints.arm
    failpoints.arm("")


def spoil(one: Bench) -> None:
    """What a bit flip in memory may do to a weight."""
    assert one.trainer.lineage is not None
    with torch.no_grad():
        next(one.trainer.lineage.model.parameters())[:, 0] = float("nan")


def told(one: Bench, kind: str) -> list[str]:
    return [event.text for event in events.events(one.db, kind=kind)]


def ledger(one: Bench) -> Any:
    newest = checkpoints.latest(one.home, one.db).checkpoint
    (row,) = account(one.home, one.db, Path(newest.path) if newest else None)
    assert row.accepted == row.held_out + row.trained + row.unusable + row.skipped + row.pending
    return row


def test_a_weight_that_became_nan_costs_one_batch_and_nothing_else(bench: Callable[..., Bench]) -> None:
    one = bench(training={"checkpoint_steps": 3})
    job = one.dataset("one.jsonl", facts(ROWS))
    one.at = {5: [lambda: spoil(one)]}
    assert one.run(job) is JobState.COMPLETED
    (text,) = told(one, "batch_skipped")
    assert text.startswith("the loss is not finite: step 6")
    row = ledger(one)
    assert row.balanced
    assert row.skipped == int(re.findall(r"(\d+) rows passed over", text)[0]) > 0
    assert row.trained == ROWS - row.skipped == one.rows_trained()
    assert [(span.branch, span.after) for span in journal.spans(one.db)] == [(1, 3), (0, -1)]
    assert [step.step for step in journal.steps(one.db)] == list(range(1, one.step() + 1))
    assert {(s.branch, s.step) for s in journal.steps(one.db, branch=0)} >= {(0, 4), (0, 5)}, "kept, beside the new"


def test_three_in_a_row_end_the_job_with_the_reason_and_a_retry_trains_every_row(bench: Callable[..., Bench]) -> None:
    one = bench(training={"checkpoint_steps": 3})
    job = one.dataset("one.jsonl", facts(ROWS))
    one.at = {5: [lambda: spoil(one)] * 20}
    assert one.run(job) is JobState.FAILED
    (failed,) = events.events(one.db, kind="job_failed")
    assert "3 batches in a row spoilt the step" in failed.text
    assert "learning_rate" in failed.text
    assert len(told(one, "batch_skipped")) == 3
    assert one.step() == 3
    assert skips.keys(one.db, job.id) == frozenset()
    one.at = {}
    one.client.retry(job.id)
    assert one.run(job) is JobState.COMPLETED
    assert (ledger(one).trained, ledger(one).skipped) == (ROWS, 0)


def test_a_batch_that_is_nothing_like_the_others_is_passed_over(bench: Callable[..., Bench]) -> None:
    odd = {"prompt": "what colour is it", "completion": " ".join(f"{n * n * 7919}" for n in range(12))}
    rows = [*facts(600), odd, *facts(100, seed=9)]
    options = {"micro_batch_tokens": 128, "checkpoint_steps": 20, "spike_factor": 3.0}
    one, calm = bench(training=options), bench(training={**options, "spike_factor": 0.0})
    assert one.run(one.dataset("one.jsonl", rows)) is JobState.COMPLETED
    (text,) = told(one, "batch_skipped")
    assert "the loss rose suddenly" in text
    assert ledger(one).trained == len(rows) - ledger(one).skipped
    assert calm.run(calm.dataset("one.jsonl", rows)) is JobState.COMPLETED
    worst = max(step.loss for step in journal.steps(calm.db, since=60))
    assert worst > 3 * max(step.loss for step in journal.steps(one.db, since=60)), "what was passed over was a spike"


def test_a_file_whose_rows_change_for_good_is_trained_whole(bench: Callable[..., Bench]) -> None:
    """As one sorted by topic does: every batch of the second half is far above the mean of the first."""
    other = [{"prompt": "count", "completion": " ".join(f"{n * k * 7919}" for k in range(8))} for n in range(200)]
    one = bench(training={"micro_batch_tokens": 128, "checkpoint_steps": 20, "spike_factor": 3.0})
    assert one.run(one.dataset("one.jsonl", [*facts(600), *other])) is JobState.COMPLETED
    (text,) = told(one, "level_changed")
    assert "its rows have changed" in text
    row = ledger(one)
    assert (row.trained + row.skipped, row.balanced) == (800, True)
    assert row.skipped < 20, "no more than what was mixed into the first of them"
    again = one.restarted()
    again.run(again.dataset("two.jsonl", facts(60, seed=3)))
    assert len(told(again, "level_changed")) == 1
    again.close()


def test_a_batch_too_large_for_memory_is_divided_with_the_same_gradient(bench: Callable[..., Bench]) -> None:
    options = {"micro_batch_tokens": 32768, "checkpoint_steps": 100}
    one, roomy = (bench(training=options, data={"window_rows": 8192}) for _ in range(2))
    rows = facts(4000)
    roomy.run(roomy.dataset("one.jsonl", rows))
    job = one.dataset("one.jsonl", rows)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    one.at = {0: [lambda: resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, hard))]}
    try:
        assert one.run(job) is JobState.COMPLETED
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert "memory ran out; each batch now goes in" in told(one, "out_of_memory")[0]
    assert one.trainer.lineage is not None
    assert one.trainer.lineage.parts > 1
    mine, theirs = journal.steps(one.db), journal.steps(roomy.db)
    assert [step.fingerprint for step in mine] == [step.fingerprint for step in theirs]
    assert [step.grad_norm for step in mine] == pytest.approx([step.grad_norm for step in theirs], rel=1e-4)
    resumed = one.restarted()
    assert resumed.trainer.ready().parts == one.trainer.lineage.parts, "what memory holds is remembered"
    resumed.close()


def break_off(one: Bench, job: Job, step: int) -> None:
    """Ends training after `step` as a kill would: what came after the last checkpoint is in the journal only."""
    one.at = {step: [lambda: (_ for _ in ()).throw(KeyboardInterrupt)]}
    run = str(job_rows.get_payload(one.db, job.id)["run"])
    with pytest.raises(KeyboardInterrupt):
        one.trainer.train(job.id, run, str(job.dataset))


def test_a_replay_that_is_not_what_the_journal_has_is_told_with_its_step(bench: Callable[..., Bench]) -> None:
    one = bench(training={"checkpoint_steps": 3})
    job = one.dataset("one.jsonl", facts(ROWS))
    break_off(one, job, 5)
    (fifth,) = [step for step in journal.steps(one.db) if step.step == 5]
    with one.db.write() as connection:
        table = tables.journal
        connection.execute(table.update().where(table.c.step == 5).values(loss=fifth.loss * (1 + 1e-15) + 1e-12))
    other = one.restarted()
    assert other.run(job) is JobState.COMPLETED
    (text,) = told(other, "replay_differs")
    assert text.startswith(f"step 5: loss {fifth.loss!r} instead of")
    assert "this hardware or kernel is not deterministic" in text
    other.close()


def test_a_faithful_replay_is_not_told(bench: Callable[..., Bench]) -> None:
    one = bench(training={"checkpoint_steps": 3})
    job = one.dataset("one.jsonl", facts(ROWS))
    break_off(one, job, 5)
    other = one.restarted()
    assert other.run(job) is JobState.COMPLETED
    assert told(other, "replay_differs") == []
    other.close()


def test_a_full_disk_stops_the_run_until_there_is_room(
    bench: Callable[..., Bench], failpoint: Callable[[str], None]
) -> None:
    one, straight = bench(training={"checkpoint_steps": 3}), bench(training={"checkpoint_steps": 3})
    straight.run(straight.dataset("one.jsonl", facts(ROWS)))
    job = one.dataset("one.jsonl", facts(ROWS))
    failpoint("publish.manifest:full@2")
    assert one.run(job) is JobState.COMPLETED
    assert told(one, "disk_full")
    assert told(one, "disk_room")
    assert one.weights() == straight.weights()
    assert [path.name for path in one.home.checkpoints.iterdir() if path.name.startswith(".")] == []


def test_a_hang_ends_the_process_with_its_stacks(make_home: Callable[..., Home]) -> None:
    home = make_home(training={"hang_s": 0.5})
    program = (
        "import sys, time; from pathlib import Path; from stokehold.store.home import Home;"
        "from stokehold.store.db.database import connect; from stokehold.pipeline.trainer import Trainer;"
        "home = Home.open(Path(sys.argv[1])); trainer = Trainer(home, home.config(), connect(home), lambda: False);"
        "trainer.tell(sys.argv[2], 1); time.sleep(3)"
    )
    command = [sys.executable, "-c", program, str(home.root)]
    hung = subprocess.run([*command, "training_step"], capture_output=True, text=True, timeout=60, check=False)
    assert hung.returncode == 1
    assert "Timeout (0:00:00.5" in hung.stderr
    assert '"<string>", line 1 in <module>' in hung.stderr
    assert subprocess.run([*command, "paused"], capture_output=True, timeout=60, check=False).returncode == 0
