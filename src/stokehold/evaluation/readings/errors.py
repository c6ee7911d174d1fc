"""In what way an answer is wrong: the first thing that fails of what a right answer needs."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from stokehold.evaluation.readings.answers import Answer

EMPTY, NO_STOP, WRONG_VALUE = "empty", "no_stop", "wrong_value"
PART_KINDS = ("format", "per_word", "inventory")
"""Parts of a score that name a kind of error, in the order in which one hides the next."""


class Pattern(NamedTuple):
    """Errors of one kind on one family and level."""

    family: str | None
    level: int | str | None
    kind: str


def error_kind(answer: Answer) -> str | None:
    """`no_stop`, `empty`, `format`, `per_word`, `inventory` or `wrong_value`; None of a right answer, an unscored one,
    and one whose words are gone."""
    done = answer.completion
    if answer.exact is not False or done is None:
        return None
    if done.finish_reason == "length":
        return NO_STOP
    if not done.text.strip():
        return EMPTY
    return next((part for part in PART_KINDS if answer.parts.get(part, 1.0) < 1.0), WRONG_VALUE)


def pattern_of(answer: Answer) -> Pattern | None:
    """The pattern that the answer's error belongs to."""
    kind = error_kind(answer)
    return Pattern(answer.family, answer.level, kind) if kind else None


def patterns(answers: Iterable[Answer]) -> Counter[Pattern]:
    """How many answers there are of each error pattern."""
    return Counter(found for answer in answers if (found := pattern_of(answer)) is not None)
