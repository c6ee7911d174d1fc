"""One completion against one suite item: a `Score`, or unscored with a reason. Never an exception, never a guess.

Which scorer judges an item: `metadata.scorer` when the suite names one, else the verifier of `metadata.family` where
that is a task family, else `exact`. `verifier:<family>` names a family's verifier outright.
"""

import math
from collections.abc import Callable, Mapping

from stokehold.core.errors import NotFoundError
from stokehold.core.records import Completion, Sample, Score
from stokehold.tasks.registry import FAMILIES, get_family

Scorer = Callable[[Sample, str], Score]
"""Judges the answer text to a sample."""

VERIFIER = "verifier:"
DEFAULT = "exact"


def exact(sample: Sample, answer: str) -> Score:
    """1 when the stripped texts are equal."""
    return Score(float(answer.strip() == sample.gold.strip()))


def contains(sample: Sample, answer: str) -> Score:
    """1 when the stripped gold occurs in the answer; an empty gold is in every text and proves nothing."""
    gold = sample.gold.strip()
    return Score(float(gold in answer)) if gold else Score(None, reason="the gold answer is empty")


SCORERS: Mapping[str, Scorer] = {DEFAULT: exact, "contains": contains}
"""Scorers by the name a suite may use."""


def scorer_name(sample: Sample) -> str:
    """The scorer that judges this sample, by name."""
    if named := sample.metadata.get("scorer"):
        return str(named)
    family = sample.metadata.get("family")
    # People use the word for groups of their own; those answers are compared as text.
    return f"{VERIFIER}{family}" if family in FAMILIES else DEFAULT


def scorer(name: str) -> Scorer:
    """The scorer of that name; `NotFoundError` names those there are."""
    if name.startswith(VERIFIER):
        return get_family(name.removeprefix(VERIFIER)).verify
    if name not in SCORERS:
        raise NotFoundError("no such scorer", name, f"one of {', '.join(SCORERS)}, {VERIFIER}FAMILY")
    return SCORERS[name]


def score(sample: Sample, completion: Completion) -> Score:
    """The judgement, its value within [0, 1]. A scorer that raises, or answers outside that, leaves it unscored."""
    if completion.finish_reason == "error":
        return Score(None, reason=completion.error or "nothing was generated")
    if sample.text is None and len(sample.question) == len(sample.messages):
        return Score(None, reason="the item has no gold answer")
    name = scorer_name(sample)
    try:
        found = scorer(name)(sample, completion.text)
    except Exception as error:  # noqa: BLE001 - kept as the reason and counted: one bad item must not end a run
        return Score(None, reason=f"{name}: {type(error).__name__}: {error}")
    values = [*found.parts.values(), *([] if found.value is None else [found.value])]
    if not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
        return Score(None, reason=f"{name} answered outside 0 to 1: {found.value!r}, {dict(found.parts)!r}")
    return found
