"""Children for real: started, ended, restarted, told to leave; and gone when the supervisor is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import sqlalchemy as sa

from stokehold.core.config import Config, parse_config
from stokehold.store.db import events, job_rows
from stokehold.store.db.database import Database
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home
from stokehold.supervisor import processes
from stokehold.supervisor.processes import (
    SPARE_AFTER_S,
    SPARE_AGAIN_S,
    Child,
    Role,
    holder,
    roles,
    tail,
    worker_environment,
)
from stokehold.telemetry.cores import core_count
from waiting import PATIENCE_S, until

HERE = Path(__file__).parent


def is_running(pid: int) -> bool:
    """A process that has ended and that nobody asked after is none."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Child]]:
    monkeypatch.setattr(processes, "SPARE_MEMORY_BYTES", 0)  # the stand-in is small
    made = []

    def make(*script: str, spare: bool = False) -> Child:
        role = Role("trainer", "stand_in", script, {"PYTHONPATH": str(HERE), "GIVEN": "x"}, spare=spare)
        made.append(Child(role, tmp_path))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.drop_spare()
        one.kill()
        one.let_go()


def test_the_environment_is_set_before_the_worker_starts() -> None:
    found = worker_environment(Config())
    assert found["OMP_NUM_THREADS"] == str(core_count())
    assert found["HF_HUB_OFFLINE"] == found["DO_NOT_TRACK"] == "1"
    three = parse_config({"training": {"threads": 3}})
    assert worker_environment(three)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("evaluator", "names"), [("share", "trainer web"), ("cpu", "trainer evaluator web")])
def test_an_evaluator_of_its_own_is_a_child_with_a_place_of_its_own(tmp_path: Path, evaluator: str, names: str) -> None:
    home = Home.create(tmp_path / "home", parse_config({"devices": {"evaluator": evaluator}}))
    found = {role.name: role for role in roles(home)}
    assert " ".join(found) == names
    if "evaluator" in found:
        assert not {*found["trainer"].locks} & {*found["evaluator"].locks}
        assert found["trainer"].environment == found["evaluator"].environment, "threads are part of exactness"


def test_a_child_gets_its_environment_and_leaves_when_let_go(child: Callable[..., Child]) -> None:
    one = child("env:GIVEN", "serve")
    assert one.state == "running"
    assert one.due(time.monotonic()) == float("inf")
    until(lambda: "GIVEN=x" in one.last_words())
    assert one.reap() is None
    one.let_go()
    ended = until(one.reap)
    assert ended.code == 0
    assert one.last_words().endswith("left in order")
    assert one.restarts.exits == ()
    assert one.history == [], "an end that was asked for is no restart"


def test_a_crash_is_remembered_with_its_last_words_and_delays_the_next_start(child: Callable[..., Child]) -> None:
    one = child("say:out of cheese", "fail:3")
    ended = until(one.reap)
    assert ended.code == 3
    assert one.last_words() == "out of cheese"
    assert one.due(ended.at_s) == pytest.approx(0.1)
    assert one.due(ended.at_s + 0.2) == 0.0
    assert [entry["exit"] for entry in one.history] == [3]
    one.start()
    until(one.reap)
    assert one.restarts.delay_s == 0.2


def test_a_spare_begins_when_the_other_is_gone(child: Callable[..., Child]) -> None:
    one = child("say:at work", "serve", spare=True)
    until(lambda: "at work" in one.last_words())
    now = time.monotonic()
    assert not one.tend_spare(now)
    assert one.spare_pid is None, "one that loads beside the first only delays it"
    one.tend_spare(now + SPARE_AFTER_S)
    first, spare = one.pid, one.spare_pid
    assert first is not None
    assert spare not in (None, first)
    until(lambda: "stands by" in one.last_words())
    one.tend_spare(now + 100)
    assert one.spare_pid == spare, "one is enough"
    os.kill(first, signal.SIGKILL)
    until(one.reap)
    one.start()
    assert (one.pid, one.spare_pid) == (spare, None)
    until(lambda: one.last_words() == "at work")
    assert one.restarts.delay_s == 0.1, "it counts as any other"


