"""How commands speak: one JSON document on stdout for scripts, tables for people, errors with their fix on stderr.

Text is printed as it is: file names, notes and answers may hold [brackets] and :colons:.
"""

import dataclasses
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import orjson
from rich.console import Console
from rich.table import Table

from stokehold.core.errors import StokeholdError
from stokehold.core.shares import percent

console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

WIDEST_SHARE = 0.45
"""Most of a terminal's width that any but the last column of a table takes."""

AGES = (("d", 86400), ("h", 3600), ("min", 60))
SIZES = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))

UNBOUNDED_COLUMNS = 10_000
"""Width of a table that goes into a pipe or a file: nothing is cut or wrapped."""


def emit(document: Any, as_json: bool) -> bool:
    """Prints `document` as JSON when asked; True tells the caller that nothing else is to be printed."""
    if as_json:
        sys.stdout.write(_json(document) + "\n")
        sys.stdout.flush()
    return as_json


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], none: str = "none yet") -> None:
    """A table for people, or `none` where there is no row; None is a dash, because unknown is not zero.

    On a narrow terminal the last column wraps and the others are cut; elsewhere nothing is.
    """
    widest = int(WIDEST_SHARE * console.width) if console.is_terminal else None
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns[:-1]:
        drawn.add_column(column, no_wrap=True, overflow="ellipsis", max_width=widest)
    drawn.add_column(columns[-1], overflow="fold")
    for row in rows:
        drawn.add_row(*("-" if cell is None else str(cell) for cell in row))
    if not drawn.row_count:
        console.print(none)
        return
    width = None if console.is_terminal else UNBOUNDED_COLUMNS
    Console(highlight=False, markup=False, emoji=False, width=width).print(drawn)


def when(created: str) -> str:
    """A stored time for people: to the second, in UTC."""
    return created[:19].replace("T", " ")


def age(created: str) -> str:
    """How long ago a stored time is, in its largest unit."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    unit, length = next(((unit, length) for unit, length in AGES if seconds >= length), ("s", 1))
    return f"{max(0, int(seconds // length))} {unit}"


def size(count: int) -> str:
    """Bytes for people, in powers of 1000."""
    for unit, length in SIZES:
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"


def fail(error: StokeholdError) -> NoReturn:
    """`stoke: what · where · fix` on stderr, and the error's exit code."""
    complain(error)
    raise SystemExit(error.exit_code)


def complain(error: StokeholdError) -> None:
    """`stoke: what · where · fix` on stderr."""
    errors.print(f"stoke: {error}")


def fail_on_fault(error: Exception) -> NoReturn:
    """An error that no room has put into words: the system's in its own, ours with the traceback in a file."""
    if isinstance(error, OSError) and error.strerror:
        where = str(error.filename or "")
        fail(StokeholdError(error.strerror.lower(), where, "check the path, its permissions and the free space"))
    with tempfile.NamedTemporaryFile("w", prefix="stoke-", suffix=".log", delete=False) as log:
        traceback.print_exception(error, file=log)
    what = str(error).partition("\n")[0]
    fail(StokeholdError(f"{type(error).__name__}: {what}", f"the traceback is in {log.name}", "please report it"))


def shown(name: Path | str) -> str:
    """A name as text, its bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(name).decode(errors="backslashreplace")


def share(value: float | None) -> str | None:
    """A share as a percentage with one decimal."""
    return None if value is None else percent(value)


def _json(document: Any) -> str:
    try:
        return orjson.dumps(document, default=_plain).decode()
    except TypeError:
        return orjson.dumps(_shown(document)).decode()


def _shown(value: Any) -> Any:
    """The same with each text as `shown`: names of files are bytes, and JSON has only UTF-8."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {_shown(name): _shown(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(part) for part in value]
    return value if value is None or isinstance(value, int | float) else _shown(_plain(value))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
