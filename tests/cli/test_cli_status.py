"""What `stoke status` shows a person: what is known, in 80 columns, and what to do next."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stokehold.cli.status import duration, status_lines
from stokehold.core.config import Config
from stokehold.core.records import Evaluation, Job, JobState, Priority, Step, SuiteResult, SuiteState
from stokehold.store.home import Home
from stokehold.supervisor.facts import Facts, Machine
from stokehold.supervisor.status import from_facts
from stokehold.supervisor.trainer import Trainer

NOW = "2026-01-01T01:00:00.000Z"
MACHINE = Machine(ram_used_gb=3.0, ram_total_gb=8.0, ram_percent=37.5, disk_free_gb=60.0)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "h", Config())


def step(number: int) -> Step:
    return Step(number, 0, "train-a", "d", 2.0, {}, 1e-3, 1.0, 300, 50, 4, 0.5 + number % 2, None, "f", NOW)


def facts(state: str | None, **changes: object) -> Facts:
    gpu = {"temperature_c": 61.4, "vram_used_gb": 3.0, "vram_total_gb": 24.0, "power_w": 171.2}
    told = {"epoch": 0.25, "telemetry": {"gpu": gpu}}
    trainer = (
        None if state is None else Trainer(state.removeprefix("dead "), 1, "train-a", "dead" not in state, 0, told)
    )
    suite = SuiteResult("inbox", SuiteState.OK, n=10, exact=0.321, nll_per_token=2.1)
    known = {
        "current_job": Job("train-a", "train", "a.jsonl", Priority.NORMAL, JobState.RUNNING, 0.25, 1, NOW, dataset="d"),
        "steps": [step(n) for n in range(1, 31)],
        "job_steps": 30,
        "job_examples": 160_000,
        "waiting_files": 2,
        "matches": [True, False],
        "sampled": 2,
        "correct": 1,
        "evaluations": [Evaluation("e", "step:30", "w", "f", {"inbox": suite}, 1.0, "", NOW, step=30)],
        "machine": MACHINE,
    }
    return Facts(Config(), NOW, trainer=trainer, **{**known, **changes})  # type: ignore[arg-type]


def shown(home: Home, known: Facts) -> list[str]:
    return status_lines(home, from_facts(known))


def test_an_idle_home_says_little_and_what_to_do(home: Home) -> None:
    idle = shown(home, Facts(Config(), NOW, machine=MACHINE))
    assert idle == [
        f"idle  {home.root}",
        "",
        "memory    3.0 of 8.0 GB",
        "disk      60.0 GB free",
        "",
        "not up: `stoke up` starts it",
    ]
    assert shown(home, Facts(Config(), NOW, waiting_files=3, machine=MACHINE))[2] == "file      3 waiting"
    with home.lock("supervisor", "stoke up"):
        assert shown(home, Facts(Config(), NOW))[-1] == "nothing waits: drop a JSONL file into inbox/"


def test_training_in_eighty_columns(home: Home) -> None:
    lines = shown(home, facts("training"))
    assert lines[0] == f"training  {home.root}"
    assert lines[2:] == [
        "file      a.jsonl · epoch 0.25 · 2 more waiting",
        "step      30 of 30,030 · 8 h 20 min ± 46 min left · 300 tokens/s",
        "loss      2.0000 · mean 2.0000 · stable",
        "samples   50 % of the last 2 right",
        "held out  exact 32.1 % · loss 2.1000",
        "gpu       61 °C · 3.0 of 24.0 GB · 171 W",
        "memory    3.0 of 8.0 GB",
        "disk      60.0 GB free",
    ]
    assert max(map(len, lines[1:])) <= 80


def test_paused_crashed_and_done_say_how_it_goes_on(home: Home) -> None:
    assert shown(home, facts("paused"))[-1] == "`stoke resume` goes on"
    assert "left" not in "".join(shown(home, facts("paused")))
    full = shown(home, facts("disk_full"))
    assert full[-1].startswith("critical: training waits for room")
    assert "`stoke up` goes on" in shown(home, facts("dead training"))[-1]
    with home.lock("supervisor", "stoke up"):
        assert "started again" in shown(home, facts("dead training"))[-1]
    over = facts(None, current_job=None, waiting_files=0, last_file_state=JobState.COMPLETED)
    assert shown(home, over)[-1] == "everything is trained; the next file goes into inbox/"
    for known in (facts("paused"), facts("disk_full"), facts("dead training"), over):
        assert max(map(len, shown(home, known)[1:])) <= 80


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3569, "59 min"), (3590, "1 h 0 min"), (200_000, "2 d 7 h")],
)
def test_durations_read_like_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_command_prints_it(stoke: Callable[..., Any], home: Home) -> None:
    assert stoke("status", home=home).out.startswith(f"idle  {home.root}\n\nmemory")
