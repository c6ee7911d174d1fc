"""Judging: scorers, canaries, states, and numbers that are finite or absent."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.records import Completion, Message, Sample, SuiteState
from stokehold.evaluation.canaries import IMPOSSIBLE, canaries, examine
from stokehold.evaluation.judge import judge_suite, overall_state
from stokehold.evaluation.scorers import score, scorer_name
from stokehold.tasks.registry import draw


def item(name: str, gold: str, **metadata: Any) -> Sample:
    return Sample(id=name, messages=(Message("user", f"say {gold}"), Message("assistant", gold)), metadata=metadata)


def answer(sample: Sample, text: str, **facts: Any) -> Completion:
    done = Completion(sample.id, text, (1,), (-0.5,), "stop", gold_nll=1.0, gold_tokens=2)
    return replace(done, **facts)


def syllo(count: int) -> list[Sample]:
    return list(islice(draw("syllo", 2, count, 7, "holdout"), count))


@pytest.mark.parametrize(
    ("text", "value"), [("  blue\n", 1.0), ("blue", 1.0), ("Blue", 0.0), ("blue!", 0.0), ("", 0.0)]
)
def test_exact_compares_stripped_text(text: str, value: float) -> None:
    sample = item("a", "blue ")
    assert score(sample, answer(sample, text)).value == value


def test_contains_finds_the_gold_and_refuses_an_empty_one() -> None:
    sample = item("a", "blue", scorer="contains")
    assert score(sample, answer(sample, "it is blue.")).value == 1.0
    assert score(sample, answer(sample, "it is red.")).value == 0.0
    empty = item("a", " ", scorer="contains")
    assert score(empty, answer(empty, "anything")).value is None


def test_a_family_judges_its_own_items_and_a_users_group_name_is_no_family() -> None:
    sample = syllo(1)[0]
    assert scorer_name(sample) == "verifier:syllo"
    spaced = json.dumps(json.loads(sample.gold), indent=2)
    assert score(sample, answer(sample, spaced)).value == 1.0, "the verifier reads JSON, not spelling"
    assert score(item("a", "x", scorer="exact"), answer(item("a", "x"), "x")).value == 1.0
    assert scorer_name(item("a", "x", family="tickets")) == "exact"


@pytest.mark.parametrize("named", ["nonsense", "verifier:nonsense"])
def test_an_unknown_scorer_leaves_items_unscored_and_the_suite_broken(named: str) -> None:
    sample = item("a", "blue", scorer=named)
    result, scores = judge_suite("s", [sample], [answer(sample, "blue")])
    assert scores[0].value is None
    assert "nonsense" in str(scores[0].reason)
    assert result.state is SuiteState.BROKEN
    assert result.exact is None


def test_an_item_without_a_gold_answer_breaks_its_suite() -> None:
    sample = Sample("a", (Message("user", "and?"),))
    result, scores = judge_suite("s", [sample], [answer(sample, "")])
    assert scores[0].value is None
    assert result.state is SuiteState.BROKEN
    assert "no gold" in str(result.reason)


def test_a_verifier_that_raises_is_a_reason_not_an_exception() -> None:
    sample = item("a", "blue", scorer="verifier:syllo")
    found = score(sample, answer(sample, "{}"))
    assert found.value is None
    assert "verifier:syllo" in str(found.reason)


def test_readings_of_a_suite_that_mixes_right_wrong_and_unanswered() -> None:
    samples = [item(str(n), "blue", level=n % 2 + 1) for n in range(5)]
    completions = [
        answer(samples[0], "blue", gold_nll=2.0, gold_tokens=1),
        answer(samples[1], "red", gold_nll=1.0, gold_tokens=3),
        answer(samples[2], "blue", gold_nll=None, gold_tokens=None),
        answer(samples[3], "blue", gold_nll=None, gold_tokens=None),
        answer(samples[4], "", finish_reason="error", error="no room", gold_nll=None, gold_tokens=None),
    ]
    result, scores = judge_suite("s", samples, completions)
    assert (result.state, result.n, result.unscored) == (SuiteState.OK, 4, 1)
    assert result.exact == 0.75
    assert result.nll_per_token == pytest.approx((2.0 + 3.0) / 4), "weighted by tokens"
    assert result.by_level == {"1": {"exact": 1.0, "n": 2}, "2": {"exact": 0.5, "n": 2}}
    assert scores[4].reason == "no room"
    assert result.exact_ci is not None
    assert result.exact_ci[0] < 0.75 < result.exact_ci[1]


def test_parts_are_means_over_the_items_that_have_them() -> None:
    samples = syllo(4)
    golds = [answer(sample, sample.gold) for sample in samples]
    right, _ = judge_suite("s", samples, golds)
    half, _ = judge_suite("s", samples, [*golds[:2], answer(samples[2], "no"), answer(samples[3], "no")])
    assert right.exact == 1.0
    assert set(right.parts) == {"per_word", "format", "inventory"}
    assert all(value == 1.0 for value in right.parts.values())
    assert half.exact == 0.5
    assert half.parts["format"] == 0.5


def test_no_items_is_no_data_and_nothing_scored_is_broken() -> None:
    nothing, scores = judge_suite("s", [], [])
    assert (nothing.state, nothing.n, scores) == (SuiteState.NO_DATA, 0, [])
    sample = item("a", "blue")
    failed = answer(sample, "", finish_reason="error", error="no room", gold_nll=None)
    result, _ = judge_suite("s", [sample], [failed])
    assert result.state is SuiteState.BROKEN
    assert "no room" in str(result.reason)


def test_completions_of_other_items_break_the_suite() -> None:
    a, b = item("a", "blue"), item("b", "red")
    for completions in ([answer(b, "red"), answer(a, "blue")], [answer(a, "blue")]):
        result, scores = judge_suite("s", [a, b], completions)
        assert result.state is SuiteState.BROKEN
        assert [found.value for found in scores] == [None, None]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["gold_nll", "token_logprobs"])
def test_numbers_that_are_not_finite_break_the_suite_and_never_leave_it(bad: float, place: str) -> None:
    sample = item("a", "blue")
    facts: dict[str, Any] = {place: bad if place == "gold_nll" else (bad,)}
    result, _ = judge_suite("s", [sample], [answer(sample, "blue", **facts)])
    assert result.state is SuiteState.BROKEN
    assert (result.exact, result.exact_ci, result.nll_per_token) == (None, None, None)


def test_plain_text_is_judged_by_its_likelihood_alone() -> None:
    samples = [Sample(id=str(n), text="once upon a time") for n in range(3)]
    completions = [answer(sample, "", finish_reason="error", error="asks nothing") for sample in samples]
    result, scores = judge_suite("s", samples, completions)
    assert (result.state, result.n, result.exact) == (SuiteState.OK, 3, None)
    assert result.nll_per_token == 1.0
    assert all(found.value is None for found in scores)


def test_canaries_live_through_right_suites_and_die_of_a_wrong_gold() -> None:
    samples = [*syllo(3), item("a", "blue"), item("b", "", scorer="exact"), item("c", "x", scorer="contains")]
    assert examine(samples).dead is None
    assert [expected for _, expected in canaries(samples[0])] == [1.0, 0.0]
    spoiled = replace(samples[0], messages=(samples[0].messages[0], Message("assistant", "{}")))
    result, _ = judge_suite("s", [spoiled], [answer(spoiled, "{}")])
    assert result.state is SuiteState.BROKEN
    assert spoiled.id in str(result.reason)
    generous = item("d", IMPOSSIBLE)
    assert "impossible" in str(examine([generous]).dead)


def test_the_state_of_an_evaluation_is_that_of_its_worst_suite() -> None:
    def results(*states: SuiteState) -> SuiteState:
        sample = item("a", "blue")
        ok, _ = judge_suite("s", [sample], [answer(sample, "blue")])
        return overall_state(replace(ok, state=state) for state in states)

    assert results() is SuiteState.NO_DATA
    assert results(SuiteState.OK, SuiteState.NO_DATA) is SuiteState.OK
    assert results(SuiteState.OK, SuiteState.BROKEN) is SuiteState.BROKEN
    assert results(SuiteState.NO_DATA) is SuiteState.NO_DATA


@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), max_size=8))
def test_whatever_is_answered_every_number_is_finite_and_every_share_a_share(pairs: Sequence[tuple[str, str]]) -> None:
    samples = [item(str(n), gold, level=n % 3) for n, (gold, _) in enumerate(pairs)]
    completions = [answer(sample, text) for sample, (_, text) in zip(samples, pairs, strict=True)]
    result, scores = judge_suite("s", samples, completions)
    assert len(scores) == len(samples)
    assert result.state is (SuiteState.OK if pairs else SuiteState.NO_DATA)
    if pairs:
        assert result.exact == sum(gold.strip() == text.strip() for gold, text in pairs) / len(pairs)
        assert result.exact_ci is not None
        assert 0 <= result.exact_ci[0] <= result.exact <= result.exact_ci[1] <= 1
