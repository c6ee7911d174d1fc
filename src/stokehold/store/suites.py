"""Frozen suites `suites/NAME.jsonl`: named by their file, known by the hash of their content."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from blake3 import blake3

from stokehold.core.errors import InputError, NotFoundError
from stokehold.store.files import write_atomic
from stokehold.store.home import Home

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
SUFFIX = ".jsonl"


def suite_names(home: Home) -> list[str]:
    """Names of the suites in the home, sorted."""
    return sorted(path.stem for path in home.suites.glob(f"*{SUFFIX}") if NAME.fullmatch(path.stem))


def load_suite(home: Home, name: str) -> tuple[str, list[dict[str, Any]]]:
    """The content's BLAKE3 and its rows; `NotFoundError`, or `InputError` naming the line that is no JSON object."""
    path = _path(home, name)
    if not path.is_file():
        raise NotFoundError("no such suite", name, f"there are: {', '.join(suite_names(home)) or 'none yet'}")
    content = path.read_bytes()
    rows = [_row(line, f"{path}:{number}") for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    return blake3(content).hexdigest(), rows


def save_suite(home: Home, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes a suite whole; returns its hash."""
    content = b"".join(orjson.dumps(dict(row)) + b"\n" for row in rows)
    write_atomic(_path(home, name), content, disk=home.disk)
    return blake3(content).hexdigest()


def extend_suite(home: Home, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Adds rows whose `id` the suite does not have yet, so that doing it again changes nothing; returns its hash."""
    with home.lock(f"suite-{name}", "adding rows"):
        old = load_suite(home, name)[1] if name in suite_names(home) else []
        known = {row.get("id") for row in old}
        return save_suite(home, name, [*old, *(row for row in rows if row["id"] not in known)])


def _path(home: Home, name: str) -> Path:
    if not NAME.fullmatch(name):
        raise NotFoundError("not the name of a suite", name, "letters, digits, dot, dash and underscore")
    return home.suites / f"{name}{SUFFIX}"


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"not JSON: {error}", where, "correct the line") from error
    if not isinstance(row, dict):
        raise InputError("not a JSON object", where, "correct the line")
    return row
