"""Every family by name, and drawing distinct problems of one split from it."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from stokehold.core.errors import NotFoundError, StokeholdError, UsageError
from stokehold.core.identity import is_holdout
from stokehold.core.records import Sample, Score
from stokehold.tasks.arithmetic import Arithmetic
from stokehold.tasks.deduction import Deduction
from stokehold.tasks.family import LEVELS, Family, Split
from stokehold.tasks.primitives import Primitives
from stokehold.tasks.sequence import NumberSequence
from stokehold.tasks.syllo import Syllo
from stokehold.tasks.syllogism import Syllogism

_ALL: tuple[Family, ...] = (Syllo(), Arithmetic(), Syllogism(), Deduction(), NumberSequence(), Primitives())

FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}

PATIENCE = 4096
"""Indices without a new problem before a space counts as used up: a last problem of 400 is then missed with 4e-5."""


def get_family(name: str) -> Family:
    """The family called `name`; NotFoundError that names the nearest one."""
    if name in FAMILIES:
        return FAMILIES[name]
    near = difflib.get_close_matches(name, FAMILIES, n=1)
    hint = f"did you mean {near[0]}?" if near else "families: " + ", ".join(FAMILIES)
    raise NotFoundError("there is no such task family", name, hint)


def draw(family: str, level: int, count: int, seed: int, split: Split) -> Iterator[Sample]:
    """`count` problems of one split, no identity twice, in order of their index from 0.

    Ends with a StokeholdError when the level has fewer problems than asked for; what it has was yielded before.
    """
    chosen = get_family(family)
    if level not in LEVELS:
        raise UsageError(f"there is no level {level}", family, "levels are 1 to 10")
    if split not in ("train", "holdout"):
        raise UsageError(f"there is no split {split!r}", family, "splits are train and holdout")
    return _distinct(chosen, level, count, seed, split)


def _distinct(family: Family, level: int, count: int, seed: int, split: Split) -> Iterator[Sample]:
    seen: set[str] = set()
    index = fresh = 0
    while len(seen) < count:
        sample = family.generate(seed, index, level)
        identity = family.identity(sample)
        if is_holdout(identity) == (split == "holdout") and identity not in seen:
            seen.add(identity)
            fresh = index
            yield sample
        index += 1
        if index - fresh > PATIENCE:
            raise StokeholdError(
                f"only {len(seen)} distinct {split} problems were found, not {count}",
                f"{family.name} level {level}",
                "ask for fewer, or for a higher level",
            )


def row(sample: Sample) -> dict[str, Any]:
    """The JSONL object of a sample: messages and metadata."""
    messages = [{"role": message.role, "content": message.content} for message in sample.messages]
    return {"messages": messages, "metadata": dict(sample.metadata)}


def family_of(sample: Sample) -> str | None:
    """The task family that the sample's metadata names; None also for what people call their own groups."""
    name = sample.metadata.get("family")
    return name if isinstance(name, str) and name in FAMILIES else None


def identity_of(sample: Sample) -> str | None:
    """The problem's identity where the sample's metadata names a family and holds its problem, else None."""
    family = FAMILIES.get(str(sample.metadata.get("family")))
    if family is None:
        return None
    try:
        return family.identity(sample)
    except (KeyError, TypeError, ValueError):
        return None


def verify_answer(sample: Sample, answer: str) -> Score:
    """The verdict of the sample's own family; unscored, with the reason, where there is none to ask."""
    family = FAMILIES.get(str(sample.metadata.get("family")))
    if family is None:
        return Score(None, reason=f"no task family {sample.metadata.get('family')!r}")
    if identity_of(sample) is None:
        return Score(None, reason=f"the metadata holds no {family.name} problem")
    return family.verify(sample, answer)
