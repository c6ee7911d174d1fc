"""`stoke preflight`: each check made to fail by the real thing, and the table as people see it."""

import fcntl
import os
import pty
import resource
import shutil
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from stokehold.core.config import Config
from stokehold.core.memory import ModelShape
from stokehold.core.records import Dataset
from stokehold.store import datasets
from stokehold.store.db.database import connect
from stokehold.store.files import utc_now
from stokehold.store.home import Home
from stokehold.store.models import checkpoints, versions
from stokehold.store.models.weights import read_shape
from stokehold.supervisor import checks_home, checks_machine, checks_work, devices
from stokehold.supervisor.checks import Check, Mark
from stokehold.supervisor.devices import Room, main_memory
from stokehold.telemetry.readings import DeviceReadings, Limit, Limits, LimitSource, Metric, measured
from tiny_world import held_out_facts, safetensors, write_jsonl

MakeHome = Callable[..., Home]
PARTS = ["machine", "home", "model", "work"]


def shape(home: Home) -> ModelShape:
    return read_shape(home.root / home.config().model.base)


def card(busy: float, used_gb: float, temperature_c: float) -> DeviceReadings:
    values = {
        Metric.UTILISATION_PCT: busy,
        Metric.MEMORY_USED_GB: used_gb,
        Metric.MEMORY_TOTAL_GB: 24.0,
        Metric.TEMPERATURE_C: temperature_c,
    }
    limits = Limits(Limit(300.0, LimitSource.DEVICE), Limit(83.0, LimitSource.DEVICE))
    return DeviceReadings("gpu0", "gpu", {name: measured(value) for name, value in values.items()}, limits)


def says(check: Check, mark: Mark, *words: str) -> None:
    assert check.mark is mark, check
    assert (check.fix == "") == (mark is Mark.GOOD)
    for word in words:
        assert word in f"{check.found} → {check.fix}"


# The machine


def test_code_names_its_commit_and_what_changed_since(tmp_path: Path) -> None:
    says(checks_machine.code(tmp_path), Mark.GOOD, "stokehold ")

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *arguments], check=True)

    git("init", "-q")
    says(checks_machine.code(tmp_path), Mark.LOOK, "of no commit")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    says(checks_machine.code(tmp_path), Mark.GOOD, " at ")
    (tmp_path / "file").write_text("two")
    says(checks_machine.code(tmp_path), Mark.LOOK, "1 file changed since", "commit")


def test_a_missing_package_is_named() -> None:
    says(checks_machine.packages(Config()), Mark.GOOD, "torch ")
    says(checks_machine.packages(Config(), ("torch", "no-such-package")), Mark.BAD, "no-such-package", "pip install")


def test_more_threads_than_cores_and_than_the_container_gets(make_home: MakeHome, tmp_path: Path) -> None:
    says(checks_machine.threads(make_home().config()), Mark.GOOD, "1 on ")
    says(checks_machine.threads(make_home(training={"threads": 4096}).config()), Mark.LOOK, "training.threads = ")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    says(checks_machine.threads(make_home().config(), tmp_path), Mark.LOOK, "0.5 cores")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    says(checks_machine.threads(make_home().config(), tmp_path), Mark.GOOD)


def test_a_program_that_takes_the_cores_is_named(make_home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_machine, "BUSY_SHARE", 0.01)  # a container may get few of the cores it sees
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        says(checks_machine.load(make_home()), Mark.LOOK, "of the cores", "process ")
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_a_card_that_others_use(make_home: MakeHome) -> None:
    config = make_home(devices={"trainer": "cuda:0"}).config()
    idle, busy = (checks_machine.gpu_load(config, {0: one}) for one in (card(3, 0.4, 40), card(97, 20, 70)))
    assert idle is not None
    assert busy is not None
    says(idle, Mark.GOOD, "3 % busy")
    says(busy, Mark.LOOK, "97 % busy", "20.0 GB")
    assert checks_machine.gpu_load(make_home().config(), {0: card(97, 20, 70)}) is None


