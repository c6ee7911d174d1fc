"""Suites that are there by name: held-out problems of a task family, easy, medium or hard, 50, 100 or 200 of them.

The same problems in every home and for ever: they follow from the name alone, and the larger suite begins with the
smaller one. Their identities belong to the held-out split, so that no generated file trains them.
"""

from collections.abc import Iterator

from stokehold.core.errors import StokeholdError
from stokehold.core.records import Sample
from stokehold.tasks.family import LEVELS, difficulty
from stokehold.tasks.registry import draw, identity_of

SEED = 20_001
"""Of every built-in suite. Another seed would be other suites under the same names."""


def builtin_samples(family: str, hardness: str, count: int) -> list[Sample]:
    """`count` problems, one of each level of this hardness in turn; a level that has no more is passed over.

    NotFoundError for an unknown family; StokeholdError where the family has fewer problems.
    """
    waiting = [draw(family, level, count, SEED, "holdout") for level in LEVELS if difficulty(level) == hardness]
    seen: set[str | None] = set()
    found: list[Sample] = []
    while len(found) < count:
        if not waiting:
            what = f"only {len(found)} distinct problems, not {count}"
            raise StokeholdError(what, f"{family}, {hardness}", "ask for a smaller suite")
        problems = waiting.pop(0)
        sample = _next(problems)
        if sample is None:
            continue
        waiting.append(problems)
        if (identity := identity_of(sample)) not in seen:
            seen.add(identity)
            found.append(sample)
    return found


def _next(problems: Iterator[Sample]) -> Sample | None:
    """The next problem; None where the level has no more."""
    try:
        return next(problems, None)
    except StokeholdError:
        return None
