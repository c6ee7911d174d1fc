"""Arithmetic in several steps: sums with and without carries, products, brackets, fractions.

A problem is a tree: a leaf is an integer or a fraction as text ("12", "3/4"), a node is [operator, left, right]. An
answer is right when it is the value in lowest terms; `equal` credits the right value in another form.
"""

import math
import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from stokehold.core.records import Sample, Score
from stokehold.tasks.answers import read_text
from stokehold.tasks.family import difficulty, first_good, make_sample, stream

CONTRACT = "Answer with the number only, in lowest terms."

_NUMBER = re.compile(r"-?[0-9]{1,60}(/[0-9]{1,60})?", re.ASCII)

MAX_DEPTH = 16
"""Trees from a file that are deeper hold no problem of ours: the deepest has five steps."""


@dataclass(frozen=True, slots=True)
class Axes:
    """`steps` operators on numbers up to `largest`; fractions have denominators up to `denominator` (1: integers)."""

    steps: int
    largest: int
    operators: str
    denominator: int = 1
    carries: bool = True
    brackets: bool = False


LEVELS: Mapping[int, Axes] = {
    1: Axes(1, 99, "+", carries=False),
    2: Axes(1, 99, "+-"),
    3: Axes(2, 99, "+-"),
    4: Axes(2, 99, "+-*"),
    5: Axes(3, 99, "+-*", brackets=True),
    6: Axes(1, 9, "+-", denominator=9),
    7: Axes(3, 999, "+-*", brackets=True),
    8: Axes(2, 12, "+-*", denominator=12, brackets=True),
    9: Axes(3, 12, "+-*÷", denominator=12, brackets=True),
    10: Axes(5, 20, "+-*÷", denominator=20, brackets=True),
}


class Arithmetic:
    """The family; see the module."""

    name = "arithmetic"
    axes: Mapping[int, Mapping[str, Any]] = {level: asdict(axes) for level, axes in LEVELS.items()}

    def generate(self, seed: int, index: int, level: int) -> Sample:
        rng = stream(self.name, seed, index, level)
        tree = first_good(lambda: _accepted(rng, LEVELS[level]), f"arithmetic level {level}")
        question = f"Compute: {_text(tree)}\n{CONTRACT}"
        problem = {"difficulty": difficulty(level), "expression": tree}
        return make_sample(self, (seed, index, level), question, str(value_of(tree)), problem)

    def verify(self, sample: Sample, answer: str) -> Score:
        wanted = value_of(sample.metadata["expression"])
        given = read_text(answer)
        return Score(float(given == str(wanted)), {"equal": float(parse_number(given) == wanted)})

    def identity(self, sample: Sample) -> str:
        """The expression, the sides of + and * in one order."""
        value_of(sample.metadata["expression"])
        return f"arithmetic|{_canonical(sample.metadata['expression'])}"


def parse_number(text: str) -> Fraction | None:
    """An integer or a fraction of plain digits; None for anything else, a zero denominator included."""
    if not _NUMBER.fullmatch(text):
        return None
    above, _, below = text.partition("/")
    return Fraction(int(above), int(below or "1")) if int(below or "1") else None


def value_of(tree: Any, depth: int = 0) -> Fraction:
    """The value of an expression tree; ValueError for a malformed one or a division by zero."""
    if isinstance(tree, str):
        number = parse_number(tree)
        if number is None:
            raise ValueError(f"not a number: {tree!r:.80}")
        return number
    if not isinstance(tree, list) or len(tree) != 3 or depth > MAX_DEPTH:
        raise ValueError("not an expression of operator, left and right")
    left, right = value_of(tree[1], depth + 1), value_of(tree[2], depth + 1)
    match tree[0]:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "÷" if right:
            return left / right
    raise ValueError(f"no value: {tree[0]!r:.80}")


def carries(left: int, right: int) -> int:
    """Columns that carry when two integers >= 0 are added by hand."""
    count = carry = 0
    while left or right:
        carry = (left % 10 + right % 10 + carry) // 10
        count += carry
        left, right = left // 10, right // 10
    return count


def _accepted(rng: random.Random, axes: Axes) -> Any | None:
    """A tree whose value exists and that carries only where the level may; None where this one does not."""
    tree = _tree(rng, axes, axes.steps)
    if not axes.carries and carries(int(tree[1]), int(tree[2])):
        return None
    try:
        value_of(tree)
    except ValueError:
        return None
    return tree


def _tree(rng: random.Random, axes: Axes, steps: int) -> Any:
    if steps == 0:
        return _leaf(rng, axes)
    # Without brackets the tree leans left, as the text reads; with them the steps are split at random.
    left = rng.randrange(steps) if axes.brackets else steps - 1
    return [rng.choice(axes.operators), _tree(rng, axes, left), _tree(rng, axes, steps - 1 - left)]


def _leaf(rng: random.Random, axes: Axes) -> str:
    if axes.denominator == 1:
        return str(rng.randint(1, axes.largest))
    below = rng.randint(2, axes.denominator)
    above = rng.choice([n for n in range(1, axes.largest + 1) if math.gcd(n, below) == 1])
    return f"{above}/{below}"


def _text(tree: Any) -> str:
    """Every step inside another stands in brackets: no rule of precedence is asked for."""
    if isinstance(tree, str):
        return tree
    sides = [side if isinstance(side, str) else f"({_text(side)})" for side in tree[1:]]
    return f"{sides[0]} {tree[0]} {sides[1]}"


def _canonical(tree: Any) -> str:
    if isinstance(tree, str):
        return tree
    sides = [_canonical(side) for side in tree[1:]]
    if tree[0] in "+*":
        sides.sort()
    return f"({tree[0]} {sides[0]} {sides[1]})"