@pytest.mark.parametrize(("limit", "mark"), [(128, Mark.BAD), (512, Mark.LOOK), (1024, Mark.GOOD)])
def test_few_open_files(limit: int, mark: Mark) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        found = checks_machine.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    says(found, mark, f"{limit:,}", *(() if mark is Mark.GOOD else ("ulimit -n",)))


def test_a_clock_that_stands_before_what_was_written(make_home: MakeHome) -> None:
    home = make_home()
    assert checks_machine.clock(home).mark is not Mark.BAD
    checkpoints.publish_checkpoint(home, 1, lambda stage: None, {})
    yesterday = datetime.now(UTC) - timedelta(days=1)
    says(checks_machine.clock(home, yesterday), Mark.BAD, "was written to", "timedatectl")


def test_heat(make_home: MakeHome) -> None:
    config = make_home(telemetry={"cpu_limit_c": 1000}).config()
    for degrees, mark in ((40, Mark.GOOD), (78, Mark.LOOK), (90, Mark.BAD)):
        says(checks_machine.temperature(config, {0: card(0, 0, degrees)}), mark, f"gpu0 {degrees}", "limit 83")


def test_a_port_that_another_program_has(make_home: MakeHome) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = make_home(web={"port": taken.getsockname()[1]}).config()
        says(checks_machine.port(config, held=False), Mark.BAD, "web.port", "in use")
        says(checks_machine.port(config, held=True), Mark.GOOD)
    says(checks_machine.port(config, held=False), Mark.GOOD)


def test_swap_and_power_say_what_there_is() -> None:
    assert checks_machine.swap().what == "swap"
    assert checks_machine.power().mark in (Mark.GOOD, Mark.LOOK)


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    whole = main_memory(tmp_path)
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**29}\n")
    assert main_memory(tmp_path) == Room("cpu", 2**29, 2**30)
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory(tmp_path).total == whole.total


def test_a_card_is_found_by_the_number_this_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    two = {0: card(0, 0, 40), 1: card(0, 4, 40)}
    assert devices.room("cuda:1", two) == Room("cuda:1", 20_000_000_000, 24_000_000_000)
    assert devices.room("cuda:1", {0: card(0, 0, 40)}) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert devices.room("cuda:1", two) == Room("cuda:1", 24_000_000_000, 24_000_000_000)


# The home


def test_a_folder_that_takes_no_file(make_home: MakeHome) -> None:
    home = make_home()
    says(checks_home.folders(home), Mark.GOOD, "writable")
    before = sorted(home.root.rglob("*"))
    checks_home.folders(home)
    assert sorted(home.root.rglob("*")) == before
    home.checkpoints.rmdir()
    home.checkpoints.symlink_to("/proc/self")  # where nobody, not even root, makes a file
    says(checks_home.folders(home), Mark.BAD, str(home.checkpoints), "make it writable")


def test_a_network_file_system(make_home: MakeHome) -> None:
    home = make_home()
    says(checks_home.file_system(home), Mark.GOOD)
    mounts = f"/dev/sda / ext4 rw 0 0\nserver:/export {home.root.parent} nfs4 rw 0 0\n"
    says(checks_home.file_system(home, mounts), Mark.BAD, "nfs4", "local disk")
    elsewhere = make_home(store={"database_url": "postgresql://server/db"})
    says(checks_home.file_system(elsewhere, mounts), Mark.LOOK, "nfs4")


def test_checkpoints_that_will_not_fit(make_home: MakeHome) -> None:
    home = make_home()
    says(checks_home.disk(home, home.config(), shape(home)), Mark.GOOD, "3 are kept")
    many = make_home(store={"keep_checkpoints": 10**9})
    says(checks_home.disk(many, many.config(), shape(many)), Mark.LOOK, "store.keep_checkpoints")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting needs root")
