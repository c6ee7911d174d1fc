"""Every family passes its self-test at every level, and the self-test finds each fault it is for."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stokehold.core.records import Sample, Score
from stokehold.tasks.family import LEVELS, Family
from stokehold.tasks.registry import FAMILIES, get_family, row
from stokehold.tasks.selftest import DEEP, PROBLEMS, self_test
from stokehold.tasks.sequence import NumberSequence

NAMES = sorted(FAMILIES)
PLACES = st.tuples(st.integers(-(2**40), 2**40), st.integers(0, 10**9), st.sampled_from(list(LEVELS)))


@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_fit_to_train_and_to_gate(name: str) -> None:
    assert self_test(name) == []
    assert self_test(get_family(name)) == []


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(NAMES), PLACES)
def test_generation_depends_on_its_place_only(name: str, place: tuple[int, int, int]) -> None:
    first, again = (get_family(name).generate(*place) for _ in range(2))
    assert first == again
    assert row(first) == row(again)
    assert get_family(name).verify(first, first.gold).value == 1.0


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), PLACES, st.text() | st.sampled_from(["", "NaN", "-0", "[[", '{"a":1e999}', "9" * 5000]))
def test_other_text_is_wrong_and_never_an_exception(name: str, place: tuple[int, int, int], answer: str) -> None:
    sample = get_family(name).generate(*place)
    if answer.strip().lower() != sample.gold:
        assert get_family(name).verify(sample, answer).value == 0.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["solutions", "valid", "model", "answer", "ans_num", "Ann"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), PLACES, JSON)
def test_any_json_is_judged_without_an_exception(name: str, place: tuple[int, int, int], value: Any) -> None:
    score = get_family(name).verify(get_family(name).generate(*place), json.dumps(value))
    assert score.value in (0.0, 1.0)
    assert all(0.0 <= part <= 1.0 for part in score.parts.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", [None, 5, 1.5, True, ["a"], {"a": 1}, b"bytes"])
def test_an_answer_that_is_not_text_is_wrong(name: str, answer: Any) -> None:
    for level in (1, 10):
        assert get_family(name).verify(get_family(name).generate(0, 0, level), answer).value == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_deep_and_huge_answers_are_wrong(name: str) -> None:
    sample = get_family(name).generate(0, 0, 4)
    for answer in (DEEP, '{"a":' * 5000 + "1" + "}" * 5000, "1" * 150_000, '[{"solutions":' * 9000, " " * 300_000):
        assert get_family(name).verify(sample, answer).value == 0.0


class Wrong(NumberSequence):
    """A family with one fault, chosen by name; else a number sequence."""

    def __init__(self, fault: str) -> None:
        self.fault, self.calls = fault, itertools.count()

    def generate(self, seed: int, index: int, level: int) -> Sample:
        if self.fault == "generation raised":
            raise ZeroDivisionError
        moved = next(self.calls) if self.fault == "generation is not deterministic" else 0
        sample = super().generate(seed + moved, index, level)
        if self.fault == "split 'test'":
            return Sample(sample.id, sample.messages, metadata={**sample.metadata, "split": "test"})
        return sample

    def verify(self, sample: Sample, answer: str) -> Score:
        gold = answer == sample.gold
        faults: Mapping[str, float] = {
            "gold": 0.5 if gold else 0.0,
            "garbage": 1.0,
            "empty": 1.0 if not answer else float(gold),
            "scored differently": 1.0 if gold else next(self.calls) % 2 * 1.0,
        }
        if self.fault == "raised" and not gold:
            raise ValueError(answer)
        return Score(faults.get(self.fault, float(gold)))


FAULTS = [
    "generation raised",
    "generation is not deterministic",
    "split 'test'",
    "gold",
    "garbage",
    "empty",
    "scored differently",
    "raised",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_self_test_finds_what_is_wrong(fault: str) -> None:
    family: Family = Wrong(fault)
    found = self_test(family)
    assert len(found) >= PROBLEMS * len(LEVELS)
    assert all(line.startswith("sequence level") for line in found)
    assert any(fault in line for line in found)


def test_the_self_test_finds_nothing_where_nothing_is_wrong() -> None:
    assert self_test(Wrong("none")) == []
