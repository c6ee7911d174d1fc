"""The commands that the pages on versions, retention, evolution, exports, nodes and backups name: parsed, and run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from safetensors.numpy import save_file
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.testing import CliRunner

from stokehold.cli.main import app
from stokehold.core.config import Config
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.models import versions
from stokehold.store.models.checkpoints import publish_checkpoint

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("versions", "retention", "evolution", "export", "nodes", "backups")
MENTION = re.compile(r"`stoke ([^`\n]+)`")
LINE = re.compile(r"^(?: {4})?stoke ([a-z].*)$", re.MULTILINE)
SAFE = ("versions list", "versions show", "versions diff", "versions verify", "versions pin", "versions restore", "gc")
"""What is run as it is written, in a home with three versions that are called as in the pages."""

NAMES = {"v7": "v1", "v0007": "v0001", "v9": "v2"}


def written(page: str) -> Iterator[str]:
    """Each command, what stands in brackets as if it were given."""
    text = (DOCS / f"{page}.md").read_text()
    for found in (*MENTION.findall(text), *LINE.findall(text)):
        yield re.sub(r"[\[\]]", "", found).partition("  ")[0].strip()


def parse(command: str) -> None:
    """TyperException for an option or an argument that is none; a name alone needs no arguments."""
    words = shlex.split(command)
    found = typer.main.get_command(app)
    while isinstance(found, TyperGroup):
        if not words:
            return
        name, *words = words
        assert name in found.commands, f"`stoke {command}`: there is no {name}"
        found = found.commands[name]
    if words:
        found.make_context(command, words)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_is_one(page: str) -> None:
    commands = list(written(page))
    assert len(commands) >= 3
    for command in commands:
        try:
            parse(command)
        except TyperException as error:
            pytest.fail(f"`stoke {command}`: {error}")


@pytest.mark.parametrize("wrong", ["versions show v7 --nope", "versions nothing v7", "gc --what", "node join a b"])
def test_a_command_that_is_none_would_be_seen(wrong: str) -> None:
    with pytest.raises((TyperException, AssertionError)):
        parse(wrong)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home.create(tmp_path / "home", Config())
    db = connect(made)
    for step in (1, 2, 3):

        def write(folder: Path, step: int = step) -> None:
            save_file({"layers.0.weight": np.full((8, 8), step, np.float32)}, folder / "model.safetensors")
            (folder / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')

        versions.create(made, db, Path(publish_checkpoint(made, step, write, {}).path))
    db.close()
    return made


def test_the_pages_on_versions_and_retention_run_as_they_are_written(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKE_HOME", str(home.root))
    commands = [c for page in ("versions", "retention") for c in written(page) if c.startswith(SAFE) and c != "gc"]
    commands = [c for c in commands if len(c.split()) > 2 or c.startswith(("gc", "versions list"))]
    assert len(commands) > 8
    lifecycle = [
        "versions unpin v7",
        "versions delete v7",
        "versions list",
        "versions undelete v7",
        "versions verify --all",
    ]
    for command in [*commands, *lifecycle, "evolution", "evolution --json", "gc"]:
        words = [NAMES.get(word, word) for word in shlex.split(command)]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"`stoke {command}`: {done.output} {done.exception!r}"
    assert [version.name for version in versions.list_versions(home)] == ["v0001", "v0002", "v0003"]
