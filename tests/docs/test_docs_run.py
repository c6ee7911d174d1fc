"""The tutorial is run as it is written: every command, in one shell, and every line of output that it shows."""

import os
import queue
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stokehold.core.config import describe, parse_config
from stokehold.store.home import Home
from tiny_world import facts, held_out_facts, write_jsonl
from waiting import PATIENCE_S, free_ports

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
PORTS = ("8080", "8090")
FENCE = re.compile(r"^(<!-- repeat -->\n)?```(console|toml|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REPEAT_S = 0.5
DONE = "@@done"


@dataclass(frozen=True)
class Block:
    """One fenced block; `repeat` runs it until its output is there."""

    kind: str
    text: str
    repeat: bool

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Each command with the lines of output shown below it."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, *shown = part.rstrip("\n").split("\n")
            yield command, shown


def blocks(text: str) -> list[Block]:
    return [Block(kind, body, bool(repeat)) for repeat, kind, body in FENCE.findall(text)]


def pattern(line: str) -> re.Pattern[str]:
    """Matches the line whatever stands for its `…`, and however wide its columns are."""
    words = [r".*".join(map(re.escape, word.split("…"))) for word in line.split()]
    return re.compile(r"\s*" + r"\s+".join(words) + r"\s*")


def missing(shown: list[str], output: list[str]) -> list[str]:
    """The shown lines that do not come, in this order, in the output."""
    left = iter(output)
    return [line for line in shown if not any(pattern(line).fullmatch(found) for found in left)]


class Shell:
    """One bash with its own jobs; what it and its background jobs print comes line by line."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-m"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def run(self, command: str) -> tuple[int, list[str]]:
        """Exit code and output of a command; that of a background job is still to come."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{{ {command}\n}} </dev/null\necho {DONE} $?\n")
        output: list[str] = []
        while True:
            line = self._line(command, output)
            if line.startswith(DONE):
                return int(line.split()[1]), output
            output.append(line)

    def wait_for(self, shown: list[str], output: list[str], command: str) -> None:
        """Reads on until everything shown has come."""
        while missing(shown, output):
            output.append(self._line(command, output))

    def close(self) -> None:
        self.run("stoke down; kill -9 $(jobs -p); true")
        self._process.kill()
        self._process.wait()

    def _line(self, command: str, output: list[str]) -> str:
        try:
            return self._lines.get(timeout=PATIENCE_S)
        except queue.Empty:
            return pytest.fail(f"`{command}` says no more than\n" + "\n".join(output))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))


def run_block(shell: Shell, block: Block) -> None:
    for command, shown in block.commands():
        end = time.monotonic() + PATIENCE_S
        while True:
            code, output = shell.run(command)
            if command.endswith("&"):
                shell.wait_for(shown, output, command)
            said = f"$ {command}\n" + "\n".join(output)
            assert code == 0, said
            if not (left := missing(shown, output)):
                break
            assert block.repeat, f"{left} did not come:\n{said}"
            assert time.monotonic() < end, f"{left} never came; at last:\n{said}"
            time.sleep(REPEAT_S)


def set_keys(home: Home, text: str) -> None:
    """What a reader does with the settings shown: puts them into `stoke.toml`."""
    tree = tomllib.loads(home.config_path.read_text())
    for table, keys in tomllib.loads(text).items():
        tree[table].update(keys)
    home.write_config(describe(parse_config(tree)))


@pytest.fixture
def shell(tmp_path: Path, tiny_base: Path, environment: dict[str, str]) -> Iterator[Shell]:
    (tmp_path / "my-model").symlink_to(tiny_base)
    write_jsonl(tmp_path / "facts.jsonl", facts(300))
    write_jsonl(tmp_path / "questions.jsonl", held_out_facts())
    write_jsonl(tmp_path / "more.jsonl", facts(600, seed=1))
    write_jsonl(tmp_path / "last.jsonl", facts(600, seed=2))
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    opened = Shell(tmp_path, {**environment, "PATH": path, "COLUMNS": "160", "LC_ALL": "C.UTF-8"})
    yield opened
    opened.close()


def test_the_tutorial_runs_as_it_is_written(shell: Shell, tmp_path: Path) -> None:
    text = TUTORIAL.read_text()
    for written, free in zip(PORTS, free_ports(len(PORTS)), strict=True):
        text = text.replace(written, str(free))
    for block in blocks(text):
        if block.kind == "console":
            run_block(shell, block)
        elif block.kind == "toml":
            set_keys(Home.open(tmp_path / "home"), block.text)
        else:
            (tmp_path / "ask.py").write_text(block.text)
            code, output = shell.run("python ask.py")
            assert code == 0, output
            assert re.fullmatch(r"v0001 \w+ is \w+", output[-1])


def test_every_command_of_the_tutorial_is_in_a_block_that_runs() -> None:
    text = TUTORIAL.read_text()
    run = {command for block in blocks(text) for command, _ in block.commands()}
    assert len(run) > 15
    written = set(re.findall(r"^\s*\$ (.+)$", text, re.MULTILINE))
    assert written == run
