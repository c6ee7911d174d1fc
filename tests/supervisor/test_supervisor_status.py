"""The status payload: every key, unknown is null, and each number from what the home holds."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import sqlalchemy as sa

from stokehold.core.config import Config
from stokehold.core.records import Dataset, Evaluation, Job, JobState, Priority, Step, SuiteResult, SuiteState
from stokehold.store import datasets
from stokehold.store.db import control, job_rows, journal
from stokehold.store.db.database import Database
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.supervisor.facts import Facts
from stokehold.supervisor.patterns import heatmap, length_bin
from stokehold.supervisor.status import from_facts, payload, write_status
from stokehold.supervisor.trainer import Trainer, read_trainer
from stokehold.telemetry import clock

DEFINED = """status current_step total_steps epoch loss learning_rate timestamp model_name max_output_tokens
context_window batch_step batch_total_steps batch_number batch_queue_size current_file
current_system_prompt current_prompt golden_answer model_answer answer_matches total_evals total_correct
accuracy_percent accuracy_last_20 accuracy_last_50 accuracy_trend streaming_ce loss_variance
token_entropy loss_trend fixed_eval_em fixed_eval_ce fixed_eval_ece fixed_eval_trend val_train_gap
tokens_per_sec eta_seconds eta_error_seconds pattern_heatmap pattern_loss_trend layer_activity_summary lora_stats
train_loss_history accuracy_history gpu ram disk drill backup active_alerts"""
KEYS = DEFINED.split()
KNOWN_WHEN_EMPTY = {
    "status": "idle",
    "max_output_tokens": 512,
    "batch_queue_size": 0,
    "total_evals": 0,
    "total_correct": 0,
    "accuracy_trend": "insufficient_data",
    "loss_trend": "insufficient_data",
    "fixed_eval_trend": "insufficient_data",
    "train_loss_history": [],
    "accuracy_history": [],
}
NOW = "2026-01-01T01:00:00.000Z"
Make = Callable[..., Step]


def say(home: Home, **facts: object) -> None:
    now = clock.stamp()
    written = {"pid": os.getpid(), "state": "training", "boot": now.boot, "boot_s": now.boot_s, **facts}
    (home.status / "trainer.json").write_bytes(orjson.dumps(written))


def test_an_empty_home_has_every_key_and_knows_what_it_does_not_know(home: Home, db: Database) -> None:
    found = payload(home, db)
    assert list(found) == KEYS
    machine = ("timestamp", "ram", "disk", "gpu", "active_alerts")
    assert {key: value for key, value in found.items() if value is not None and key not in machine} == KNOWN_WHEN_EMPTY
    assert set(found["gpu"].values()) == {None}
    assert found["ram"]["total_gb"] == pytest.approx(psutil.virtual_memory().total / 1e9)
    write_status(home, found)
    assert orjson.loads((home.status / "training_status.json").read_bytes()) == found


def accepted(home: Home, dataset: str, rows: int) -> None:
    """Publishes a dataset of so many rows to train."""
    record = Dataset(dataset, "0" * 64, "a.jsonl", 1, accepted=rows + 5, held_out=5, rejected=0, created=NOW)
    datasets.save_dataset(home, record, lambda folder: (folder / "rows.jsonl").write_bytes(b"") and None)


def test_a_run_in_the_middle_of_a_file(home: Home, client: JobsClient, make_step: Make, tmp_path: Path) -> None:
    db = client.db
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    client.submit_file(tmp_path / "b.jsonl")
    job = client.enqueue("train", {"file": "a.jsonl"}, job_id="train-a")
    job_rows.begin(db, job.id)
    accepted(home, "d7f3", rows=160)
    job_rows.set_dataset(db, job.id, "d7f3")
    job_rows.set_progress(db, job.id, 0.25)
    journal.append(db, make_step(1, job="train-old", loss=4.0, seconds=9.0))
    for number in range(2, 12):
        journal.append(db, make_step(number, loss=2.0, tokens=300, seconds=0.5, token_entropy=0.7))
    journal.add_sample(db, 10, "2+2?", "4", "5", match=False)
    journal.add_sample(db, 11, "2+3?", "5", "5", match=True)
    gpu = {"temperature_c": 60.0, "vram_used_gb": 3.0, "vram_total_gb": 24.0, "power_w": 170.0}
    say(home, job="train-a", step=11, model_name="tiny", telemetry={"gpu": gpu})
    found = payload(home, db)
    told = {key: found[key] for key in ("status", "current_step", "total_steps", "loss", "current_file", "model_name")}
    assert told == {
        "status": "training",
        "current_step": 11,
        "total_steps": 41,
        "loss": 2.0,
        "current_file": "a.jsonl",
        "model_name": "tiny",
    }
    assert (found["batch_step"], found["batch_total_steps"], found["batch_queue_size"]) == (10, 40, 1)
    assert (found["eta_seconds"], found["eta_error_seconds"]) == (pytest.approx(15.0), pytest.approx(0.0))
    assert found["tokens_per_sec"] == pytest.approx((100 + 3000) / 14)
    assert found["streaming_ce"] == pytest.approx(2 + 2 * 0.9**10)
    assert (found["golden_answer"], found["model_answer"], found["answer_matches"]) == ("5", "5", True)
    assert (found["total_evals"], found["total_correct"], found["accuracy_percent"]) == (2, 1, 50.0)
    assert found["accuracy_history"] == [0.0, 50.0]
    assert found["token_entropy"] == 0.7
    assert found["gpu"] == gpu


def test_what_is_left_is_told_by_rows_and_only_while_training(make_step: Make) -> None:
    """A file taken up again at its half has few steps of its own, and is not nearly done for that."""
    steps = [make_step(n, seconds=1.0 if n % 2 else 3.0) for n in range(1, 5)]
    job = Job("train-a", "train", "a.jsonl", Priority.NORMAL, JobState.RUNNING, 0.5, 1, NOW, dataset="d")
    facts = Facts(Config(), NOW, trainer=trained("training"), current_job=job, steps=steps, job_examples=80)
    found = from_facts(facts)
    assert found["eta_seconds"] == 20.0
    assert found["eta_error_seconds"] == pytest.approx(math.sqrt(4 / 3 * (10 + 100 / 4)))
    for unknown in (
        replace(facts, job_examples=None),
        replace(facts, current_job=replace(job, progress=0.0)),
        replace(facts, current_job=replace(job, id="train-b")),
        replace(facts, trainer=trained("paused")),
    ):
        told = from_facts(unknown)
        assert (told["eta_seconds"], told["eta_error_seconds"]) == (None, None)
    assert from_facts(replace(facts, trainer=trained("paused")))["tokens_per_sec"] is None


def test_what_only_the_trainer_knows_is_taken_from_it_while_it_lives() -> None:
    lora = {"adapters": {"q_proj": {"update_norm": 0.5, "gradient_norm": None}}, "dead_layers": []}
    told: dict[str, object] = {
        "epoch": 1.5,
        "total_steps": 900,
        "current_system_prompt": "be brief",
        "layer_activity_summary": {"embed": 0.01, "layer_0": None},
        "lora_stats": lora,
    }
    alive = Facts(Config(), NOW, trainer=trained("training", **told))
    found = from_facts(alive)
    assert {key: found[key] for key in told} == told
    gone = from_facts(replace(alive, trainer=trained("training", alive=False, **told)))
    assert {key: gone[key] for key in told} == dict.fromkeys(told)


def test_training_beyond_the_end_of_its_schedule_has_no_end(make_step: Make) -> None:
    told = Facts(Config(), NOW, trainer=trained("training", total_steps=10))
    assert from_facts(replace(told, steps=[make_step(10)]))["total_steps"] == 10
    assert from_facts(replace(told, steps=[make_step(11)]))["total_steps"] is None


def trained(state: str, *, alive: bool = True, **facts: object) -> Trainer:
    return Trainer(state, 1, None, alive, 0.0, facts)


@pytest.mark.parametrize(
    ("trainer", "command", "word"),
    [
        (None, None, "idle"),
        (trained("idle"), None, "idle"),
        (trained("training"), None, "training"),
        (trained("evaluating"), None, "training"),
        (trained("training"), "pause", "training"),
        (trained("paused"), "pause", "paused"),
        (trained("disk_full"), None, "paused"),
        (trained("training"), "stop", "stopping"),
        (trained("stopping"), None, "stopping"),
        (trained("training", alive=False), None, "crashed"),
        (trained("paused", alive=False), None, "crashed"),
        (trained("idle", alive=False), None, "idle"),
        (trained("stopped", alive=False), "stop", "idle"),
    ],
)
def test_the_word_for_how_things_stand(trainer: Trainer | None, command: str | None, word: str) -> None:
    assert from_facts(Facts(Config(), NOW, trainer=trainer, command=command))["status"] == word


def test_completed_when_the_last_file_is_and_nothing_waits() -> None:
    done = Facts(Config(), NOW, trainer=trained("idle"), last_file_state=JobState.COMPLETED)
    assert from_facts(done)["status"] == "completed"
    assert from_facts(replace(done, unfinished_jobs=1))["status"] == "idle"
    assert from_facts(replace(done, last_file_state=JobState.FAILED))["status"] == "idle"


def test_a_killed_trainer_is_crashed_and_a_stranger_with_its_number_is_not_it(home: Home, db: Database) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        say(home, pid=process.pid)
        assert payload(home, db)["status"] == "training"
        process.kill()
    assert payload(home, db)["status"] == "crashed"
    began_s = psutil.Process().create_time() - psutil.boot_time()
    say(home, boot=clock.boot(), boot_s=began_s - 3600)
    assert payload(home, db)["status"] == "crashed", "a later process has its number"
    say(home, boot="an earlier start of the machine", boot_s=began_s)
    assert payload(home, db)["status"] == "crashed"
    say(home, boot=clock.boot(), boot_s=clock.boot_s(), updated="1999-01-01T00:00:00Z")
    assert payload(home, db)["status"] == "training", "whatever was done to the time of day"


def test_a_damaged_trainer_file_is_no_trainer(home: Home, db: Database) -> None:
    (home.status / "trainer.json").write_bytes(b'{"pid": 1')
    assert read_trainer(home.status) is None
    assert payload(home, db)["status"] == "idle"


def test_stop_is_shown_from_the_control_row(home: Home, db: Database) -> None:
    say(home)
    control.request(db, "stop")
    assert payload(home, db)["status"] == "stopping"


def test_old_sensor_readings_are_unknown(home: Home, db: Database) -> None:
    say(home, telemetry={"gpu": {"temperature_c": 60.0}}, boot=clock.boot(), boot_s=clock.boot_s() - 3600)
    assert payload(home, db)["gpu"]["temperature_c"] is None
    say(home, telemetry={"gpu": {"temperature_c": 60.0}}, boot=clock.boot(), boot_s=clock.boot_s(), updated="1999")
    assert payload(home, db)["gpu"]["temperature_c"] == 60.0


def judged(home: Home, db: Database, step: int, exact: float, nll: float) -> Evaluation:
    lines = [
        {"suite": "syllo", "token_ids": [1] * 150, "score": 1.0},
        {"suite": "syllo", "token_ids": [1] * 150, "score": 0.5},
        {"suite": "syllo", "token_ids": [], "score": None},
        {"suite": "x", "family": "sequence", "token_ids": [1] * 2000, "score": 0.0},
    ]
    result = SuiteResult("syllo", SuiteState.OK, n=10, exact=exact, nll_per_token=nll, ece=exact / 2)
    record = Evaluation(f"e{step:04d}", f"step:{step}", f"w{step}", "f", {"syllo": result}, 1.0, "", NOW, step=step)
    text = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    return evaluations.save(home, db, record, lambda folder: (folder / "completions.jsonl").write_bytes(text) and None)


def test_held_out_readings(home: Home, db: Database, make_step: Make) -> None:
    for number in range(1, 31):
        journal.append(db, make_step(number, loss=1.0 if number <= 20 else 9.0))
    for number in range(1, 21):
        judged(home, db, number, exact=0.1 if number <= 10 else 0.4, nll=3.0 if number <= 10 else 1.5)
    found = payload(home, db)
    assert (found["fixed_eval_em"], found["fixed_eval_ce"]) == (0.4, 1.5)
    assert found["fixed_eval_ece"] == 0.2, "the newest"
    assert found["fixed_eval_trend"] == "improving"
    assert found["pattern_loss_trend"] == {"syllo": "improving"}
    assert found["val_train_gap"] == pytest.approx(0.5), "against the training loss at the evaluated step"
    assert found["pattern_heatmap"] == {
        "syllo": {"100-300": {"seen": 2, "exact_match": 1}},
        "sequence": {"2000+": {"seen": 1, "exact_match": 0}},
    }


def test_the_gap_is_known_however_long_ago_the_evaluation_was(home: Home, db: Database, make_step: Make) -> None:
    with db.write() as connection:
        for number in range(1, 1200):
            journal.append(db, make_step(number, loss=1.0 if number <= 20 else 9.0), connection)
    judged(home, db, 20, exact=0.1, nll=3.0)
    assert payload(home, db)["val_train_gap"] == pytest.approx(2.0)


def instructions(home: Home, db: Database) -> int:
    """What SQLite's machine does for one payload, in its own instructions, rounded up to ten."""
    counted = [0]

    def tick() -> int:
        counted[0] += 10
        return 0

    def watch(connection: Any, _record: Any, _proxy: Any) -> None:
        connection.set_progress_handler(tick, 10)

    sa.event.listen(db.engine, "checkout", watch)
    try:
        payload(home, db)
    finally:
        sa.event.remove(db.engine, "checkout", watch)
    return counted[0]