def test_a_full_disk(make_home: MakeHome, tmp_path: Path) -> None:
    home = make_home()
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        there = Home.create(small / "home", home.config())
        (small / "filling").write_bytes(bytes(1_500_000))
        says(checks_home.disk(there, home.config(), shape(home)), Mark.BAD, "not one more checkpoint fits")
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_damaged_database(make_home: MakeHome) -> None:
    home = make_home()
    says(checks_home.database(home), Mark.GOOD, "first use")
    db = connect(home)
    db.close()
    says(checks_home.database(home), Mark.GOOD, "whole")
    page = bytearray(home.database.read_bytes())
    page[4096:8192] = os.urandom(4096)
    home.database.write_bytes(page)
    says(checks_home.database(home), Mark.BAD, "stoke.db", "backup")
    home.database.write_bytes(b"not a database, whatever its name is" * 200)
    says(checks_home.database(home), Mark.BAD, "not a database")


def test_a_lock_that_is_held_and_one_that_was_left(make_home: MakeHome) -> None:
    home = make_home()
    with home.lock("trainer", "training"):
        says(checks_home.processes(home), Mark.LOOK, f"process {os.getpid()}", "stoke down")
    assert (home.status / "trainer.lock").exists()
    says(checks_home.processes(home), Mark.GOOD)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    facts = {"pid": int(gone.stdout), "state": "training", "step": 7, "updated": utc_now()}
    (home.status / "trainer.json").write_bytes(orjson.dumps(facts))
    says(checks_home.processes(home), Mark.LOOK, "went while training", "stoke up")


