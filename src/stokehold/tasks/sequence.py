"""Find the rule of a number sequence and go on with it.

Enough terms are shown that every rule known here that fits them goes on in the same way: the answer is unique within
the family. Answers are JSON lists of integers.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stokehold.core.records import Sample, Score
from stokehold.tasks.answers import RIGHT, WRONG, compact, is_int, read_json
from stokehold.tasks.family import difficulty, first_good, make_sample, stream
from stokehold.tasks.sequence_rules import RULES, continuations


@dataclass(frozen=True, slots=True)
class Axes:
    """`shown` terms of one of `rules` (each with constants up to `largest`); the next `asked` are wanted."""

    rules: tuple[str, ...]
    largest: int
    shown: int
    asked: int


LEVELS: Mapping[int, Axes] = {
    1: Axes(("add",), 9, 5, 1),
    2: Axes(("add", "subtract"), 20, 5, 1),
    3: Axes(("add", "subtract", "multiply"), 20, 5, 2),
    4: Axes(("alternate", "multiply"), 12, 7, 2),
    5: Axes(("quadratic",), 9, 7, 2),
    6: Axes(("affine", "quadratic"), 9, 7, 2),
    7: Axes(("interleave", "affine"), 12, 9, 2),
    8: Axes(("recurrence",), 5, 8, 2),
    9: Axes(("recurrence", "interleave", "quadratic"), 12, 9, 3),
    10: Axes(("recurrence_plus", "interleave"), 15, 9, 3),
}


class NumberSequence:
    """The family; see the module."""

    name = "sequence"
    axes: Mapping[int, Mapping[str, Any]] = {level: asdict(axes) for level, axes in LEVELS.items()}

    def generate(self, seed: int, index: int, level: int) -> Sample:
        rng = stream(self.name, seed, index, level)
        axes = LEVELS[level]
        rule, terms = first_good(lambda: _unambiguous(rng, axes), f"sequence level {level}")
        shown, wanted = terms[: axes.shown], terms[axes.shown :]
        amount = "number" if axes.asked == 1 else f"{axes.asked} numbers"
        question = f"{', '.join(map(str, shown))}\nFind the rule. Answer with the next {amount} as a JSON list."
        problem = {"difficulty": difficulty(level), "rule": rule, "terms": shown, "next": wanted}
        return make_sample(self, (seed, index, level), question, compact(wanted), problem)

    def verify(self, sample: Sample, answer: str) -> Score:
        wanted = _integers(sample.metadata["next"])
        given = read_json(answer)
        if not isinstance(given, list) or len(given) != len(wanted):
            return WRONG
        return RIGHT if all(is_int(*pair) for pair in zip(given, wanted, strict=True)) else WRONG

    def identity(self, sample: Sample) -> str:
        """The terms shown and how many are asked for."""
        terms, wanted = _integers(sample.metadata["terms"]), _integers(sample.metadata["next"])
        return f"sequence|{','.join(map(str, terms))}|{len(wanted)}"


def _unambiguous(rng: random.Random, axes: Axes) -> tuple[str, list[int]] | None:
    """(name of the rule, shown and wanted terms); None where another rule known here goes on otherwise."""
    rule = rng.choice(axes.rules)
    terms = RULES[rule](rng, axes.largest, axes.shown + axes.asked)
    unique = continuations(terms[: axes.shown], axes.asked) == {tuple(terms[axes.shown :])}
    return (rule, terms) if unique else None


def _integers(value: object) -> Sequence[int]:
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return value
    raise ValueError(f"not a list of integers: {value!r:.80}")
