"""One completion against one suite item: a `Score`, or unscored with a reason. Never an exception, never a guess.

Which scorer judges an item: `metadata.scorer` when the suite names one, else the verifier of `metadata.family` where
that is a task family, else `exact`. `verifier:<family>` names a family's verifier outright. A scorer reads its options
from the item's metadata; one that does not fit leaves the item unscored. What each takes for right is in
`docs/evaluation.md`, with an example.
"""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from string import ascii_uppercase
from typing import Any

import regex

from stokehold.core.errors import NotFoundError
from stokehold.core.records import Completion, Sample, Score
from stokehold.evaluation.answers import chosen, final_number, first_object, same_json
from stokehold.evaluation.judging import JUDGE, Opinion, judged
from stokehold.tasks.registry import family_of, get_family

Scorer = Callable[[Sample, str], Score]
"""Judges the answer text to a sample. ValueError where the item does not hold what it needs."""

SCORERS_VERSION = "3"
"""Changes when the same answer may get another score; evaluations across versions are not compared."""

VERIFIER = "verifier:"
DEFAULT = "exact"

PATTERN_S = 0.5
"""Longest search for a user's pattern in one answer: some patterns take time exponential in the text's length."""


def exact(sample: Sample, answer: str) -> Score:
    """1 when the stripped texts are equal, character by character."""
    return Score(float(answer.strip() == sample.gold.strip()))


def contains(sample: Sample, answer: str) -> Score:
    """1 when the stripped gold occurs in the answer; `metadata.ignore_case` folds both.

    An empty gold is in every text and proves nothing.
    """
    gold = sample.gold.strip()
    if not gold:
        return Score(None, reason="the gold answer is empty")
    if _flag(sample, "ignore_case"):
        gold, answer = gold.casefold(), answer.casefold()
    return Score(float(gold in answer))


def numeric(sample: Sample, answer: str) -> Score:
    """1 when the answer's final number is gold's, exactly, or within `metadata.tolerance` or `metadata.relative`.

    `tolerance` is absolute, `relative` a share of gold; with both, the wider counts. Both are taken as they are
    written, in decimals.
    """
    gold = final_number(sample.gold)
    if gold is None:
        raise ValueError("the gold answer holds no number that can be read")
    room = max(_positive(sample, "tolerance"), _positive(sample, "relative") * abs(gold))
    given = final_number(answer)
    return Score(float(given is not None and abs(given - gold) <= room))


def choice(sample: Sample, answer: str) -> Score:
    """1 when the answer commits to gold's choice of `metadata.choices`: texts, labelled A, B, C, or label to text."""
    choices = _choices(sample)
    gold = chosen(sample.gold, choices)
    if gold is None:
        raise ValueError("the gold answer is none of metadata.choices")
    return Score(float(chosen(answer, choices) == gold))


def json_fields(sample: Sample, answer: str) -> Score:
    """1 when the answer's first JSON object equals gold's in all `metadata.fields` (default: every field of gold).

    Each field's own score is the part `field:NAME`. Other fields of the answer do not matter.
    """
    gold = first_object(sample.gold)
    if gold is None:
        raise ValueError("the gold answer holds no JSON object")
    fields = sample.metadata.get("fields", list(gold))
    if not isinstance(fields, list) or not fields or not all(isinstance(name, str) for name in fields):
        raise ValueError("metadata.fields is not a filled list of names")
    if missing := [name for name in fields if name not in gold]:
        raise ValueError(f"the gold answer has no field {missing[0]!r}")
    given = first_object(answer) or {}
    parts = {f"field:{name}": float(name in given and same_json(gold[name], given[name])) for name in fields}
    return Score(float(all(parts.values())), parts)


def pattern(sample: Sample, answer: str) -> Score:
    """1 when `metadata.pattern` matches the whole stripped answer; with `metadata.match` "search", anywhere in it.

    `metadata.ignore_case` ignores case. A search that takes longer than `PATTERN_S` leaves the item unscored.
    """
    wanted, how = sample.metadata.get("pattern"), sample.metadata.get("match", "full")
    if not isinstance(wanted, str) or not wanted:
        raise ValueError("metadata.pattern is not a text")
    if how not in ("full", "search"):
        raise ValueError(f"metadata.match is {how!r}, not full or search")
    try:
        compiled = regex.compile(wanted, regex.IGNORECASE if _flag(sample, "ignore_case") else 0)
    except regex.error as error:
        raise ValueError(f"metadata.pattern: {error}") from error
    match = compiled.search if how == "search" else compiled.fullmatch
    try:
        return Score(float(match(answer.strip(), timeout=PATTERN_S) is not None))
    except TimeoutError:
        return Score(None, reason=f"the pattern was not done with the answer in {PATTERN_S:g} s")


