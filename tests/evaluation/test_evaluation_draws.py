"""Drawn answers: the chance that one of k is right, by counting every choice of k, and what most answers agree on."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.records import Completion, Message, Sample
from stokehold.evaluation.draws import drawn_parts, pass_at_k


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_choices_that_hold_a_right_one(case: tuple[int, int, int]) -> None:
    drawn, right, k = case
    choices = list(combinations(range(drawn), k))
    share = sum(any(place < right for place in chosen) for chosen in choices) / len(choices)
    assert pass_at_k(right, drawn, k) == pytest.approx(share, abs=1e-12)


def item(name: str, gold: str) -> Sample:
    return Sample(name, (Message("user", "?"), Message("assistant", gold)))


def answers(sample: Sample, *texts: str | None) -> list[Completion]:
    """None is an answer that could not be given."""
    ends = ["error" if text is None else "stop" for text in texts]
    return [Completion(sample.id, text or "", (), (), end) for text, end in zip(texts, ends, strict=True)]


def test_shares_of_right_answers_and_of_right_majorities() -> None:
    first, second = item("a", "red"), item("b", "blue")
    draws = [answers(first, "red", " red ", "green", "blue"), answers(second, "red", "blue", "red", "green")]
    parts = drawn_parts([first, second], draws)
    assert parts["majority"] == 0.5
    assert parts["pass@1"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert parts["pass@2"] == pytest.approx((5 / 6 + 3 / 6) / 2)
    assert parts["pass@4"] == 1.0
    assert set(parts) == {"pass@1", "pass@2", "pass@4", "majority"}


def test_of_equally_frequent_answers_the_first_drawn_stands_for_the_majority() -> None:
    sample = item("a", "red")
    assert drawn_parts([sample], [answers(sample, "blue", "red")])["majority"] == 0.0
    assert drawn_parts([sample], [answers(sample, "red", "blue")])["majority"] == 1.0


def test_items_without_a_full_set_of_scored_draws_do_not_count() -> None:
    first, second = item("a", "red"), item("b", "blue")
    parts = drawn_parts([first, second], [answers(first, "red", "red"), answers(second, "blue", None)])
    assert parts == {"pass@1": 1.0, "pass@2": 1.0, "majority": 1.0}
    assert drawn_parts([second], [answers(second, None, None)]) == {}
    assert drawn_parts([], []) == {}
