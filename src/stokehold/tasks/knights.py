"""Knights always tell the truth, knaves always lie: who is which?

A saying is a list: ["is", a, knight] (knight is true or false), ["same", a, b], ["differ", a, b], ["or", a, x, b, y]
(a is x or b is y, or both), ["and", a, x, b, y], ["count", n] (exactly n of all are knights).
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from stokehold.tasks.family import first_good, strings

Kinds = Mapping[str, bool]
"""True for a knight, by name."""

ARITY = {"is": 3, "same": 3, "differ": 3, "or": 5, "and": 5, "count": 2}


def is_true(saying: Sequence[Any], kinds: Kinds) -> bool:
    """Whether what is said is so; KeyError for an unknown person or kind of saying."""
    kind, *rest = saying
    if kind == "count":
        return bool(sum(kinds.values()) == rest[0])
    first = kinds[rest[0]]
    if kind == "is":
        return bool(first == rest[1])
    if kind in ("same", "differ"):
        alike = bool(first == kinds[rest[1]])
        return alike if kind == "same" else not alike
    a, b = bool(first == rest[1]), bool(kinds[rest[2]] == rest[3])
    return {"or": a or b, "and": a and b}[kind]


def agree(people: Sequence[str], sayings: Sequence[Sequence[Any]], kinds: Kinds) -> list[bool]:
    """For each person, whether what they say fits what they are."""
    return [kinds[p] == is_true(s, kinds) for p, s in zip(people, sayings, strict=True)]


def ways(people: Sequence[str], sayings: Sequence[Sequence[Any]]) -> list[dict[str, bool]]:
    """Every way to be knights and knaves such that each person's saying is true exactly if they are a knight."""
    every = (dict(zip(people, kinds, strict=True)) for kinds in product((True, False), repeat=len(people)))
    return [kinds for kinds in every if all(agree(people, sayings, kinds))]


def make(rng: random.Random, people: Sequence[str], kinds: Sequence[str]) -> tuple[dict[str, bool], list[list[Any]]]:
    """(the one way, a saying of each person in order); people speak of others or of the number of knights."""
    return first_good(lambda: _attempt(rng, people, kinds), "knights and knaves")


def check(people: object, sayings: object) -> tuple[list[str], list[list[Any]]]:
    """The people and their sayings where metadata holds both; ValueError otherwise."""
    names = strings(people)
    if not isinstance(sayings, list) or not names or len(sayings) != len(names):
        raise ValueError("not a problem of knights and knaves")
    if any(not isinstance(s, list) or not s or ARITY.get(str(s[0])) != len(s) for s in sayings):
        raise ValueError("not a saying")
    try:
        for saying in sayings:
            is_true(saying, dict.fromkeys(names, True))
    except (LookupError, TypeError) as error:
        raise ValueError("not a saying about these people") from error
    return names, sayings


def text(saying: Sequence[Any]) -> str:
    """The saying in words."""
    kind, *rest = saying
    if kind == "count":
        return f"Exactly {rest[0]} of us {'is a knight' if rest[0] == 1 else 'are knights'}."
    if kind == "is":
        return f"{rest[0]} is {_kind(rest[1])}."
    if kind in ("same", "differ"):
        return f"{rest[0]} and {rest[1]} are {'the same kind' if kind == 'same' else 'different kinds'}."
    return f"{rest[0]} is {_kind(rest[1])} {kind} {rest[2]} is {_kind(rest[3])}."


def canonical(person: str, saying: Sequence[Any]) -> str:
    """Who says what, without wording: pairs in one order."""
    kind, *rest = saying
    if kind in ("same", "differ"):
        rest = sorted(rest)
    if kind in ("or", "and") and rest[0] > rest[2]:
        rest = rest[2:] + rest[:2]
    return " ".join(map(str, [person, kind, *rest]))


def _kind(knight: bool) -> str:
    return "a knight" if knight else "a knave"


def _attempt(
    rng: random.Random, people: Sequence[str], kinds: Sequence[str]
) -> tuple[dict[str, bool], list[list[Any]]] | None:
    """Random kinds with a saying of each person; None where another way agrees with the sayings too."""
    truth = {person: rng.random() < 0.5 for person in people}
    sayings = [first_good(partial(_saying, rng, person, truth, kinds), "a saying") for person in people]
    return (truth, sayings) if len(ways(people, sayings)) == 1 else None


def _saying(rng: random.Random, person: str, truth: Kinds, kinds: Sequence[str]) -> list[Any] | None:
    """Something this person can say, true of a knight and false of a knave; None where the one drawn is not."""
    others = [name for name in truth if name != person]
    kind = rng.choice(kinds)
    if kind == "count":
        saying: list[Any] = [kind, rng.randint(0, len(truth))]
    elif kind == "is":
        saying = [kind, rng.choice(others), rng.random() < 0.5]
    else:
        a, b = rng.sample(others, 2)
        pair = kind in ("same", "differ")
        saying = [kind, a, b] if pair else [kind, a, rng.random() < 0.5, b, rng.random() < 0.5]
    return saying if is_true(saying, truth) == truth[person] else None