def test_a_spare_that_went_is_told_once_and_replaced_later(child: Callable[..., Child]) -> None:
    one = child("serve", spare=True)
    now = time.monotonic() + SPARE_AFTER_S
    one.tend_spare(now)
    assert one.spare_pid is not None
    os.kill(one.spare_pid, signal.SIGKILL)
    until(lambda: one.tend_spare(now))
    assert not one.tend_spare(now + SPARE_AGAIN_S - 1)
    assert one.spare_pid is None
    one.tend_spare(now + SPARE_AGAIN_S)
    assert one.spare_pid is not None
    assert one.history == [], "it was no end of the role"


def test_a_spare_that_is_dead_when_it_is_needed_is_no_spare(child: Callable[..., Child]) -> None:
    one = child("say:at work", "serve", spare=True)
    one.tend_spare(time.monotonic() + SPARE_AFTER_S)
    assert one.spare_pid is not None
    spare = psutil.Process(one.spare_pid)
    spare.kill()
    until(lambda: spare.status() == psutil.STATUS_ZOMBIE)
    one.kill()
    until(one.reap)
    one.start()
    assert one.pid != spare.pid
    until(lambda: "at work" in one.last_words())


def test_ctrl_c_in_our_terminal_does_not_reach_a_child(child: Callable[..., Child]) -> None:
    one = child("serve")
    assert one.pid is not None
    assert os.getsid(one.pid) != os.getsid(0)


def test_the_last_words_are_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    assert tail(log) == ""
    log.write_text("\n".join(f"line {n}" for n in range(10_000)))
    assert tail(log).splitlines()[-1] == "line 9999"
    assert len(tail(log).splitlines()) == 12


def test_the_holder_of_a_lock_is_named_and_left_undisturbed(home: Home) -> None:
    assert holder(home, ("trainer",)) is None
    with home.lock("trainer", "stoke train"):
        assert holder(home, ("other", "trainer")) == f"process {os.getpid()} (stoke train)"
    assert holder(home, ("trainer",)) is None
    with home.lock("trainer", "again"):
        pass


def obey_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Up:
    """A supervisor over stand-ins in a process of its own."""

    def __init__(self, home: Home, trainer: str, web: str) -> None:
        self.home = home
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
        command = [sys.executable, str(HERE / "run_stand_ins.py"), str(home.root), trainer, web]
        # Who runs the tests in the background may ignore Ctrl-C, and a child would inherit that.
        self.process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=obey_interrupts
        )

    def children(self) -> dict[str, dict[str, Any]]:
        path = self.home.status / "supervisor.json"
        if not path.exists():
            return {}
        return {child["role"]: child for child in orjson.loads(path.read_bytes())["children"]}

    def running(self, role: str) -> int | None:
        found: int | None = self.children().get(role, {}).get("pid")
        return found if found is not None and psutil.pid_exists(found) else None

    def log(self, role: str) -> str:
        path = self.home.logs / f"{role}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def up(home: Home) -> Iterator[Callable[[str, str], Up]]:
    made: list[Up] = []

    def start(trainer: str, web: str) -> Up:
        made.append(Up(home, trainer, web))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.communicate()


def test_up_restarts_what_dies_and_leaves_in_order(up: Callable[[str, str], Up], db: Database) -> None:
    house = up("env:GIVEN,serve", "serve")
    first = until(lambda: house.running("trainer"))
    until(lambda: house.running("web"))
    until(lambda: "GIVEN=to the trainer" in house.log("trainer"))
    os.kill(first, signal.SIGKILL)
    until(lambda: house.running("trainer") not in (None, first))
    until(lambda: house.log("trainer").count("GIVEN=to the trainer") == 2)
    status = house.home.status / "training_status.json"
    until(lambda: "worker_restarted" in {a["kind"] for a in orjson.loads(status.read_bytes())["active_alerts"]})
    (house.home.inbox / "a.jsonl").write_text('{"text": "a"}\n')
    until(lambda: events.events(db, kind="submitted"))
    with pytest.raises(Exception, match=f"supervisor is held by process {house.process.pid}"):
        house.home.lock("supervisor", "test")
    house.process.send_signal(signal.SIGTERM)
    assert house.process.wait(PATIENCE_S) == 0
    assert house.log("trainer").endswith("left in order\n")
    assert house.log("web").endswith("left in order\n")
    assert {child["pid"] for child in house.children().values()} == {None}
    exits = events.events(db, kind="worker_exit")
    assert [event.text.split(" after ")[0] for event in exits] == ["trainer was ended by SIGKILL"]


