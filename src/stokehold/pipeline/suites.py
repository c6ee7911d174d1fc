"""Suites as samples: the rows of `suites/NAME.jsonl`, read through the same formats as training files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from stokehold.core.errors import InputError
from stokehold.core.records import Rejection, Sample
from stokehold.data.formats import from_row, parse_line
from stokehold.data.lines import Line
from stokehold.store.home import Home
from stokehold.store.suites import load_suite, suite_names


@dataclass(frozen=True, slots=True)
class Suite:
    """A frozen suite; `hash` is over its content."""

    name: str
    hash: str
    samples: tuple[Sample, ...]


def open_suites(home: Home, names: Sequence[str] = ()) -> list[Suite]:
    """The suites asked for, else every one of the home, by name."""
    return [open_suite(home, name) for name in sorted(names or suite_names(home))]


def open_suite(home: Home, name: str) -> Suite:
    """One suite; `NotFoundError` names those there are."""
    content, rows = load_suite(home, name)
    return Suite(name, content, tuple(_sample(row, name, number) for number, row in enumerate(rows, 1)))


def _sample(row: Mapping[str, Any], name: str, number: int) -> Sample:
    """A stored row, or one that somebody wrote by hand in any accepted format."""
    if "id" in row and "line" in row:
        return from_row(row)
    parsed = parse_line(Line(number, orjson.dumps(row)), name)
    if isinstance(parsed, Rejection):
        raise InputError(parsed.reason, f"suites/{name}.jsonl, row {number}", "correct the row")
    return parsed.sample
