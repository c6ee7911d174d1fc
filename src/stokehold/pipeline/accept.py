"""The lines of one part of a file: parsed, checked, firewalled and written as rows. Several parts, several processes.

A part is read by a process of its own where a file has more than one: `python -m stokehold.pipeline.accept`, which
loads nothing heavy, gets its files as open handles and everything else as JSON, and answers in JSON. What it makes does
not depend on where the file was cut. It ends with the process that started it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from stokehold.core.errors import StokeholdError
from stokehold.core.records import Rejection
from stokehold.data.firewall import Firewall, gold_of
from stokehold.data.formats import Parsed, parse_line
from stokehold.data.lines import EXCERPT_CHARS, Line, Part, cut, read_part
from stokehold.tasks.registry import identity_of
from stokehold.telemetry.cores import core_count

BLOCK_BYTES = 1024 * 1024
"""Rows are written and copied in pieces of this size."""

PART_BYTES = 8 * 1024 * 1024
"""A smaller part takes less time than the start of a process."""

MOST_PARTS = 8
LOOKS_AFTER_ROWS = 1024
COMMAND = ("-m", "stokehold.pipeline.accept")


@dataclass
class Accepted:
    """What is kept of a part: of an accepted row its id, its prompt's hash and where it begins in the file of rows, of
    the others their number and the first."""

    ids: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    rejected: int = 0
    first_rejection: Rejection | None = None
    notes: dict[str, int] = field(default_factory=dict)
    resembling: int = 0


@dataclass(frozen=True)
class Rules:
    """What lines are measured by; `name` is the file's, as its owner calls it."""

    name: str
    max_line_bytes: int
    firewall: Firewall


def accept_file(source: Path, rows: Path, rejected: Path, rules: Rules) -> list[Accepted]:
    """Reads `source` in parts, on every core; part n writes its rows to `<rows>-<n>` and its rejections likewise."""
    parts = cut(source, max(1, min(core_count(), MOST_PARTS, source.stat().st_size // PART_BYTES)))
    with ExitStack() as stack:
        handles = [
            (
                stack.enter_context(source.open("rb")),
                stack.enter_context(part_path(rows, n).open("wb", buffering=BLOCK_BYTES)),
                stack.enter_context(part_path(rejected, n).open("wb", buffering=BLOCK_BYTES)),
            )
            for n in range(len(parts))
        ]
        others = [
            stack.enter_context(_process(part, rules, [handle.fileno() for handle in files]))
            for part, files in zip(parts[1:], handles[1:], strict=True)
        ]
        first = accept_part(parts[0], rules, *handles[0])
        return [first, *map(_answer, others)]


def part_path(path: Path, number: int) -> Path:
    """Where part `number` (from 0) of a file to be is written."""
    return path.with_name(f"{path.name}-{number}")


def accept_part(
    part: Part, rules: Rules, source: BinaryIO, rows: BinaryIO, rejected: BinaryIO, parent: int | None = None
) -> Accepted:
    """Writes what the lines of a part become; with a `parent`, only while that process is ours."""
    kept = Accepted()
    place = 0
    for line in read_part(source, part, rules.max_line_bytes):
        outcome = line if isinstance(line, Rejection) else _accept(line, rules, kept)
        if isinstance(outcome, Rejection):
            kept.rejected += 1
            kept.first_rejection = kept.first_rejection or outcome
            rejected.write(orjson.dumps(outcome) + b"\n")
            continue
        kept.ids.append(outcome.id)
        kept.starts.append(place)
        place += rows.write(outcome.row)
        if parent is not None and not len(kept.ids) % LOOKS_AFTER_ROWS and os.getppid() != parent:
            raise StokeholdError("whoever wanted these rows is gone", rules.name)
    return kept


def _accept(line: Line, rules: Rules, kept: Accepted) -> Parsed | Rejection:
    """The row of this line, counted in `kept`, or why there is none."""
    parsed = parse_line(line, rules.name)
    if isinstance(parsed, Rejection):
        return parsed
    if parsed.note:
        kept.notes[parsed.note] = kept.notes.get(parsed.note, 0) + 1
    identity = identity_of(parsed.sample) if "family" in parsed.metadata else None
    found = rules.firewall.examine(parsed.turns, parsed.text, identity)
    if found.refusal is not None:
        return Rejection(line.number, found.refusal, gold_of(parsed.turns)[:EXCERPT_CHARS])
    kept.resembling += found.resembles
    kept.prompts.append(found.question)
    return parsed


@contextmanager
def _process(part: Part, rules: Rules, handles: Sequence[int]) -> Iterator["subprocess.Popen[bytes]"]:
    """A process at work on a part; killed when the block ends before it."""
    task = {
        "part": list(part),
        "rules": {"name": rules.name, "max_line_bytes": rules.max_line_bytes, "firewall": rules.firewall.to_dict()},
        "handles": handles,
        "parent": os.getpid(),
    }
    with subprocess.Popen(
        [sys.executable, *COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=handles
    ) as process:
        try:
            assert process.stdin is not None, "a pipe was asked for"
            process.stdin.write(orjson.dumps(task))
            process.stdin.close()
            yield process
        finally:
            process.kill()


def _answer(process: "subprocess.Popen[bytes]") -> Accepted:
    """Waits for what a process has to say; raises what it met."""
    assert process.stdout is not None, "a pipe was asked for"
    said = process.stdout.read()
    if (code := process.wait()) != 0 or not said:
        raise StokeholdError(f"a process that read lines ended with {code}", "", "see the worker's log; it is repeated")
    tree = orjson.loads(said)
    if "errno" in tree:
        raise OSError(tree["errno"], tree["error"])
    first = tree.pop("first_rejection")
    return Accepted(**tree, first_rejection=Rejection(**first) if first else None)


def _work(task: Mapping[str, Any]) -> Accepted | dict[str, Any]:
    rules = task["rules"]
    source, rows, rejected = task["handles"]
    try:
        with (
            os.fdopen(source, "rb") as reading,
            os.fdopen(rows, "wb", BLOCK_BYTES) as writing,
            os.fdopen(rejected, "wb", BLOCK_BYTES) as refusing,
        ):
            measured = Rules(rules["name"], rules["max_line_bytes"], Firewall.from_dict(rules["firewall"]))
            return accept_part(Part(*task["part"]), measured, reading, writing, refusing, task["parent"])
    except OSError as error:  # a full disk is the parent's to wait for
        return {"errno": error.errno, "error": str(error.strerror)}


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(_work(orjson.loads(sys.stdin.buffer.read()))))
