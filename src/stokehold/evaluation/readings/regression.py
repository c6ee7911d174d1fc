"""What was gained and what was lost: against other weights, item by item, and over the evaluations on the way.

Forgetting is that of Chaudhry et al. 2018: the best earlier share minus the present one, here for each suite and level
and averaged over their items. The best of several noisy shares lies above their mean: a model that forgot nothing shows
a little of it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from stokehold.evaluation.readings.answers import Answer, item_reading, ordered
from stokehold.evaluation.readings.errors import error_kind
from stokehold.evaluation.verdict import compare

LISTED = 50
"""Items named of each list; the counts are of all."""

IN_A_ROW = 3
"""Evaluations in which an item must be wrong, one after another, to count as lost for good."""

UNSTABLE_FLIPS = 2
"""Changes between right and wrong from which an item is unstable: one may be learning, or forgetting."""

COUNTED = ("items", "gained", "lost")

Cell = tuple[str, int | str | None]


@dataclass(frozen=True, slots=True)
class Rival:
    """Weights to compare with: their parts (`previous`, `champion`, `best`), evaluation, name and answers."""

    parts: Sequence[str]
    evaluation: str
    ref: str
    answers: Sequence[Answer]


def regression(
    now: Sequence[Answer], rivals: Sequence[Rival], past: Sequence[Sequence[Answer]], margin: float
) -> dict[str, Any]:
    """Changes against each rival, and what `past` (oldest first, without the present one) says of each item.

    `margin` is the difference of exact match that does not matter. All were judged alike.
    """
    window = [_judged(answers) for answers in (*past, now)]
    return {
        "against": [_change(rival, now, margin) for rival in rivals],
        "evaluations": len(window),
        "forgetting": _forgetting(now, window),
        "lost_in_a_row": _lost_in_a_row(window),
        "unstable": _unstable(window),
    }


def _change(rival: Rival, now: Sequence[Answer], margin: float) -> dict[str, Any]:
    before = {answer.item: answer for answer in rival.answers if answer.exact is not None}
    pairs = [(before[after.item], after) for after in now if after.exact is not None and after.item in before]
    lost = [(a, b) for a, b in pairs if a.exact and not b.exact]
    gained = [(a, b) for a, b in pairs if b.exact and not a.exact]
    cells: dict[Cell, Counter[str]] = defaultdict(Counter)
    for name, found in zip(COUNTED, (pairs, gained, lost), strict=True):
        for _, after in found:
            cells[after.suite, after.level][name] += 1
    order = sorted(cells, key=lambda cell: (cell[0], ordered(cell[1])))
    said = compare([item_reading(a) for a in rival.answers], [item_reading(b) for b in now], margin)
    return {
        "parts": list(rival.parts),
        "evaluation": rival.evaluation,
        "ref": rival.ref,
        "items": len(pairs),
        "gained": len(gained),
        "lost": len(lost),
        "comparison": asdict(said),
        "cells": [
            {
                "suite": suite,
                "level": level,
                **{name: cells[suite, level][name] for name in ("items", "gained", "lost")},
            }
            for suite, level in order
        ],
        "lost_kinds": dict(Counter(error_kind(after) or "unknown" for _, after in lost)),
        "gained_kinds": dict(Counter(error_kind(first) or "unknown" for first, _ in gained)),
        "gained_items": sorted(after.item for _, after in gained)[:LISTED],
        "lost_items": sorted(after.item for _, after in lost)[:LISTED],
    }


def _forgetting(now: Sequence[Answer], window: Sequence[Mapping[str, bool]]) -> dict[str, Any]:
    """On the items that every evaluation of the window judged; `score` is None where there is nothing earlier."""
    shared = set[str].intersection(*(set(judged) for judged in window)) if len(window) > 1 else set()
    cells: dict[Cell, list[str]] = defaultdict(list)
    for answer in now:
        if answer.item in shared:
            cells[answer.suite, answer.level].append(answer.item)
    rows: list[dict[str, Any]] = []
    for suite, level in sorted(cells, key=lambda cell: (cell[0], ordered(cell[1]))):
        items = cells[suite, level]
        *earlier, present = [sum(judged[item] for item in items) / len(items) for judged in window]
        found = {"best": max(earlier), "now": present, "forgetting": max(earlier) - present}
        rows.append({"suite": suite, "level": level, "items": len(items), **found})
    total = sum(row["items"] for row in rows)
    score = sum(row["forgetting"] * row["items"] for row in rows) / total if total else None
    return {"score": score, "items": total, "cells": rows}


def _lost_in_a_row(window: Sequence[Mapping[str, bool]]) -> dict[str, Any]:
    """Items that were right once and wrong in each of the last `IN_A_ROW` evaluations."""
    once = {item for judged in window for item, right in judged.items() if right}
    lost = sorted(item for item in once if all(judged.get(item) is False for judged in window[-IN_A_ROW:]))
    return {"in_a_row": IN_A_ROW, "count": len(lost), "items": lost[:LISTED]}


def _unstable(window: Sequence[Mapping[str, bool]]) -> dict[str, Any]:
    flips: Counter[str] = Counter()
    followed = 0
    for item in window[-1]:
        seen = [judged[item] for judged in window if item in judged]
        followed += len(seen) > UNSTABLE_FLIPS
        flips[item] = sum(a != b for a, b in pairwise(seen))
    found = sorted((item for item in flips if flips[item] >= UNSTABLE_FLIPS), key=lambda item: (-flips[item], item))
    return {
        "followed": followed,
        "count": len(found),
        "share": len(found) / followed if followed else None,
        "items": [{"item": item, "flips": flips[item]} for item in found[:LISTED]],
    }


def _judged(answers: Sequence[Answer]) -> dict[str, bool]:
    return {answer.item: answer.exact for answer in answers if answer.exact is not None}
