"""The payload's numbers against their definitions, worked by hand or by the plain formula."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.records import Evaluation, Step, SuiteResult, SuiteState
from stokehold.supervisor import trends

LOSSES = st.lists(st.floats(0.001, 100), min_size=1, max_size=80)


def test_streaming_ce_by_hand() -> None:
    assert trends.streaming_ce([]) is None
    assert trends.streaming_ce([3.0]) == 3.0
    assert trends.streaming_ce([3.0, 1.0]) == pytest.approx(2.8)
    assert trends.streaming_ce([3.0, 1.0, 2.0]) == pytest.approx(2.72)


@given(LOSSES)
def test_streaming_ce_is_the_weighted_sum_and_stays_between_the_extremes(losses: list[float]) -> None:
    found = trends.streaming_ce(losses)
    weights = [0.9 ** (len(losses) - 1)] + [0.1 * 0.9 ** (len(losses) - 1 - i) for i in range(1, len(losses))]
    assert found == pytest.approx(math.fsum(w * x for w, x in zip(weights, losses, strict=True)))
    assert trends.smoothed(losses)[-1] == found


@given(LOSSES, st.floats(0.01, 10))
def test_five_hundred_steps_carry_the_whole_mean(before: list[float], scale: float) -> None:
    last = [scale * (1.5 + math.sin(number)) for number in range(500)]
    assert trends.streaming_ce([*before, *last]) == pytest.approx(trends.streaming_ce(last), rel=1e-12)


def test_variance_is_of_the_last_fifty() -> None:
    assert trends.loss_variance([1.0]) is None
    assert trends.loss_variance([1.0, 3.0]) == 1.0
    assert trends.loss_variance([1000.0] + [2.0] * 50) == 0.0


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [(2.0, 1.89, "improving"), (2.0, 1.91, "stable"), (2.0, 2.09, "stable"), (2.0, 2.11, "degrading")],
)
def test_loss_trend_compares_tens_at_five_percent(before: float, now: float, said: str) -> None:
    assert trends.loss_trend([9.0, *[before] * 10, *[now] * 10]) == said


def test_accuracy_trend_has_five_points_of_tolerance() -> None:
    assert trends.accuracy_trend([50.0] * 10 + [55.1] * 10) == "improving"
    assert trends.accuracy_trend([50.0] * 10 + [54.9] * 10) == "stable"
    assert trends.accuracy_trend([50.0] * 10 + [44.0] * 10) == "degrading"
    assert trends.accuracy_trend([50.0] * 19) == trends.loss_trend([1.0] * 19) == "insufficient_data"


def test_percentages() -> None:
    matches = [True] * 10 + [False] * 20 + [True] * 5
    assert trends.percent(matches, 20) == 25.0
    assert trends.percent(matches, 50) == pytest.approx(100 * 15 / 35)
    assert trends.percent([], 20) is None
    assert trends.running_percent([True, False, True], 2) == [100.0, 50.0, 50.0]


def test_rates_use_the_last_fifty_steps(make_step: Callable[..., Step]) -> None:
    steps = [make_step(1, tokens=10**6)] + [make_step(n, tokens=100, seconds=0.5) for n in range(2, 52)]
    assert trends.tokens_per_s(steps) == 200.0
    assert trends.seconds_per_step(steps) == 0.5
    assert trends.tokens_per_s([]) is None


def test_remaining_steps_extrapolate_the_share() -> None:
    assert trends.remaining_steps(25, 0.25) == 75
    assert trends.remaining_steps(10, 1.0) == 0
    assert trends.remaining_steps(10, 0.0) is trends.remaining_steps(10, None) is trends.remaining_steps(0, 0.5) is None


def test_pooling_weighs_by_items_and_leaves_out_what_was_not_measured() -> None:
    suites = {
        "a": SuiteResult("a", SuiteState.OK, n=10, exact=1.0, nll_per_token=1.0),
        "b": SuiteResult("b", SuiteState.OK, n=30, exact=0.0, parts={"ece": 0.2}),
        "c": SuiteResult("c", SuiteState.NO_DATA, n=0),
    }
    evaluation = Evaluation("e", "latest", "w", "f", suites, 1.0, "", "2026-01-01T00:00:00Z")
    assert trends.pooled(evaluation, "exact") == 0.25
    assert trends.pooled(evaluation, "nll_per_token") == 1.0
    assert trends.pooled(evaluation, "ece") == 0.2