LONG_RUN = """
WITH RECURSIVE n(step) AS (SELECT :first UNION ALL SELECT step + 1 FROM n WHERE step < :last)
INSERT INTO journal SELECT :branch, step, 'train-a', 'd', 1.0, '{}', 0.001, 1.0, 100, 50, 4, 0.5, NULL, 'f',
'2026-01-01T00:00:00.000Z', NULL FROM n
"""


def train_on(db: Database, branch: int, first: int, last: int) -> None:
    with db.write() as connection:
        connection.execute(sa.text(LONG_RUN), {"branch": branch, "first": first, "last": last})


def test_a_long_journal_costs_the_status_no_more_than_a_short_one(home: Home, db: Database) -> None:
    """One branch, then with a going back in the middle; SQLite's own work is counted."""
    db_rows = 600
    job_rows.begin(db, "train-a", kind="train")
    train_on(db, 0, 1, db_rows)
    short = instructions(home, db)
    for step in range(6000, 66_001, 60_000):
        train_on(db, 0, db_rows + 1, step)
        db_rows = step
        assert instructions(home, db) < 1.1 * short
    journal.new_branch(db, 60_000, "test")
    train_on(db, 1, 60_001, 60_100)
    assert payload(home, db)["current_step"] == 60_100
    assert payload(home, db)["batch_step"] == 60_100
    assert instructions(home, db) < 1.2 * short


def test_length_bins_meet_at_their_bounds() -> None:
    assert [length_bin(n) for n in (0, 99, 100, 999, 1000, 2000, 10**6)] == [
        "0-100",
        "0-100",
        "100-300",
        "500-1000",
        "1000-2000",
        "2000+",
        "2000+",
    ]
    assert heatmap([]) == {}


def test_a_damaged_evaluation_is_told_and_the_others_are_shown(home: Home, db: Database) -> None:
    judged(home, db, 1, exact=0.1, nll=3.0)
    record = Path(judged(home, db, 2, exact=0.4, nll=1.5).path) / "manifest.json"
    record.write_bytes(record.read_bytes().replace(b"1.5", b"7.5"))
    found = payload(home, db)
    assert (found["fixed_eval_em"], found["fixed_eval_ce"]) == (0.1, 3.0)
    (told,) = [alert for alert in found["active_alerts"] if alert["kind"] == "evaluation_damaged"]
    assert told["text"].startswith("e0002: manifest was changed since it was written; ")
    Path(record.parent).rename(home.root / "aside")
    assert "evaluation_damaged" not in {alert["kind"] for alert in payload(home, db)["active_alerts"]}