def test_a_worker_that_outlived_its_lock(make_home: MakeHome) -> None:
    home = make_home()
    code = "print('here', flush=True); import time; time.sleep(60)"
    command = [sys.executable, "-c", code, "stokehold.pipeline.worker", "--home", str(home.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        says(checks_home.processes(home), Mark.LOOK, f"kill {process.pid}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# The model


def test_a_base_that_is_missing_or_damaged(make_home: MakeHome) -> None:
    home = make_home()
    says(checks_work.base(home, home.config()), Mark.GOOD, "Qwen3ForCausalLM")
    weights = home.root / home.config().model.base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    says(checks_work.base(home, home.config()), Mark.BAD, "model.safetensors", "content changed")
    shutil.rmtree(weights.parent)
    says(checks_work.base(home, home.config()), Mark.BAD, "missing", "stoke init")


@pytest.mark.parametrize(
    ("tables", "mark", "said"),
    [
        ({}, Mark.GOOD, "full in float32"),
        ({"model": {"method": "qlora"}}, Mark.BAD, "CUDA only"),
        ({"model": {"method": "qlora"}, "devices": {"trainer": "cuda:0"}}, Mark.GOOD, "qlora"),
        ({"training": {"optimizer": "adamw_8bit"}}, Mark.BAD, "needs CUDA"),
        ({"training": {"schedule": "wsd"}}, Mark.BAD, "training.total_steps"),
        ({"data": {"max_length": 4096}}, Mark.BAD, "data.max_length = 256"),
        ({"training": {"micro_batch_tokens": 64}}, Mark.LOOK, "training.micro_batch_tokens"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(make_home: MakeHome, tables: Any, mark: Mark, said: str) -> None:
    home = make_home(**tables)
    model = {**home.config().model.model_dump(), **tables.get("model", {})}
    config = home.config().model_copy(update={"model": home.config().model.model_validate(model)})
    says(checks_work.settings(home, config, shape(make_home())), mark, said)


def test_a_device_that_is_not_there_or_is_not_used(make_home: MakeHome) -> None:
    config = make_home().config()
    room = Room("cpu", 2**34, 2**35)
    says(checks_work.device(config, {}, room), Mark.GOOD, "cpu")
    says(checks_work.device(config, {0: card(0, 0, 40)}, room), Mark.LOOK, "cuda:0")
    wanted = make_home(devices={"trainer": "cuda:3"}).config()
    says(checks_work.device(wanted, {0: card(0, 0, 40)}, None), Mark.BAD, "cuda:3 is not there", "shows cuda:0")


@pytest.mark.parametrize(
    ("trainer", "evaluator", "mark", "said"),
    [
        ("cpu", "share", Mark.GOOD, "the trainer itself"),
        ("cpu", "cpu", Mark.GOOD, "a process of its own"),
        ("cpu", "node", Mark.GOOD, "stoke node judge"),
        ("cuda:0", "cuda:1", Mark.GOOD, "cuda:1"),
        ("cuda:0", "cuda:2", Mark.BAD, "cuda:2 is not there → this machine shows cuda:0, cuda:1; set"),
        ("cuda:0", "cuda", Mark.LOOK, "the memory of both"),
        ("cuda:1", "cuda:1", Mark.LOOK, "the memory of both"),
    ],
)
def test_an_evaluator_that_is_not_there_or_shares_its_card(
    make_home: MakeHome, trainer: str, evaluator: str, mark: Mark, said: str
) -> None:
    config = make_home(devices={"trainer": trainer, "evaluator": evaluator}).config()
    says(checks_work.evaluator(config, {0: card(0, 0, 40), 1: card(0, 0, 40)}), mark, said)


@pytest.mark.parametrize(("evaluator", "fix"), [("cpu", '"cuda:N" or "share"'), ("cuda:0", 'evaluator = "share"')])
def test_four_bit_weights_are_judged_on_cuda_only(make_home: MakeHome, evaluator: str, fix: str) -> None:
    config = make_home(devices={"trainer": "cuda:1", "evaluator": evaluator}).config()
    four_bit = config.model_copy(update={"model": config.model.model_copy(update={"method": "qlora"})})
    says(checks_work.evaluator(four_bit, {1: card(0, 0, 40)}), Mark.BAD, fix)


def test_an_evaluator_counts_where_it_judges(make_home: MakeHome) -> None:
    model = ModelShape(10**9, (), 1, 64, 100, 64, 256)
    card0, card1 = Room("cuda:0", 20 * 2**30, 24 * 2**30), Room("cuda:1", 5 * 2**30, 24 * 2**30)

    def rows(trainer: str, evaluator: str, there: Room, apart: Room | None) -> dict[str, Check]:
        home = make_home(devices={"trainer": trainer, "evaluator": evaluator}, evaluation={"max_new_tokens": 100})
        found = checks_work.memory(home, home.config(), model, there, apart)
        return {check.what: check for check in found}

    says(rows("cuda:0", "cuda:1", card0, card1)["evaluation"], Mark.GOOD, "on cuda:1")
    shared = rows("cuda:0", "cuda:0", card0, card0)
    says(shared["memory"], Mark.GOOD)
    says(shared["evaluation"], Mark.LOOK, "GiB of the trainer", "of 20.0 GiB free")
    says(rows("cuda:0", "cpu", card0, Room("cpu", 2**40, 2**40))["evaluation"], Mark.GOOD, "beside", "on cpu")
    says(rows("cuda:0", "cpu", card0, Room("cpu", 2**34, 2**34))["evaluation"], Mark.LOOK, "of 16.0 GiB free")
    for evaluator in ("node", "cuda:1"):
        assert "evaluation" not in rows("cuda:0", evaluator, card0, None)


def test_an_evaluator_of_its_own_is_told_how_many_answers_fit(make_home: MakeHome) -> None:
    model = ModelShape(10**6, (), 4, 64, 100, 256, 256)

    def judged(answers: int) -> Check:
        home = make_home(devices={"evaluator": "cuda:0"}, evaluation={"batch_size": answers, "max_new_tokens": 100})
        found = checks_work.memory(home, home.config(), model, Room("cpu", 2**40, 2**40), Room("cuda:0", 2**30, 2**30))
        return next(check for check in found if check.what == "evaluation")

    says(judged(10**6), Mark.LOOK, "evaluation.batch_size = ")
    most = int(judged(10**6).fix.rpartition(" ")[2])
    assert judged(most).mark is Mark.GOOD
    assert judged(most + 1).mark is Mark.LOOK


def test_what_does_not_fit_comes_with_what_would(make_home: MakeHome) -> None:
    home = make_home(training={"micro_batch_tokens": 10**6})
    config = home.config()
    free = 2 * 2**30
    training, _ = checks_work.memory(home, config, shape(home), Room("cpu", free, free))
    says(training, Mark.BAD, "training.micro_batch_tokens = ")
    tokens = int(training.fix.rpartition(" ")[2])
    smaller = make_home(training={"micro_batch_tokens": tokens})
    fitting, _ = checks_work.memory(smaller, smaller.config(), shape(smaller), Room("cpu", free, free))
    says(fitting, Mark.GOOD, "about ")
    nothing = checks_work.memory(home, config, shape(home), Room("cpu", 2**20, 2**20))[0]
    says(nothing, Mark.BAD, "take a smaller model")
    answers = make_home(evaluation={"batch_size": 10**6, "max_new_tokens": 200})
    _, evaluation = checks_work.memory(answers, answers.config(), shape(answers), Room("cpu", free, free))
    says(evaluation, Mark.LOOK, "evaluation.batch_size = ")


def test_main_memory_is_judged_beside_the_card(make_home: MakeHome) -> None:
    home = make_home(devices={"trainer": "cuda:0"})
    giant = ModelShape(10**13, (), 1, 64, 100, 64, 256)
    found = checks_work.memory(home, home.config(), giant, Room("cuda:0", 2**60, 2**60))
    assert [check.mark for check in found] == [Mark.GOOD, Mark.GOOD, Mark.BAD]


# The work


def test_data_is_counted_and_its_rows_are_there(make_home: MakeHome) -> None:
    home = make_home()
    says(checks_work.data(home), Mark.LOOK, str(home.inbox))
    (home.inbox / "next.jsonl").write_text("{}\n")
    says(checks_work.data(home), Mark.GOOD, "1 file waiting")
    counts = {"bytes": 9, "accepted": 1200, "held_out": 20, "rejected": 3}
    record = Dataset(id="d1", content_hash="0", file="facts.jsonl", created=utc_now(), **counts)
    datasets.save_dataset(home, record, lambda stage: (stage / "rows.jsonl").write_text("{}\n") and None)
    says(checks_work.data(home), Mark.GOOD, "1 file, 1,200 rows (20 held out), 3 lines refused", "facts.jsonl")
    refused = Dataset(id="d2", content_hash="1", file="bad.jsonl", created=utc_now(), **counts | {"rejected": 9000})
    datasets.save_dataset(home, refused, lambda stage: (stage / "rows.jsonl").write_text("{}\n") and None)
    says(checks_work.data(home), Mark.LOOK, "stoke validate")
    (home.datasets / "d1" / "rows.jsonl").unlink()
    says(checks_work.data(home), Mark.BAD, "datasets/d1")


def test_suites_that_are_missing_empty_or_not_json(make_home: MakeHome) -> None:
    home = make_home()
    says(checks_work.judged_on(home, home.config()), Mark.LOOK, "none yet")
    write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:8])
    says(checks_work.judged_on(home, home.config()), Mark.GOOD, "facts (8)")
    (home.suites / "empty.jsonl").write_text("")
    says(checks_work.judged_on(home, home.config()), Mark.LOOK, "empty: no item")
    (home.suites / "empty.jsonl").write_text("nonsense\n")
    says(checks_work.judged_on(home, home.config()), Mark.BAD, "empty.jsonl:1")
    named = make_home(evaluation={"suites": ["gone"]})
    says(checks_work.judged_on(named, named.config()), Mark.BAD, "no such suite")


def test_a_baseline_is_captured_by_evaluating_the_base(stoke: Any, make_home: MakeHome) -> None:
    home = make_home()
    db = connect(home)
    says(checks_work.baseline(home, db, home.config()), Mark.LOOK, "not captured")
    write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:4])
    says(checks_work.baseline(home, db, home.config()), Mark.LOOK, "not captured: facts", "stoke evaluate base")
    assert stoke("evaluate", "base", home=home).code == 0
    says(checks_work.baseline(home, db, home.config()), Mark.GOOD, "captured 2")
    db.close()


def test_a_checkpoint_and_a_champion_that_were_damaged(make_home: MakeHome) -> None:
    home = make_home()
    db = connect(home)
    says(checks_work.newest_checkpoint(home, db), Mark.GOOD, "none yet")
    says(checks_work.champion(home, db), Mark.GOOD, "none yet")
    base = home.config().model.base
    weights = safetensors(b"x" * 10)

    def write(stage: Path) -> None:
        (stage / "model.safetensors").write_bytes(weights)

    saved = checkpoints.publish_checkpoint(home, 7, write, {"base": base})
    made = versions.create(home, db, Path(saved.path))
    assert orjson.loads((Path(made.path) / "manifest.json").read_bytes())["base"] == base
    of_base = versions.create(home, db, home.root / home.config().model.base)
    assert orjson.loads((Path(of_base.path) / "manifest.json").read_bytes())["base"] == base
    versions.set_alias(home, db, "champion", made.name)
    says(checks_work.newest_checkpoint(home, db), Mark.GOOD, "step_000000007 verifies")
    says(checks_work.champion(home, db), Mark.GOOD, "v0001 verifies")
    for folder in (saved.path, made.path):
        (Path(folder) / "model.safetensors").unlink()
        (Path(folder) / "model.safetensors").write_bytes(safetensors(b"y" * 10))
    says(checks_work.newest_checkpoint(home, db), Mark.LOOK, "step_000000007 is passed over", "stoke doctor")
    says(checks_work.champion(home, db), Mark.BAD, "content changed", "stoke rollback")
    shutil.rmtree(made.path)
    says(checks_work.champion(home, db), Mark.BAD, "no such version")
    db.close()


# The command


def test_every_row_has_its_part_and_only_bad_ones_exit_1(stoke: Any, make_home: MakeHome) -> None:
    home = make_home()
    rows = stoke("preflight", "--json", home=home).answer
    assert list(dict.fromkeys(row["part"] for row in rows)) == PARTS
    assert len({row["what"] for row in rows}) == len(rows) >= 24
    assert {row["mark"] for row in rows} <= {"✓", "⚠"}
    assert all(bool(row["fix"]) == (row["mark"] != "✓") for row in rows)
    home.database.unlink()
    home.database.write_bytes(b"x" * 9000)
    broken = stoke("preflight", "--json", home=home)
    assert broken.code == 1
    assert [row["what"] for row in orjson.loads(broken.out) if row["mark"] == "✗"] == ["database"]


def test_a_damaged_tokenizer_is_told_with_its_base(stoke: Any, make_home: MakeHome) -> None:
    home = make_home()
    (home.root / home.config().model.base / "tokenizer.json").write_text("{")
    ended = stoke("preflight", "--json", home=home)
    assert ended.code == 1
    assert [row["what"] for row in orjson.loads(ended.out) if row["mark"] == "✗"] == ["base model"]


@contextmanager
def terminal(columns: int) -> Iterator[tuple[int, int]]:
    """Both ends of a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    try:
        yield ours, theirs
    finally:
        os.close(ours)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_stays_within_the_terminal(make_home: MakeHome, environment: dict[str, str], columns: int) -> None:
    home = make_home(data={"max_length": 4096})
    command = [Path(sys.executable).with_name("stoke"), "preflight", "--home", home.root]
    with terminal(columns) as (ours, theirs):
        kept = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=kept | {"TERM": "dumb"})
        os.close(theirs)
        written = b""
        while chunk := _read(ours):
            written += chunk
    assert process.wait() == 1
    lines = written.decode().replace("\r\n", "\n").splitlines()[1:]
    assert max(map(len, lines)) <= columns
    assert any(line.startswith("✗  settings") for line in lines)
    assert any(line.strip() == "→ set data.max_length = 256" for line in lines)
    assert lines[-1].startswith("1 ✗")


def _read(handle: int) -> bytes:
    """What came; nothing when the other end is closed, which Linux calls an error."""
    try:
        return os.read(handle, 4096)
    except OSError:
        return b""
