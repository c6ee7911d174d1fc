"""Wrong use and failures: one line `stoke: what · where · fix` on stderr, 2 or 1, and nothing on stdout."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from stokehold.cli import output
from stokehold.store.db import events
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.models.checkpoints import PassedOver
from tiny_world import facts, write_jsonl
from waiting import until

MakeHome = Callable[..., Home]

WRONG_USE = [
    (["trian"], "'train'"),
    (["train"], "stoke train --help"),
    (["train", "f", "--step", "3"], "--steps"),
    (["train", "f", "--steps", "soon"], "--steps"),
    (["train", "f", "--steps", "0"], "--steps"),
    (["submit", "f", "--priority", "urgent"], "--priority"),
    (["versions", "nonsense"], "nonsense"),
    (["generate", "syllo", "--level", "11"], "--level"),
    (["generate", "syllo", "--split", "test"], "train or holdout"),
    (["codec", "canonical", "music", "f"], "arithmetic"),
    (["events", "--follow", "--json"], "one of the two"),
    (["compare", "base", "latest", "--max-items", "9"], "--until-decided"),
    (["init", "somewhere", "--method", "magic"], "model.method"),
]

FAILED = [
    (["train", "gone.jsonl"], "no such file"),
    (["submit", "gone.jsonl"], "no such file"),
    (["validate", "gone.jsonl"], "no such file"),
    (["evaluate", "nothing"], "nothing goes by this name"),
    (["evaluate", "step:7"], "there is none yet"),
    (["evaluate", "base", "--suite", "gone"], "no such suite"),
    (["evaluate", "base"], "this home has no suite"),
    (["compare", "base", "v0001"], "no such "),
    (["versions", "create", "--from", "latest"], "there is no checkpoint yet"),
    (["versions", "verify"], "promote one first"),
    (["versions", "show", "v9"], "no such version"),
    (["versions", "delete", "v9"], "no such version"),
    (["promote", "latest"], "there is no checkpoint yet"),
    (["rollback"], "no earlier champion"),
    (["retry", "x"], "no such job"),
    (["cancel", "x"], "no such job"),
    (["stop"], "nothing is training"),
    (["skip"], "nothing is training"),
    (["down"], "not up"),
    (["logs", "gone"], "no log of this role"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG_USE, ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_wrong_use_exits_2(stoke: Any, arguments: list[str], said: str) -> None:
    ended = stoke(*arguments)
    assert ended.code == 2
    assert said in ended.error
    assert ended.error.count(" · ") >= 2


@pytest.mark.parametrize(("arguments", "said"), FAILED, ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_what_fails_exits_1(stoke: Any, make_home: MakeHome, arguments: list[str], said: str) -> None:
    ended = stoke(*arguments, home=make_home())
    assert ended.code == 1
    assert said in ended.error
    assert ended.error.count(" · ") >= 2


@pytest.mark.parametrize(
    "arguments",
    [["queue"], ["train", __file__], ["validate", __file__], ["evaluate"], ["status"], ["up"], ["doctor"]],
)
def test_without_a_home_the_way_to_one_is_told(stoke: Any, tmp_path: Path, arguments: list[str]) -> None:
    ended = stoke(*arguments, "--home", tmp_path)
    assert ended.code == 1
    assert "stoke init" in ended.error
    assert str(tmp_path) in ended.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "evaluate", "status", "preflight", "up"])
def test_an_unknown_key_exits_2_and_names_the_nearest(
    stoke: Any, make_home: MakeHome, tmp_path: Path, command: str
) -> None:
    home = make_home()
    home.config_path.write_text(home.config_path.read_text().replace("learning_rate", "learnig_rate"))
    arguments = [write_jsonl(tmp_path / "f.jsonl", facts(3))] if command == "train" else []
    ended = stoke(command, *arguments, home=home)
    assert ended.code == 2
    assert "training.learnig_rate" in ended.error
    assert "did you mean training.learning_rate?" in ended.error


def test_a_name_that_is_not_utf8_is_told_as_it_is(stoke: Any, make_home: MakeHome, tmp_path: Path) -> None:
    home = make_home()
    file = write_jsonl(tmp_path / os.fsdecode(b"\xff\xe9.jsonl"), facts(3))
    for command in ("submit", "train"):
        ended = stoke(command, file, home=home)
        assert ended.code == 1
        assert ended.error == f"stoke: the name is not UTF-8 · {tmp_path}/\\xff\\xe9.jsonl · rename it\n"
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    assert "/\\xff/f.jsonl" in stoke("submit", write_jsonl(folder / "f.jsonl", facts(3)), home=home).error
    assert stoke("queue", "--json", home=home).answer == []
    answer = stoke("validate", file, "--json", home=home).answer
    assert (answer["file"], answer["accepted"]) == (f"{tmp_path}/\\xff\\xe9.jsonl", 3)
    assert answer["tokens"]["rows"] == 3
    assert stoke("validate", file).out.startswith("\\xff\\xe9.jsonl: 3 good lines")


def test_scripts_get_such_names_wherever_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    document = {"found": [PassedOver(os.fsdecode(b"step\xff"), "damaged")], "none": None, "share": 0.5, "at": Path("é")}
    assert output.emit(document, as_json=True)
    answer = orjson.loads(capfd.readouterr().out)
    assert answer["found"] == [{"path": "step\\xff", "reason": "damaged"}]
    assert (answer["none"], answer["share"], answer["at"]) == (None, 0.5, "é")


def test_following_without_history_begins_now(make_home: MakeHome, environment: dict[str, str]) -> None:
    home = make_home()
    db = connect(home)
    events.record(db, "early", "before anybody listened")
    command = [sys.executable, "-m", "stokehold.cli.main", "events", "--limit", "0", "--follow", "--home", home.root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as listening:
        assert listening.stdout is not None
        os.set_blocking(listening.stdout.fileno(), False)

        def heard() -> bytes | None:
            events.record(db, "late", "while somebody listens")
            return listening.stdout and listening.stdout.readline()

        first = until(heard, home)
        listening.kill()
    assert b"late" in first


def test_an_unwritable_folder_is_the_systems_word_not_a_traceback(stoke: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = stoke("init", tmp_path / "file" / "home")
    assert ended.code == 1
    assert "not a directory" in ended.error


def test_a_fault_of_ours_is_one_line_and_keeps_its_traceback(
    stoke: Any, make_home: MakeHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def explode(*_arguments: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("stokehold.cli.places.payload", explode)
    ended = stoke("status", home=make_home())
    assert ended.code == 1
    assert "RuntimeError: unforeseen" in ended.error
    (log,) = tmp_path.glob("stoke-*.log")
    assert "Traceback" in log.read_text()
    assert str(log) in ended.error


def test_a_model_folder_without_a_tokenizer_is_refused_and_nothing_is_left(
    stoke: Any, tiny_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    ended = stoke("init", tmp_path / "home", "--model", folder)
    assert ended.code == 1
    assert "without a tokenizer" in ended.error
    assert not (tmp_path / "home").exists()


def test_a_hub_id_is_told_how_to_bring_the_folder(stoke: Any, tmp_path: Path) -> None:
    ended = stoke("init", tmp_path / "home", "--model", "Qwen/Qwen3-0.6B")
    assert ended.code == 1
    assert "hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B" in ended.error
    assert "stoke init DIR --model Qwen3-0.6B" in ended.error
    assert "hf download" not in stoke("init", tmp_path / "home", "--model", "/no/such/folder").error
    assert not (tmp_path / "home").exists()


def test_asking_for_nothing_prints_the_help(stoke: Any) -> None:
    for arguments, code in (([], 2), (["--help"], 0), (["versions"], 2), (["train", "--help"], 0)):
        ended = stoke(*arguments)
        assert ended.code == code
        assert "Usage: stoke" in ended.out
        assert ended.err == ""


def test_the_real_command_has_these_exit_codes_too(
    make_home: MakeHome, tmp_path: Path, environment: dict[str, str]
) -> None:
    home = make_home()
    stoke = Path(sys.executable).with_name("stoke")
    outcomes = {}
    for arguments in (["queue"], ["train", "gone.jsonl"], ["queue", "--nonsense"], ["evaluate", "v0009"]):
        command = [stoke, *arguments, "--home", home.root]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        outcomes[arguments[-1]] = (done.returncode, done.stderr.count("\n"), done.stderr[:7])
    errors = (1, "stoke: ")
    assert outcomes == {
        "queue": (0, 0, ""),
        "gone.jsonl": (1, *errors),
        "--nonsense": (2, *errors),
        "v0009": (1, *errors),
    }


def test_a_reader_that_leaves_early_hears_no_complaint(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "stokehold.cli.main", "generate", "arithmetic", "--count", "3000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    os.read(process.stdout.fileno(), 10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()
    process.stderr.close()