def test_children_go_when_the_supervisor_is_killed_outright(up: Callable[[str, str], Up]) -> None:
    house = up("serve", "serve")
    pids = [until(lambda: house.running("trainer")), until(lambda: house.running("web"))]
    house.process.kill()
    house.process.wait()
    until(lambda: not any(is_running(pid) for pid in pids))


def test_what_an_evaluator_that_is_no_more_was_at_goes_to_the_trainer(
    up: Callable[[str, str], Up], client: JobsClient
) -> None:
    job = client.enqueue("evaluate", {"step": 1, "weights": "w"})
    job_rows.begin(client.db, job.id)
    with client.db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE workflow_status SET status = 'PENDING', executor_id = 'evaluator-0'"))

    def status() -> str:
        with client.db.read() as connection:
            return str(connection.execute(sa.text("SELECT status FROM workflow_status")).scalar_one())

    up("serve", "serve")
    until(lambda: status() == "ENQUEUED")
    (adopted,) = until(lambda: events.events(client.db, kind="adopted"))
    assert adopted.text == "1 unfinished jobs were taken up again"


def test_a_crash_loop_gives_up_one_role_and_spares_the_other(up: Callable[[str, str], Up], db: Database) -> None:
    house = up("say:no model here,fail:7", "serve")
    until(lambda: house.children().get("trainer", {}).get("state") == "stopped")
    assert house.running("web")
    told = events.events(db, kind="crash_loop")
    assert len(told) == 1
    assert told[0].data["last_words"] == "no model here"
    assert house.log("trainer").count("no model here") == 10
    status = house.home.status / "training_status.json"
    alerts = until(lambda: [a for a in orjson.loads(status.read_bytes())["active_alerts"] if a["kind"] == "crash_loop"])
    assert "ended with exit code 7 again and again: no model here" in alerts[0]["text"]
    house.process.send_signal(signal.SIGUSR1)
    until(lambda: len(events.events(db, kind="crash_loop")) == 2)
    assert house.log("trainer").count("no model here") == 20, "tried again as often, and given up again"
    assert house.running("web")


def test_the_trainer_waits_for_an_orphan_or_stoke_train_to_let_go(
    up: Callable[[str, str], Up], home: Home, db: Database
) -> None:
    with home.lock("trainer", "stoke train"):
        house = up("serve", "serve")
        until(lambda: house.running("web"))
        until(lambda: events.events(db, kind="waiting"))
        assert house.running("trainer") is None
    until(lambda: house.running("trainer"))


def test_a_second_ctrl_c_does_not_wait(up: Callable[[str, str], Up]) -> None:
    house = up("say:hello,deaf", "serve")
    until(lambda: "hello" in house.log("trainer"))
    house.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        house.process.wait(1.0)

    def pressed_again() -> bool:  # again and again, to the very end of the process
        house.process.send_signal(signal.SIGINT)
        time.sleep(0.2)  # a busy machine must find time for more than the signals
        return house.process.poll() is not None

    until(pressed_again)
    assert house.process.returncode == 0


def test_the_module_refuses_a_second_supervisor_and_no_home(home: Home, tmp_path: Path) -> None:
    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stokehold.supervisor.main", "--home", str(folder)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False)

    with home.lock("supervisor", "stoke up"):
        second = run(home.root)
    assert second.returncode == 1
    assert f"held by process {os.getpid()} (stoke up)" in second.stderr
    nowhere = run(tmp_path / "nowhere")
    assert nowhere.returncode == 1
    assert "stoke init" in nowhere.stderr
