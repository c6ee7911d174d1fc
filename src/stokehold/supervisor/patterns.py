"""What the status shows of one evaluation's answers: how well each kind of task goes by length.

The pattern of an item is its task family where its line names one, else its suite.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.records import Evaluation
from stokehold.supervisor.trends import loss_trend

LENGTH_BINS = (0, 100, 300, 500, 1000, 2000)
"""Lower bounds of the response lengths, in tokens; the last has no upper one."""

LARGEST_BYTES = 256 * 1024 * 1024
"""Completions beyond this are not read for a picture."""

Heatmap = dict[str, dict[str, dict[str, int]]]


def length_bin(tokens: int) -> str:
    """Name of the bin a response of so many tokens falls into: `0-100`, …, `2000+`."""
    at = max(index for index, low in enumerate(LENGTH_BINS) if tokens >= low)
    return f"{LENGTH_BINS[at]}+" if at == len(LENGTH_BINS) - 1 else f"{LENGTH_BINS[at]}-{LENGTH_BINS[at + 1]}"


def heatmap(rows: Iterable[Mapping[str, Any]]) -> Heatmap:
    """Pattern → length bin → {`seen`: scored items, `exact_match`: those fully right}. Unscored items are not seen."""
    found: Heatmap = {}
    for row in rows:
        if row.get("score") is None:
            continue
        cells = found.setdefault(str(row.get("family") or row.get("suite") or "unknown"), {})
        cell = cells.setdefault(length_bin(len(row.get("token_ids") or ())), {"seen": 0, "exact_match": 0})
        cell["seen"] += 1
        cell["exact_match"] += row["score"] == 1
    return found


@lru_cache(maxsize=8)
def heatmap_of(folder: str) -> Heatmap | None:
    """Of a published evaluation's folder; None without readable completions or scored answers. Folders never change."""
    path = Path(folder) / "completions.jsonl"
    if not path.is_file() or path.stat().st_size > LARGEST_BYTES:
        return None
    return heatmap(_rows(path)) or None


def loss_trends(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Suite → trend of its gold answers' loss over these evaluations, the newest last."""
    names = sorted({name for evaluation in evaluations for name in evaluation.suites})
    found = {}
    for name in names:
        results = (evaluation.suites.get(name) for evaluation in evaluations)
        found[name] = loss_trend([r.nll_per_token for r in results if r is not None and r.nll_per_token is not None])
    return found


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as stream:
        for line in stream:
            yield orjson.loads(line)
