"""Deduction with one solution, found by enumeration: people in a line, and knights and knaves.

Answers are JSON: the names in order, or an object that says of each person whether they are a knight or a knave.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stokehold.core.records import Sample, Score
from stokehold.tasks import knights, ordering
from stokehold.tasks.answers import compact, read_json
from stokehold.tasks.family import difficulty, make_sample, stream

ROLES = {"knight": True, "knave": False}

NAMES = (
    "Ann",
    "Ben",
    "Cara",
    "Dan",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Ivan",
    "June",
    "Kai",
    "Lena",
    "Max",
    "Nora",
    "Omar",
    "Pia",
)


@dataclass(frozen=True, slots=True)
class Axes:
    """`people` involved, the kinds of clue about their order, the kinds of saying of knights and knaves.

    "is" alone leaves two ways always: making every knight a knave and the reverse keeps each "X is a knight" said.
    """

    people: int
    clues: tuple[str, ...]
    sayings: tuple[str, ...]


LEVELS: Mapping[int, Axes] = {
    1: Axes(3, ("before",), ("is", "same")),
    2: Axes(3, ("before", "not_at"), ("is", "same", "differ")),
    3: Axes(3, ("before", "not_at", "beside"), ("is", "same", "differ", "count")),
    4: Axes(4, ("before", "next", "at"), ("is", "same", "differ")),
    5: Axes(4, ("before", "next", "beside", "not_at"), ("is", "same", "differ", "count")),
    6: Axes(5, ("before", "next", "beside", "at"), ("is", "same", "differ", "or")),
    7: Axes(5, ("before", "beside", "between", "not_at"), ("same", "differ", "or", "count")),
    8: Axes(6, ("before", "beside", "between"), ("same", "differ", "or", "and")),
    9: Axes(6, ("beside", "between", "not_at"), ("differ", "or", "and", "count")),
    10: Axes(7, ("before", "between", "not_at"), ("or", "and", "count")),
}


class Deduction:
    """The family; see the module."""

    name = "deduction"
    axes: Mapping[int, Mapping[str, Any]] = {level: asdict(axes) for level, axes in LEVELS.items()}

    def generate(self, seed: int, index: int, level: int) -> Sample:
        rng = stream(self.name, seed, index, level)
        axes = LEVELS[level]
        people = sorted(rng.sample(NAMES, axes.people))
        make = rng.choice((_line, _island))
        question, gold, problem = make(rng, people, axes)
        problem = {"difficulty": difficulty(level), "people": people, **problem}
        return make_sample(self, (seed, index, level), question, compact(gold), problem)

    def verify(self, sample: Sample, answer: str) -> Score:
        """The solution is the only one, so an answer that agrees with every clue is it; `clues` is the share met."""
        people, clues, is_line = _problem(sample)
        given = read_json(answer)
        met: list[bool] = []
        if is_line and isinstance(given, list) and len(given) == len(people) and all(name in given for name in people):
            met = [ordering.is_true(clue, tuple(given)) for clue in clues]
        elif not is_line and isinstance(given, dict) and set(given) == set(people):
            kinds = {person: ROLES.get(role) for person, role in given.items() if isinstance(role, str)}
            known = {person: kind for person, kind in kinds.items() if kind is not None}
            met = knights.agree(people, clues, known) if len(known) == len(people) else []
        return Score(float(bool(met) and all(met)), {"clues": sum(met) / len(clues)})

    def identity(self, sample: Sample) -> str:
        """The people with the clues in any order, or with who says what; symmetric clues either way round."""
        people, clues, is_line = _problem(sample)
        said = sorted(map(ordering.canonical, clues) if is_line else map(knights.canonical, people, clues))
        kind = "line" if is_line else "island"
        return f"deduction|{kind}|{','.join(sorted(people))}|{';'.join(said)}"


def _problem(sample: Sample) -> tuple[list[str], list[list[Any]], bool]:
    """(people, clues or sayings, whether they stand in a line); ValueError where the metadata holds no problem."""
    metadata = sample.metadata
    is_line = metadata["kind"] == "line"
    people, clues = (ordering if is_line else knights).check(metadata["people"], metadata["clues"])
    return people, clues, is_line


def _line(rng: random.Random, people: list[str], axes: Axes) -> tuple[str, Any, dict[str, Any]]:
    """(question, answer, problem) about an order."""
    order, clues = ordering.make(rng, people, axes.clues)
    lines = [f"{', '.join(people)} stand in a line.", *(ordering.TEXT[clue[0]].format(*clue[1:]) for clue in clues)]
    lines.append("Answer with the names from first to last as a JSON list.")
    return "\n".join(lines), list(order), {"kind": "line", "clues": clues}


def _island(rng: random.Random, people: list[str], axes: Axes) -> tuple[str, Any, dict[str, Any]]:
    """(question, answer, problem) about knights and knaves."""
    truth, sayings = knights.make(rng, people, axes.sayings)
    lines = ["Knights always tell the truth, knaves always lie."]
    lines += [f"{person}: {knights.text(saying)}" for person, saying in zip(people, sayings, strict=True)]
    lines.append('Answer in JSON: {"name":"knight" or "knave",...}.')
    return "\n".join(lines), _roles(truth), {"kind": "island", "clues": sayings}


def _roles(truth: knights.Kinds) -> dict[str, str]:
    return {person: "knight" if knight else "knave" for person, knight in truth.items()}
