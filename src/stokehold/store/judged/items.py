"""What an evaluation showed of each item, in a few bytes, for good: `items.json` beside the completions.

Completions grow old and are thinned; paired comparisons need only the item's id, its score and the likelihood of its
gold answer. These are published in one step with the evaluation, and no rule of retention touches them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.store.files import MANIFEST
from stokehold.store.home import Home

ITEMS = "items.json"
COMPLETIONS = "completions.jsonl"
DRAWS = "draws.jsonl"
READINGS = "readings.json"
"""What the readings of the run said when it was made; `stoke readings` makes them anew."""

FIELDS = ("sample_id", "score", "gold_nll", "gold_tokens", "cluster")
"""Evaluations from before `cluster` was kept have none: each of their items stands alone."""


def write_items(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes `suite` and `FIELDS` of each row into a folder that is being published; other keys are left out."""
    columns: dict[str, dict[str, list[Any]]] = defaultdict(lambda: {name: [] for name in FIELDS})
    for row in rows:
        for name in FIELDS:
            columns[row["suite"]][name].append(row.get(name) if name == "cluster" else row[name])
    (folder / ITEMS).write_bytes(orjson.dumps(columns))


def read_items(home: Home, evaluation_id: str) -> list[dict[str, Any]]:
    """One row per item with `suite` and `FIELDS`, in the order they were judged.

    Raises NotFoundError where there are none: no such evaluation, or one from before items were kept whose completions
    are gone. IntegrityError where they cannot be read.
    """
    folder = home.evaluations / evaluation_id
    kept, whole = folder / ITEMS, folder / COMPLETIONS
    try:
        if kept.is_file():
            return [row for suite, columns in orjson.loads(kept.read_bytes()).items() for row in _rows(suite, columns)]
        if whole.is_file():
            read = (orjson.loads(line) for line in whole.read_bytes().splitlines())
            return [{"cluster": None} | {name: row[name] for name in ("suite", *FIELDS) if name in row} for row in read]
    except (orjson.JSONDecodeError, KeyError, ValueError) as error:
        raise IntegrityError("its items cannot be read", str(folder), "restore the folder from a backup") from error
    there = (folder / MANIFEST).is_file()
    what = "its items are gone with its completions" if there else "no such evaluation"
    raise NotFoundError(what, evaluation_id, "`stoke evaluate` makes one")


def read_readings(home: Home, evaluation_id: str) -> dict[str, Any] | None:
    """The readings kept with an evaluation, by name; None where none were. IntegrityError where they do not read."""
    path = home.evaluations / evaluation_id / READINGS
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = dict(orjson.loads(path.read_bytes())["readings"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError("its readings cannot be read", str(path), "`stoke readings` makes them anew") from error
    return found


def _rows(suite: str, columns: Mapping[str, list[Any]]) -> Iterable[dict[str, Any]]:
    alone: list[Any] = [None] * len(columns["sample_id"])
    for values in zip(*(columns.get(name, alone) for name in FIELDS), strict=True):
        yield {"suite": suite, **dict(zip(FIELDS, values, strict=True))}
