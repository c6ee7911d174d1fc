"""Every command of docs/backups.md, in the order of the page, and what it leaves behind."""

import json
import re
import shlex
from pathlib import Path

import pytest

from stokehold.cli.main import main
from stokehold.core.config import Config
from stokehold.core.records import Step
from stokehold.store.db import control, journal
from stokehold.store.db.database import connect
from stokehold.store.home import Home

PAGE = Path(__file__).parents[2] / "docs" / "backups.md"
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.M | re.S) for line in block.splitlines()
]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.create(tmp_path / "home", Config())
    db = connect(home)
    facts = {"components": {}, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 1, "loss_tokens": 1, "examples": 1}
    more = {"seconds": 0.1, "joules": None, "fingerprint": "f", "created": "2026-01-01T00:00:00Z"}
    journal.append(db, Step(step=1, branch=0, job="train-a", dataset="d", loss=1.0, **facts, **more))
    db.close()
    return home


def test_the_page_is_true(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) == 8
    places = {"HOME": home.root, "PLACE": tmp_path / "place", "NEW": tmp_path / "new"}
    for command in COMMANDS:
        if "--rebuild" in command:
            home.database.unlink()
        words = [str(places.get(word, word)) for word in shlex.split(command)]
        main(words[1:])
        said = capsys.readouterr().out
        assert said, command
        assert "DAMAGED" not in said
    there = connect(Home.open(tmp_path / "new"))
    assert control.current(there) == "pause"
    assert [step.step for step in journal.steps(connect(home))] == [1], "the snapshot's copy had it"


def test_json_says_what_travelled(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> dict[str, object]:
        main(["backup", *words, "--home", str(home.root), "--json"])
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    first = run("run", "--to", str(tmp_path / "place"))
    assert isinstance(first["copied"], dict)
    assert first["copied"]["skipped_objects"] == 0
    assert run("run")["copied"] is None, "no place is set"
    listed = run("list", "--at", str(tmp_path / "place"))
    assert isinstance(listed["snapshots"], list)
    assert len(listed["snapshots"]) == 1
    assert run("verify")["ok"] is True


def test_damage_exits_1_and_wrong_use_2(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["backup", "run", "--home", str(home.root)])
    (copy,) = home.backups.glob("*/stoke.db")
    copy.write_bytes(b"no")
    with pytest.raises(SystemExit, match="1"):
        main(["backup", "verify", "--home", str(home.root)])
    assert "DAMAGED" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["backup", "restore", "--home", str(tmp_path / "new")])
    assert "--from" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        main(["doctor", "--rebuild", "--home", str(home.root)])
    assert "healthy" in capsys.readouterr().err
