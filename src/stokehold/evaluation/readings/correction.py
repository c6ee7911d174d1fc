"""Which errors come again and again, and whether they went away: a log of error patterns over stored evaluations.

A pattern is followed from the first evaluation that shows it. An item that is wrong in another way now is not mended.
That a pattern went away is seen here; why it did is not: files of other kinds were trained meanwhile.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stokehold.evaluation.paired import ItemReading
from stokehold.evaluation.readings.answers import Answer, item_reading, ordered
from stokehold.evaluation.readings.errors import Pattern, pattern_of, patterns
from stokehold.evaluation.significance import holm
from stokehold.evaluation.verdict import ALPHA, compare

FIXED, NOT_FIXED, INSUFFICIENT = "fixed", "not fixed", "insufficient data"

HALVED = 0.5
"""A pattern that lost less than this share of its cases is not fixed, where the interval excludes that it lost more."""


def correction(now: Sequence[Answer], past: Sequence[tuple[str, Sequence[Answer]]], margin: float) -> dict[str, Any]:
    """Every pattern of the present errors and of earlier ones, most cases first.

    `past` are (evaluation, answers) that were judged alike, oldest first, without the present one. Before and after are
    shares of the items of the pattern's family and level that both evaluations judged, compared paired: those that show
    it, and after also the `moved`, which showed it before and are wrong in another way. The p-values are Holm's over
    the patterns followed.
    """
    present = patterns(now)
    first: dict[Pattern, tuple[str, Sequence[Answer]]] = {}
    for evaluation, answers in past:
        for pattern in patterns(answers):
            first.setdefault(pattern, (evaluation, answers))
    known = sorted({*present, *first}, key=lambda p: (-present[p], p.family or "", ordered(p.level), p.kind))
    rows = [_followed(pattern, first.get(pattern), now, margin) for pattern in known]
    tested = [row for row in rows if row["p_value"] is not None]
    for row, adjusted in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
        row["p_value"] = adjusted
        row["verdict"] = _verdict(row)
    wrong = sum(answer.exact is False for answer in now)
    return {"wrong": wrong, "patterns": [{**row, "now": present[p]} for p, row in zip(known, rows, strict=True)]}


def _followed(
    pattern: Pattern, first: tuple[str, Sequence[Answer]] | None, now: Sequence[Answer], margin: float
) -> dict[str, Any]:
    """A row without its verdict; a pattern that no earlier evaluation shows has nothing to be compared with."""
    row: dict[str, Any] = pattern._asdict()
    row |= dict.fromkeys(("since", "items", "before_share", "now_share", "moved", "change_ci", "p_value", "verdict"))
    if first is None:
        return row
    since, answers = first
    before, after = _cases(pattern, answers), _cases(pattern, now)
    shared = sorted(before.keys() & after.keys())
    row |= {"since": since, "items": len(shared), "verdict": INSUFFICIENT}
    if not shared:
        return row
    had = {item for item in shared if pattern_of(before[item]) == pattern}
    has = {item for item in shared if pattern_of(after[item]) == pattern}
    moved = {item for item in had - has if after[item].exact is False}
    said = compare(
        [_free(before[item], item not in had) for item in shared],
        [_free(after[item], item not in has | moved) for item in shared],
        margin,
    )
    row |= {
        "before_share": len(had) / len(shared),
        "now_share": len(has | moved) / len(shared),
        "moved": len(moved),
        "change_ci": None if said.delta_exact_ci is None else [-said.delta_exact_ci[1], -said.delta_exact_ci[0]],
        "p_value": said.p_value,
    }
    return row


def _cases(pattern: Pattern, answers: Sequence[Answer]) -> dict[str, Answer]:
    """Scored answers of the pattern's family and level, by item."""
    kind = (pattern.family, pattern.level)
    return {a.item: a for a in answers if a.exact is not None and (a.family, a.level) == kind}


def _free(answer: Answer, free: bool) -> ItemReading:
    """For the paired comparison, where being free of the pattern is what is right."""
    return replace(item_reading(answer), exact=free, gold_nll=None, gold_tokens=None, suite="")


def _verdict(row: dict[str, Any]) -> str:
    if row["p_value"] <= ALPHA and row["now_share"] < row["before_share"]:
        return FIXED
    if row["before_share"] and row["change_ci"] and row["change_ci"][0] > -HALVED * row["before_share"]:
        return NOT_FIXED
    return INSUFFICIENT
