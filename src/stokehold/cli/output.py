"""How commands speak: one JSON document on stdout for scripts, tables for people, errors with their fix on stderr."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import orjson
from rich.console import Console
from rich.table import Table

from stokehold.core.errors import StokeholdError

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def emit(document: Any, as_json: bool) -> bool:
    """Prints `document` as JSON when asked; True tells the caller that nothing else is to be printed."""
    if as_json:
        sys.stdout.write(orjson.dumps(document, default=_plain).decode() + "\n")
        sys.stdout.flush()
    return as_json


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """A table for people; None is shown as a dash, because unknown is not zero."""
    drawn = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*("-" if cell is None else str(cell) for cell in row))
    console.print(drawn)


def fail(error: StokeholdError) -> NoReturn:
    """`stoke: what · where · fix` on stderr, and the error's exit code."""
    errors.print(f"stoke: {error}", style=None, markup=False, soft_wrap=True)
    raise SystemExit(error.exit_code)


def share(value: float | None) -> str | None:
    """A share as a percentage with one decimal."""
    return None if value is None else f"{100 * value:.1f} %"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
