"""`stoke train` and the ledger: parts, repeats, refusals, failures."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from stokehold.core.records import JobState
from stokehold.pipeline import trainer
from stokehold.pipeline.foreground import Meter, train_files
from stokehold.pipeline.worker import Leave
from stokehold.store import failpoints
from stokehold.store.db import events, job_rows, jobs, journal
from stokehold.store.db.control import request
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from tiny_world import facts, write_jsonl

MakeHome = Callable[..., Home]
KEYS = {"step", "loss", "examples", "tokens", "tokens_per_s", "checkpoint"}


class LeaveWhen(Leave):
    """Asked to leave from when something is true."""

    def __init__(self, true: Callable[[], object]) -> None:
        super().__init__()
        self._true = true

    def __call__(self) -> bool:
        return bool(self._true())


class Told(Meter):
    """Remembers every share that it was to show."""

    def __init__(self) -> None:
        super().__init__()
        self.shares: list[float] = []

    def show(self, name: str, share: float, facts: str) -> None:
        self.shares.append(share)
        super().show(name, share, facts)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "we[bold]ird.jsonl", facts(300))


def ledger(stoke: Any, home: Home) -> list[dict[str, Any]]:
    answer = stoke("doctor", "--ledger", "--json", home=home).answer
    assert answer["balanced"]
    for row in answer["ledger"]:
        assert row["accepted"] == row["held_out"] + row["trained"] + row["unusable"] + row["skipped"] + row["pending"]
    found: list[dict[str, Any]] = answer["ledger"]
    return found


def test_json_ends_with_the_totals(stoke: Any, make_home: MakeHome, file: Path) -> None:
    home = make_home()
    answer = stoke("train", file, "--json", home=home).answer
    steps = journal.steps(connect(home))
    assert set(answer) >= KEYS
    assert answer["step"] == len(steps) == steps[-1].step
    assert answer["loss"] == steps[-1].loss
    assert answer["examples"] == 300
    assert answer["tokens"] == sum(step.tokens for step in steps)
    assert answer["tokens_per_s"] == pytest.approx(answer["tokens"] / sum(step.seconds for step in steps))
    assert (Path(answer["checkpoint"]) / "manifest.json").is_file()


def test_steps_are_absolute_and_parts_make_the_whole(stoke: Any, make_home: MakeHome, file: Path) -> None:
    home = make_home()
    assert stoke("train", file, "--steps", 3, "--json", home=home).answer["step"] == 3
    part = ledger(stoke, home)[0]
    assert 0 < part["trained"] < 300
    refused = stoke("train", file, home=home)
    assert refused.code != 0
    assert "--resume" in refused.error
    assert stoke("train", file, "--steps", 5, "--resume", "--json", home=home).answer["step"] == 5
    whole = stoke("train", file, "--resume", "--json", home=home).answer
    again = stoke("train", file, "--resume", "--json", home=home).answer
    assert again == whole
    assert whole["examples"] == ledger(stoke, home)[0]["trained"] == 300
    done = stoke("train", file, home=home)
    assert done.code == 1
    assert "already trained" in done.error


def test_the_second_file_goes_on_when_the_first_is_done(stoke: Any, make_home: MakeHome, tmp_path: Path) -> None:
    home = make_home()
    files = [write_jsonl(tmp_path / f"{seed}.jsonl", facts(100, seed)) for seed in (1, 2)]
    first = stoke("train", files[0], "--json", home=home).answer
    both = stoke("train", *files, "--resume", "--json", home=home).answer
    assert both["step"] > first["step"]
    assert both["examples"] == 200
    assert [job["state"] for job in both["jobs"]] == ["completed", "completed"]
    assert [row["trained"] for row in ledger(stoke, home)] == [100, 100]


def test_a_missing_second_file_is_told_before_the_first_is_trained(
    stoke: Any, make_home: MakeHome, file: Path, tmp_path: Path
) -> None:
    home = make_home()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("no json\n")
    assert "no such file" in stoke("train", file, tmp_path / "gone.jsonl", home=home).error
    unusable = stoke("train", file, bad, home=home)
    assert unusable.code == 1
    assert "no usable line · bad.jsonl · first problem: line 1" in unusable.error
    assert "given twice" in stoke("train", file, file, home=home).error
    assert journal.last_step(connect(home)) is None


def test_the_ledger_has_held_out_rejected_and_unusable_rows(stoke: Any, make_home: MakeHome, tmp_path: Path) -> None:
    home = make_home(evaluation={"holdout_share": 0.1, "max_new_tokens": 4}, training={"epochs": 2})
    file = write_jsonl(tmp_path / "mixed.jsonl", facts(250))
    long = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "red " * 400}]}
    with file.open("ab") as more:
        more.write(b"broken\n" + orjson.dumps(long) + b"\n")
    stoke("train", file, "--steps", 9, home=home)
    part = ledger(stoke, home)[0]
    assert part["pending"] > 0
    stoke("train", file, "--resume", home=home)
    whole = ledger(stoke, home)[0]
    assert (whole["accepted"], whole["rejected"], whole["unusable"], whole["pending"]) == (251, 1, 1, 0)
    assert whole["held_out"] >= 20
    home.write_config(home.config_path.read_text().replace("epochs = 2", "epochs = 5"))
    assert ledger(stoke, home)[0]["pending"] == 0


def test_a_ledger_that_does_not_add_up_is_told(stoke: Any, make_home: MakeHome, file: Path) -> None:
    home = make_home()
    stoke("train", file, "--steps", 2, home=home)
    db = connect(home)
    with db.write() as connection:
        connection.exec_driver_sql("update journal set examples = examples + 1 where step = 1")
    broken = stoke("doctor", "--ledger", home=home)
    assert broken.code == 1
    assert "does not add up" in broken.err


def test_a_failure_is_stored_and_one_line(
    stoke: Any, make_home: MakeHome, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home()

    def explode(*_arguments: object) -> None:
        raise RuntimeError("no memory\nsecond line")

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "run_job", explode)
        failed = stoke("train", file, home=home)
    assert failed.code == 1
    assert "RuntimeError: no memory" in failed.error
    db = connect(home)
    (job,) = job_rows.list_jobs(db)
    assert job.state is JobState.FAILED
    assert "no memory" in (job.error or "")
    assert "explode" in events.events(db, kind="job_failed")[-1].data["traceback"]
    assert stoke("train", file, "--resume", "--json", home=home).answer["examples"] == 300


def test_a_file_without_a_row_to_train_fails(stoke: Any, make_home: MakeHome, tmp_path: Path) -> None:
    home = make_home()
    long = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "red " * 400}]}
    failed = stoke("train", write_jsonl(tmp_path / "long.jsonl", [long]), "--json", home=home)
    assert failed.code == 1
    assert failed.out == ""
    assert "stoke: no row of this file could be trained" in failed.err
    assert job_rows.list_jobs(connect(home))[0].state is JobState.FAILED


def test_an_old_request_to_stop_does_not_end_the_next_training(stoke: Any, make_home: MakeHome, file: Path) -> None:
    home = make_home()
    request(connect(home), "stop")
    assert stoke("train", file, "--json", home=home).answer["jobs"][0]["state"] == "completed"
    idle = stoke("stop", home=home)
    assert idle.code == 1
    assert "nothing is training" in idle.error


def test_stop_ends_after_the_step_and_resume_goes_on(
    stoke: Any, make_home: MakeHome, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home()
    append = journal.append

    def append_and_ask(db: Any, step: Any) -> None:
        append(db, step)
        if step.step == 2:
            request(db, "stop")

    with monkeypatch.context() as patched:
        patched.setattr(journal, "append", append_and_ask)
        answer = stoke("train", file, "--json", home=home).answer
    assert (answer["step"], answer["jobs"][0]["state"]) == (2, "partial")
    assert stoke("train", file, "--resume", "--json", home=home).answer["examples"] == 300


def test_leaving_while_the_disk_is_full_is_no_failure(stoke: Any, make_home: MakeHome, file: Path) -> None:
    home = make_home()
    db = connect(home)
    leave = LeaveWhen(lambda: events.events(db, kind="disk_full"))
    failpoints.arm("checkpoint.optimizer:full")
    try:
        with Meter() as meter:
            answer = train_files(home, [file], None, False, leave, meter)
    finally:
        failpoints.arm("")
    assert [(job["state"], job["reason"]) for job in answer["jobs"]] == [("partial", "leaving")]
    assert events.events(db, kind="job_failed") == []
    assert stoke("train", file, "--resume", "--json", home=home).answer["examples"] == 300


def test_what_a_kill_left_half_written_is_swept_at_the_next_start(
    stoke: Any, make_home: MakeHome, file: Path, environment: dict[str, str]
) -> None:
    home = make_home()
    command = [sys.executable, "-m", "stokehold.cli.main", "train", str(file), "--home", str(home.root)]
    armed = {**environment, failpoints.VARIABLE: "checkpoint.optimizer:kill"}
    assert subprocess.run(command, env=armed, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert [path.name.startswith(".staging-step_") for path in home.checkpoints.iterdir()] == [True]
    stoke("train", file, "--resume", "--steps", 1, home=home)
    assert [path.name for path in home.checkpoints.iterdir() if path.name.startswith(".")] == []


def test_the_bar_is_full_when_every_row_that_can_be_trained_was(make_home: MakeHome, tmp_path: Path) -> None:
    home = make_home(training={"epochs": 3})
    long = {"prompt": "x", "completion": "red " * 400}
    file = write_jsonl(tmp_path / "mixed.jsonl", [*facts(90), *[{**long, "prompt": str(n)} for n in range(10)]])
    with Told() as meter:
        train_files(home, [file], None, False, Leave(), meter)
    assert meter.shares == sorted(meter.shares)
    assert meter.shares[-1] == 1.0


def test_beside_stoke_up_it_is_refused_with_the_way_out(stoke: Any, make_home: MakeHome, file: Path) -> None:
    home = make_home()
    with home.lock("supervisor", "stoke up"):
        beside = stoke("train", file, home=home)
    assert beside.code == 1
    assert "stoke submit" in beside.error
    assert "stoke down" in beside.error
    with home.lock("trainer", "stoke train"):
        assert "held by process" in stoke("train", file, home=home).error


def test_what_waits_in_the_queue_is_not_trained_twice(stoke: Any, make_home: MakeHome, file: Path) -> None:
    home = make_home()
    (job,) = stoke("submit", file, "--json", home=home).answer
    refused = stoke("train", file, "--resume", home=home)
    assert refused.code == 1
    assert job["id"] in refused.error
    with jobs.client(home) as client:
        client.cancel(job["id"])
    assert stoke("train", file, "--json", home=home).answer["examples"] == 300


def test_the_real_command_shows_lines_on_stderr_and_json_on_stdout(
    make_home: MakeHome, file: Path, environment: dict[str, str]
) -> None:
    home = make_home()
    command = [sys.executable, "-m", "stokehold.cli.main", "train", str(file), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environment, "STOKE_HOME": str(home.root)}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(orjson.loads(done.stdout)) >= KEYS
    assert "we[bold]ird.jsonl: " in done.stderr
    assert "tokens/s" in done.stderr