SCORERS: Mapping[str, Scorer] = {
    DEFAULT: exact,
    "contains": contains,
    "numeric": numeric,
    "choice": choice,
    "json_fields": json_fields,
    "regex": pattern,
}
"""Scorers by the name a suite may use; beside them there are `judge` and `verifier:<family>`."""


def scorer_name(sample: Sample) -> str:
    """The scorer that judges this sample, by name."""
    if named := sample.metadata.get("scorer"):
        return str(named)
    family = family_of(sample)
    return DEFAULT if family is None else f"{VERIFIER}{family}"


def scorer(name: str, opinions: Mapping[str, Opinion]) -> Scorer:
    """The scorer of that name; `NotFoundError` names those there are. `opinions` is what a judge said already."""
    if name.startswith(VERIFIER):
        return get_family(name.removeprefix(VERIFIER)).verify
    if name == JUDGE:
        return lambda sample, answer: judged(sample, answer, opinions)
    if name not in SCORERS:
        raise NotFoundError("no such scorer", name, f"one of {', '.join(SCORERS)}, {JUDGE}, {VERIFIER}FAMILY")
    return SCORERS[name]


def has_gold(sample: Sample) -> bool:
    """Whether there is an answer to judge by; plain text asks nothing, and has none."""
    return len(sample.question) < len(sample.messages)


def score(sample: Sample, completion: Completion, opinions: Mapping[str, Opinion] | None = None) -> Score:
    """The judgement, its value within [0, 1]. A scorer that raises, or answers outside that, leaves it unscored."""
    if completion.finish_reason == "error":
        return Score(None, reason=completion.error or "nothing was generated")
    if sample.text is None and not has_gold(sample):
        return Score(None, reason="the item has no gold answer")
    if completion.error is not None:
        return Score(None, reason=completion.error)
    name = scorer_name(sample)
    try:
        found = scorer(name, opinions or {})(sample, completion.text)
    except ValueError as error:
        return Score(None, reason=f"{name}: {error}")
    except Exception as error:  # noqa: BLE001 - kept as the reason and counted: one bad item must not end a run
        return Score(None, reason=f"{name}: {type(error).__name__}: {error}")
    values = [*found.parts.values(), *([] if found.value is None else [found.value])]
    if not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
        return Score(None, reason=f"{name} answered outside 0 to 1: {found.value!r}, {dict(found.parts)!r}")
    return found


def _flag(sample: Sample, name: str) -> bool:
    value = sample.metadata.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"metadata.{name} is {value!r}, not true or false")
    return value


def _positive(sample: Sample, name: str) -> Fraction:
    """A number >= 0 of the metadata, exactly as it is written; 0 where there is none."""
    value = sample.metadata.get(name, 0)
    try:
        written = Decimal(str(value))
        if isinstance(value, bool) or not written.is_finite() or written < 0:
            raise ValueError(f"metadata.{name} is {value!r}, not a number from 0")
        return Fraction(written)
    except InvalidOperation as error:
        raise ValueError(f"metadata.{name} is {value!r}, not a number from 0") from error


def _choices(sample: Sample) -> dict[str, str]:
    """Choices by label; ValueError unless there are two or more, each with a label and a text of its own."""
    given: Any = sample.metadata.get("choices")
    if isinstance(given, list) and len(given) <= len(ascii_uppercase):
        given = dict(zip(ascii_uppercase, given, strict=False))
    if not isinstance(given, Mapping) or len(given) < 2 or not all(isinstance(text, str) for text in given.values()):
        raise ValueError("metadata.choices is not a list of texts, nor an object of label and text")
    for names in (given.keys(), given.values()):
        if len({name.casefold().strip() for name in names} - {""}) != len(given):
            raise ValueError("metadata.choices has two that are the same, or an empty one")
    return dict(given)
