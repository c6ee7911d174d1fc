"""The payload's numbers against their definitions, worked by hand or by the plain formula."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.records import Evaluation, Step, SuiteResult, SuiteState
from stokehold.supervisor import trends

FIRST = Step(1, 0, "train-a", "d", 1.0, {}, 1e-3, 1.0, 100, 50, 4, 0.5, None, "f", "2026-01-01T00:00:00.000Z")
Make = Callable[..., Step]
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


def test_rates_use_the_last_fifty_steps(make_step: Make) -> None:
    steps = [make_step(1, tokens=10**6)] + [make_step(n, tokens=100, seconds=0.5) for n in range(2, 52)]
    assert trends.tokens_per_s(steps) == 200.0
    assert trends.tokens_per_s([]) is None
    assert trends.tokens_per_s([make_step(1, seconds=0.0)]) is None


def test_a_forecast_by_hand(make_step: Make) -> None:
    steps = [make_step(1, examples=4, seconds=1.0), make_step(2, examples=4, seconds=3.0)]
    found = trends.forecast(steps, examples=40)
    assert found is not None
    assert (found.steps, found.seconds) == (10, 20.0), "0.5 s a row, 4 rows a step"
    assert found.error_seconds == pytest.approx(math.sqrt(2 * (10 + 10**2 / 2)))
    alone = trends.forecast(steps[:1], examples=1)
    assert alone == trends.Forecast(1, 0.25, None), "a part of a step is a step; one step has no spread"
    assert trends.forecast(steps, examples=0) == trends.Forecast(0, 0.0, 0.0)
    assert trends.forecast([], 5) is trends.forecast([make_step(1, examples=0)], 5) is None


def test_rows_that_take_their_time_leave_no_error(make_step: Make) -> None:
    """Steps of unlike length are no spread where the seconds follow the rows."""
    steps = [make_step(n, examples=n, seconds=0.5 * n) for n in range(1, 9)]
    found = trends.forecast(steps, examples=100)
    assert found is not None
    assert (found.seconds, found.error_seconds) == (50.0, pytest.approx(0.0))


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0.01, 10)), min_size=2, max_size=60), st.integers(0, 10**6))
def test_a_forecast_is_in_the_unit_of_its_seconds(shape: list[tuple[int, float]], examples: int) -> None:
    def steps(unit: float) -> list[Step]:
        return [replace(FIRST, step=n, examples=rows, seconds=unit * s) for n, (rows, s) in enumerate(shape, start=1)]

    plain, scaled = trends.forecast(steps(1.0), examples), trends.forecast(steps(8.0), examples)
    assert plain is not None
    assert scaled is not None
    assert scaled.steps == plain.steps
    assert scaled.seconds == pytest.approx(8 * plain.seconds)
    assert scaled.error_seconds == pytest.approx(8 * (plain.error_seconds or 0.0))
    assert trends.forecast(steps(1.0), 2 * examples + 1).seconds > plain.seconds  # type: ignore[union-attr]


def test_two_thirds_of_runs_end_within_one_error() -> None:
    """Independent steps of 1 to 8 rows, each with noise of its own; 400 files, always the same ones."""
    chance = random.Random(5)
    within = 0
    for _ in range(400):
        drawn = [(chance.randint(1, 8), chance.gammavariate(9.0, 0.1)) for _ in range(400)]
        steps = [replace(FIRST, step=n, examples=r, seconds=r * s) for n, (r, s) in enumerate(drawn[:50], start=1)]
        coming = trends.forecast(steps, sum(rows for rows, _ in drawn[50:]))
        assert coming is not None
        assert coming.error_seconds is not None
        within += abs(sum(rows * s for rows, s in drawn[50:]) - coming.seconds) < coming.error_seconds
    assert 0.6 < within / 400 < 0.76, "a standard error holds 68 %"


def test_pooling_weighs_by_items_and_leaves_out_what_was_not_measured() -> None:
    suites = {
        "a": SuiteResult("a", SuiteState.OK, n=10, exact=1.0, nll_per_token=1.0),
        "b": SuiteResult("b", SuiteState.OK, n=30, exact=0.0),
        "c": SuiteResult("c", SuiteState.NO_DATA, n=0),
    }
    evaluation = Evaluation("e", "latest", "w", "f", suites, 1.0, "", "2026-01-01T00:00:00Z")
    assert trends.pooled(evaluation, "exact") == 0.25
    assert trends.pooled(evaluation, "nll_per_token") == 1.0
