"""Frozen suites: `suites/NAME.jsonl`, named by their file, known by the hash of their content.

A suite whose file changed is another suite. What was judged is kept under its hash in `suites/judged/`, so that an old
evaluation's items can be found however the file went on; `suites/builtin/` holds the built-in suites that were asked
for, frozen on first use. Neither folder is a suite that a home is judged on by itself.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from blake3 import blake3

from stokehold.core.errors import InputError, IntegrityError, NotFoundError
from stokehold.store.db.database import Database
from stokehold.store.files import HASH, sweep, write_atomic
from stokehold.store.home import Home
from stokehold.store.judged import evaluations

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
SUFFIX = ".jsonl"
BUILTIN = re.compile(r"(?:([a-z]+)_)?(easy|medium|hard)_(50|100|200)")
JUDGED = "judged"


@dataclass(frozen=True, slots=True)
class Builtin:
    """What the name of a built-in suite says."""

    family: str
    hardness: str
    count: int

    @property
    def name(self) -> str:
        """In full, the family too."""
        return f"{self.family}_{self.hardness}_{self.count}"


def suite_names(home: Home) -> list[str]:
    """Names of the suites in the home, sorted; built-in ones are not among them."""
    return sorted(path.stem for path in home.suites.glob(f"*{SUFFIX}") if NAME.fullmatch(path.stem))


def builtin_of(home: Home, name: str) -> Builtin | None:
    """The built-in suite of that name: `easy_50` is of `improvement.family`, `arithmetic_easy_50` of arithmetic."""
    found = BUILTIN.fullmatch(name)
    if found is None or _path(home, name).exists():
        return None
    return Builtin(found[1] or home.config().improvement.family, found[2], int(found[3]))


def frozen_builtins(home: Home) -> list[str]:
    """Names in full of the built-in suites that were asked for in this home, sorted."""
    return sorted(path.stem for path in _builtin_folder(home).glob(f"*{SUFFIX}"))


def read_suite_file(home: Home, name: str) -> bytes:
    """The content of a suite, built-in ones as they were frozen; `NotFoundError` where there is none yet."""
    path = _path(home, name)
    if (builtin := builtin_of(home, name)) is not None:
        path = _builtin_folder(home) / f"{builtin.name}{SUFFIX}"
    if not path.is_file():
        there = ", ".join(suite_names(home)) or "none yet"
        raise NotFoundError("no such suite", name, f"there are: {there}; built in: easy_50 to hard_200")
    return path.read_bytes()


def load_suite(home: Home, name: str) -> tuple[str, list[dict[str, Any]]]:
    """The content's BLAKE3 and its rows; `NotFoundError`, or `InputError` naming the line that is no JSON object."""
    content = read_suite_file(home, name)
    where = f"{_path(home, name)}"
    rows = [_row(line, f"{where}:{number}") for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    return hash_of(content), rows


def count_items(home: Home, name: str) -> int:
    """Rows of a suite, of a built-in one also before it was made; errors as `load_suite`."""
    builtin = builtin_of(home, name)
    return builtin.count if builtin else len(load_suite(home, name)[1])


def hash_of(content: bytes) -> str:
    """What a suite of this content is known by: BLAKE3 in hex."""
    return blake3(content).hexdigest()


def save_suite(home: Home, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes a suite whole; returns its hash."""
    content = _content(rows)
    write_atomic(_path(home, name), content, disk=home.disk)
    return hash_of(content)


def freeze_builtin(home: Home, builtin: Builtin, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a built-in suite on its first use; one that is there already stays as it is."""
    path = _builtin_folder(home) / f"{builtin.name}{SUFFIX}"
    if not path.exists():
        _write_inside(home, path, _content(rows))


def keep_version(home: Home, content: bytes) -> str:
    """Keeps a suite as it is judged, for as long as its evaluations' answers; returns its hash."""
    digest = hash_of(content)
    path = kept_path(home, digest)
    if not path.exists():
        _write_inside(home, path, content)
    return digest


def kept_path(home: Home, digest: str) -> Path:
    """Where the content of this hash is or would be kept; `NotFoundError` for what is no hash."""
    if not HASH.fullmatch(digest):
        raise NotFoundError("not the hash of a suite", digest, "64 hexadecimal characters")
    return home.suites / JUDGED / f"{digest}{SUFFIX}"


def read_version(home: Home, digest: str) -> bytes:
    """A suite as it once was judged; NotFoundError where it was not kept, IntegrityError where it is not that one."""
    path = kept_path(home, digest)
    if not path.is_file():
        raise NotFoundError("no suite of this content was kept", digest, "its evaluations are old, or of another home")
    content = path.read_bytes()
    if hash_of(content) != digest:
        raise IntegrityError("a kept suite was changed", str(path), "restore it from a backup, or remove it")
    return content


def kept_versions(home: Home) -> list[Path]:
    """Files of the suites that were judged, each named by its hash."""
    return sorted((home.suites / JUDGED).glob(f"*{SUFFIX}"))


def history(home: Home, db: Database) -> dict[str, dict[str, str]]:
    """By name, the contents that were judged, oldest first: hash to when that was for the first time."""
    found: dict[str, dict[str, str]] = {}
    for evaluation in reversed(evaluations.list_evaluations(home, db)):
        for name, digest in evaluation.suite_hashes.items():
            if digest:
                found.setdefault(name, {}).setdefault(digest, evaluation.created)
    return found


def _write_inside(home: Home, path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    sweep(path.parent, home.disk)  # what a kill left: nobody else looks in here
    write_atomic(path, content, disk=home.disk)


def _builtin_folder(home: Home) -> Path:
    return home.suites / "builtin"


def _content(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(dict(row)) + b"\n" for row in rows)


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
