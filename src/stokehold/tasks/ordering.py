"""Clues about the order of people in a line, and every order that they leave.

A clue is a list: ["before", a, b], ["next", a, b] (a directly before b), ["beside", a, b], ["between", a, b, n] (n
people between), ["at", a, place], ["not_at", a, place]; places count from 1.
"""

import random
from collections.abc import Sequence
from itertools import permutations
from typing import Any

from stokehold.tasks.family import first_good, strings

Order = tuple[str, ...]

MAX_CLUES = 60
"""Clues tried for one order, most of which rule nothing new out; ten are usually enough."""

TEXT = {
    "before": "{} is before {}.",
    "next": "{} is directly before {}.",
    "beside": "{} is next to {}.",
    "between": "Exactly {2} between {0} and {1}.",
    "at": "{} is number {}.",
    "not_at": "{} is not number {}.",
}
SYMMETRIC = ("beside", "between")


def is_true(clue: Sequence[Any], order: Order) -> bool:
    """Whether the order agrees with the clue; KeyError for a kind of clue that does not exist."""
    kind, first, other, *more = clue
    place = order.index(first)
    if kind in ("at", "not_at"):
        return bool((place + 1 == other) == (kind == "at"))
    step = order.index(other) - place
    return {
        "before": step > 0,
        "next": step == 1,
        "beside": abs(step) == 1,
        "between": abs(step) - 1 == (more[0] if more else None),
    }[kind]


def make(rng: random.Random, people: Sequence[str], kinds: Sequence[str]) -> tuple[Order, list[list[Any]]]:
    """(the one order, clues that leave no other); each clue ruled something out when it was added."""
    return first_good(lambda: _attempt(rng, people, kinds), "an order of people")


def _attempt(rng: random.Random, people: Sequence[str], kinds: Sequence[str]) -> tuple[Order, list[list[Any]]] | None:
    """A random order with clues; None where `MAX_CLUES` of them still leave two orders."""
    truth = tuple(rng.sample(people, len(people)))
    left, clues = list(permutations(sorted(people))), list[list[Any]]()
    for _ in range(MAX_CLUES):
        clue = _true_clue(rng, truth, rng.choice(kinds))
        still = [order for order in left if is_true(clue, order)]
        if len(still) < len(left):
            left, clues = still, [*clues, clue]
        if len(left) == 1:
            rng.shuffle(clues)
            return truth, clues
    return None


def check(people: object, clues: object) -> tuple[list[str], list[list[Any]]]:
    """The people and clues where metadata holds both; ValueError otherwise."""
    names = strings(people)
    if not isinstance(clues, list) or not clues or len(set(names)) < len(names):
        raise ValueError("not an ordering problem")
    try:
        for clue in clues:
            is_true(clue, tuple(names))
    except (LookupError, TypeError) as error:
        raise ValueError("not a clue about these people") from error
    return names, clues


def canonical(clue: Sequence[Any]) -> str:
    """The clue without its wording: symmetric ones either way round."""
    kind, *rest = clue
    if kind in SYMMETRIC:
        rest[:2] = sorted(rest[:2])
    return " ".join(map(str, [kind, *rest]))


def _true_clue(rng: random.Random, truth: Order, kind: str) -> list[Any]:
    """A true clue of this kind about random people."""
    first, other = sorted(rng.sample(range(len(truth)), 2))
    if kind in ("next", "beside"):
        first = rng.randrange(len(truth) - 1)
        other = first + 1
    if kind == "at":
        return [kind, truth[first], first + 1]
    if kind == "not_at":
        return [kind, truth[first], other + 1]
    pair = [truth[first], truth[other]]
    if kind in SYMMETRIC:
        rng.shuffle(pair)
    return [kind, *pair, other - first - 1] if kind == "between" else [kind, *pair]
