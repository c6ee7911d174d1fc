"""What a log tells of each item, and the standard error that the neighbours print beside an accuracy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stokehold.core.errors import NotFoundError
from stokehold.core.records import Sample, Score
from stokehold.evaluation.readings.answers import Answer, answer_of


@dataclass(frozen=True, slots=True)
class Logged:
    """An item of a suite with its stored answer and how that was judged."""

    sample: Sample
    answer: Answer
    score: Score

    @property
    def text(self) -> str:
        """What the model answered."""
        return self.answer.completion.text if self.answer.completion else ""

    @property
    def prompt(self) -> list[dict[str, str]]:
        """What the model was asked."""
        return [{"role": turn.role, "content": turn.content} for turn in self.sample.question]


def logged_items(
    rows: Sequence[Mapping[str, Any]], samples: Mapping[tuple[str, str], Sample]
) -> dict[str, list[Logged]]:
    """The stored rows of each suite, with the items they answer.

    NotFoundError where words or questions are no longer there: a log without them would say that there were none.
    """
    found: dict[str, list[Logged]] = {}
    for row in rows:
        answer, sample = answer_of(row), samples.get((row["suite"], row["sample_id"]))
        if sample is None:
            raise NotFoundError("the suite no longer holds an item that was judged", answer.item, "put it back")
        if answer.completion is None:
            raise NotFoundError("the words of the answers were thinned", answer.item, "evaluate it again")
        score = Score(row["score"], row["parts"], row["reason"])
        found.setdefault(row["suite"], []).append(Logged(sample, answer, score))
    return found


def standard_error(right: int, n: int) -> float | None:
    """Standard error of the mean of `n` zeros and ones, `right` of them one; None below two.

    The sample standard deviation, with n - 1, over the root of n: sqrt(p (1 - p) / (n - 1)).
    """
    if n < 2:
        return None
    share = right / n
    return math.sqrt(share * (1 - share) / (n - 1))
