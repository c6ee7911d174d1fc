"""Rules of number sequences, each as a maker and a fit: what a rule says comes next, where it fits the terms at all.

A maker takes (random numbers, largest constant, number of terms). A fit takes (terms, number asked) and returns the
continuation or None; it demands at least one term more than the rule has constants, so that a fit means something.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise

Terms = Sequence[int]


def _make_add(rng: random.Random, largest: int, count: int) -> list[int]:
    start, step = rng.randint(1, 50), rng.randint(1, largest)
    return [start + step * n for n in range(count)]


def _make_subtract(rng: random.Random, largest: int, count: int) -> list[int]:
    start, step = rng.randint(1, 200), rng.randint(1, largest)
    return [start - step * n for n in range(count)]


def _make_multiply(rng: random.Random, largest: int, count: int) -> list[int]:
    start, factor = rng.randint(1, largest), rng.randint(2, 5)
    return [start * factor**n for n in range(count)]


def _make_alternate(rng: random.Random, largest: int, count: int) -> list[int]:
    steps = rng.sample([n for n in range(-largest, largest + 1) if n], 2)
    terms = [rng.randint(1, 50)]
    while len(terms) < count:
        terms.append(terms[-1] + steps[len(terms) % 2])
    return terms


def _make_quadratic(rng: random.Random, largest: int, count: int) -> list[int]:
    square, linear, start = rng.randint(1, largest), rng.randint(-largest, largest), rng.randint(-20, 20)
    return [square * n * n + linear * n + start for n in range(count)]


def _make_affine(rng: random.Random, largest: int, count: int) -> list[int]:
    terms, factor, plus = [rng.randint(1, largest)], rng.randint(2, 3), rng.randint(-largest, largest)
    while len(terms) < count:
        terms.append(factor * terms[-1] + plus)
    return terms


def _make_interleave(rng: random.Random, largest: int, count: int) -> list[int]:
    half = (count + 1) // 2
    first = _make_add(rng, largest, half)
    second = rng.choice((_make_add, _make_subtract, _make_quadratic))(rng, largest, half)
    return [term for pair in zip(first, second, strict=True) for term in pair][:count]


def _make_recurrence(rng: random.Random, largest: int, count: int) -> list[int]:
    return _recur(rng, largest, count, 0)


def _make_recurrence_plus(rng: random.Random, largest: int, count: int) -> list[int]:
    return _recur(rng, largest, count, rng.randint(1, largest))


def _recur(rng: random.Random, largest: int, count: int, plus: int) -> list[int]:
    terms = [rng.randint(1, largest), rng.randint(1, largest)]
    last, before = rng.randint(1, 3), rng.choice((-1, 1, 2))
    while len(terms) < count:
        terms.append(last * terms[-1] + before * terms[-2] + plus)
    return terms


RULES: Mapping[str, Callable[[random.Random, int, int], list[int]]] = {
    "add": _make_add,
    "subtract": _make_subtract,
    "multiply": _make_multiply,
    "alternate": _make_alternate,
    "quadratic": _make_quadratic,
    "affine": _make_affine,
    "interleave": _make_interleave,
    "recurrence": _make_recurrence,
    "recurrence_plus": _make_recurrence_plus,
}


def continuations(terms: Terms, asked: int) -> set[tuple[int, ...]]:
    """Every way in which a rule known here that fits `terms` goes on for `asked` more."""
    fits = (_fit_polynomial, _fit_alternate, _fit_recurrence, _fit_interleave)
    return {found for fit in fits if (found := fit(terms, asked)) is not None}


def _fit_polynomial(terms: Terms, asked: int) -> tuple[int, ...] | None:
    """Constant first or second differences: add, subtract, quadratic."""
    if len(terms) < 4:
        return None
    first = [b - a for a, b in pairwise(terms)]
    second = {b - a for a, b in pairwise(first)}
    if len(second) != 1:
        return None
    bend, step, last, found = second.pop(), first[-1], terms[-1], []
    for _ in range(asked):
        step += bend
        last += step
        found.append(last)
    return tuple(found)


def _fit_alternate(terms: Terms, asked: int) -> tuple[int, ...] | None:
    steps = [b - a for a, b in pairwise(terms)]
    if len(steps) < 4 or any(a != b for a, b in zip(steps, steps[2:], strict=False)):
        return None
    found = list(terms)
    for _ in range(asked):
        found.append(found[-1] + steps[(len(found) - 1) % 2])
    return tuple(found[len(terms) :])


def _fit_recurrence(terms: Terms, asked: int) -> tuple[int, ...] | None:
    """next = p·last + q·before + r with the fewest constants that fit: also multiply (q = r = 0) and affine (q = 0)."""
    for columns in ((1,), (1, 0), (1, 2), (1, 2, 0)):
        constants = _solve(terms, columns)
        if constants is None:
            continue
        found = list(terms)
        for _ in range(asked):
            term = sum((c * _column(found, len(found), k) for c, k in zip(constants, columns, strict=True)), Fraction())
            if term.denominator != 1:
                return None
            found.append(int(term))
        return tuple(found[len(terms) :])
    return None


def _column(terms: Terms, at: int, back: int) -> int:
    """The term `back` places before `at`; the constant 1 for back = 0."""
    return terms[at - back] if back else 1


def _solve(terms: Terms, columns: Sequence[int]) -> list[Fraction] | None:
    """Constants that give every term after the first max(columns), where exactly one choice does, and one is spare."""
    start = max(columns)
    rows = [
        [Fraction(_column(terms, at, k)) for k in columns] + [Fraction(terms[at])] for at in range(start, len(terms))
    ]
    if len(rows) <= len(columns):
        return None
    for pivot in range(len(columns)):
        swap = next((i for i in range(pivot, len(rows)) if rows[i][pivot]), None)
        if swap is None:
            return None
        rows[pivot], rows[swap] = rows[swap], rows[pivot]
        rows[pivot] = [value / rows[pivot][pivot] for value in rows[pivot]]
        for i, row in enumerate(rows):
            if i != pivot and row[pivot]:
                rows[i] = [a - row[pivot] * b for a, b in zip(row, rows[pivot], strict=True)]
    return None if any(row[-1] for row in rows[len(columns) :]) else [row[-1] for row in rows[: len(columns)]]


def _fit_interleave(terms: Terms, asked: int) -> tuple[int, ...] | None:
    """Two sequences taking turns, each with constant first or second differences."""
    halves = [_fit_polynomial(terms[side::2], asked) for side in (0, 1)]
    if halves[0] is None or halves[1] is None:
        return None
    first = len(terms) % 2
    return tuple(halves[(first + n) % 2][n // 2] for n in range(asked))  # type: ignore[index]
