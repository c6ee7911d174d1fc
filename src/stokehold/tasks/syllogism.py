"""Categorical syllogisms: does the conclusion follow? Chains of two to five premises, terms may be empty.

From level 4 on an argument that fails must be answered with a counter-model: individuals, each as the list of groups
it belongs to, of which the premises are true and the conclusion is false. Any such model is right.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from stokehold.core.records import Sample, Score
from stokehold.tasks.answers import RIGHT, WRONG, compact, read_object
from stokehold.tasks.family import difficulty, first_good, make_sample, stream, strings
from stokehold.tasks.models import Individual, counter_model, is_counter_model

FAMILIAR = (
    "actors",
    "bakers",
    "clowns",
    "dancers",
    "doctors",
    "farmers",
    "gamblers",
    "hunters",
    "judges",
    "lawyers",
    "painters",
    "pilots",
    "poets",
    "priests",
    "runners",
    "sailors",
    "singers",
    "swimmers",
    "tailors",
    "teachers",
    "thieves",
    "twins",
    "waiters",
    "writers",
)
INVENTED = (
    "blims",
    "cruds",
    "dax",
    "fleps",
    "gorps",
    "grons",
    "hexels",
    "jalps",
    "klurs",
    "lommers",
    "morks",
    "nibs",
    "ploks",
    "quids",
    "rills",
    "snarps",
    "tovs",
    "umbrens",
    "vexes",
    "wugs",
    "yarps",
    "zims",
    "zorps",
    "brels",
)

SENTENCE = {"A": "All {} are {}.", "E": "No {} are {}.", "I": "Some {} are {}.", "O": "Some {} are not {}."}

MAX_INDIVIDUALS = 64
"""Longer counter-models are wrong unread; at most three individuals are ever needed."""


@dataclass(frozen=True, slots=True)
class Axes:
    """`premises` in the argument, whether their order is shuffled, whether words are invented, what is asked for."""

    premises: tuple[int, int]
    shuffled: bool
    invented: bool
    counter_model: bool


LEVELS: Mapping[int, Axes] = {
    1: Axes((2, 2), False, False, False),
    2: Axes((2, 2), True, False, False),
    3: Axes((2, 2), True, True, False),
    4: Axes((2, 2), True, False, True),
    5: Axes((2, 3), True, False, True),
    6: Axes((3, 3), True, False, True),
    7: Axes((3, 4), True, True, True),
    8: Axes((4, 4), True, True, True),
    9: Axes((4, 5), True, True, True),
    10: Axes((5, 5), True, True, True),
}


class Syllogism:
    """The family; see the module."""

    name = "syllogism"
    axes: Mapping[int, Mapping[str, Any]] = {level: asdict(axes) for level, axes in LEVELS.items()}

    def generate(self, seed: int, index: int, level: int) -> Sample:
        rng = stream(self.name, seed, index, level)
        axes = LEVELS[level]
        premises, conclusion = _argument(rng, axes)
        lines = [SENTENCE[form].format(subject, predicate) for form, subject, predicate in premises]
        lines.append("So: " + SENTENCE[conclusion[0]].format(*conclusion[1:]))
        invalid = '{"valid":false}'
        if axes.counter_model:
            invalid = '{"valid":false,"model":[[groups of one individual],...]}'
        lines.append(f'Groups may be empty. Does it follow? Answer in JSON: {{"valid":true}} or {invalid}.')
        answer = _gold(premises, conclusion, axes.counter_model)
        problem: dict[str, Any] = {"difficulty": difficulty(level), "premises": premises, "conclusion": conclusion}
        problem |= {"model_wanted": axes.counter_model}
        return make_sample(self, (seed, index, level), "\n".join(lines), compact(answer), problem)

    def verify(self, sample: Sample, answer: str) -> Score:
        premises, conclusion = _problem(sample)
        given = read_object(answer)
        parts = {"verdict": 0.0}
        if given is None or type(given.get("valid")) is not bool:
            return Score(0.0, parts)
        valid = counter_model(premises, conclusion) is None
        parts["verdict"] = float(given["valid"] == valid)
        if given["valid"] != valid:
            return Score(0.0, parts)
        if valid or not sample.metadata["model_wanted"]:
            return Score(float(set(given) == {"valid"}), parts)
        model = _individuals(given.get("model"))
        right = set(given) == {"valid", "model"} and model is not None
        score = RIGHT if right and is_counter_model(premises, conclusion, model or []) else WRONG
        return Score(score.value, parts)

    def identity(self, sample: Sample) -> str:
        """The premises in any order, E and I either way round, the conclusion, and whether a model is asked for."""
        premises, conclusion = _problem(sample)
        parts = [*sorted(map(_canonical, premises)), _canonical(conclusion), str(bool(sample.metadata["model_wanted"]))]
        return f"syllogism|{'|'.join(parts)}"


def _argument(rng: random.Random, axes: Axes) -> tuple[list[list[str]], list[str]]:
    """Half of the arguments are valid; an invalid one is a valid one with a statement changed: they look alike."""
    count = rng.randint(*axes.premises)
    terms = rng.sample(INVENTED if axes.invented else FAMILIAR, count + 1)
    valid = rng.random() < 0.5
    premises, conclusion = first_good(lambda: _attempt(rng, terms, valid), "syllogism")
    if axes.shuffled:
        rng.shuffle(premises)
    return premises, conclusion


def _attempt(rng: random.Random, terms: Sequence[str], valid: bool) -> tuple[list[list[str]], list[str]] | None:
    """An argument along the terms; None where it does not come out as wanted."""
    premises, conclusion = _chain(rng, terms)
    if not valid:
        _spoil(rng, rng.choice([*premises, conclusion]))
    return (premises, conclusion) if (counter_model(premises, conclusion) is None) == valid else None


def _chain(rng: random.Random, terms: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """A valid argument along the terms: (some or all), all, …, (all or no)."""
    some, no = rng.random() < 0.5, rng.random() < 0.5
    premises = [["A", a, b] for a, b in pairwise(terms)]
    if some:
        premises[0][0] = "I"
    if no:
        premises[-1][0] = "E"
    form = {(False, False): "A", (False, True): "E", (True, False): "I", (True, True): "O"}[some, no]
    conclusion = [form, terms[0], terms[-1]]
    for statement in [*premises, conclusion]:
        if statement[0] in "EI" and rng.random() < 0.5:
            statement[1:] = statement[:0:-1]
    return premises, conclusion


def _spoil(rng: random.Random, statement: list[str]) -> None:
    """Turns the statement round or gives it another form."""
    if rng.random() < 0.5:
        statement[1:] = statement[:0:-1]
    else:
        statement[0] = rng.choice([form for form in "AEIO" if form != statement[0]])


def _gold(premises: Sequence[Sequence[str]], conclusion: Sequence[str], with_model: bool) -> dict[str, Any]:
    model = counter_model(premises, conclusion)
    if model is None:
        return {"valid": True}
    return {"valid": False, "model": [sorted(one) for one in model]} if with_model else {"valid": False}


def _individuals(value: object) -> list[Individual] | None:
    if not isinstance(value, list) or len(value) > MAX_INDIVIDUALS:
        return None
    try:
        return [frozenset(strings(one)) for one in value]
    except ValueError:
        return None


def _problem(sample: Sample) -> tuple[list[list[str]], list[str]]:
    """(premises, conclusion) from the metadata; ValueError where it holds no argument."""
    premises = [strings(statement) for statement in sample.metadata["premises"]]
    conclusion = strings(sample.metadata["conclusion"])
    sound = all(len(one) == 3 and one[0] in SENTENCE for one in [*premises, conclusion])
    if not sound or not 1 <= len(premises) <= 8:
        raise ValueError("not an argument of categorical statements")
    return premises, conclusion


def _canonical(statement: Sequence[str]) -> str:
    form, *terms = statement
    return " ".join([form, *(sorted(terms) if form in "EI" else terms)])
