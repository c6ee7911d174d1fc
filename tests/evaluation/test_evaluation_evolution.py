"""The statistics of a model's evolution, against scipy's, and the verdicts they lead to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stokehold.core.records import Evaluation, SuiteResult, SuiteState, Trained, Verdict
from stokehold.evaluation.bootstrap import bootstrap_interval
from stokehold.evaluation.evolution import (
    FEWEST_EVALUATIONS,
    WINDOW_EVALUATIONS,
    Direction,
    around,
    readings_of,
    shared_curve,
    taught,
    theil_sen,
    trend,
)
from stokehold.evaluation.paired import likelihood
from stokehold.evaluation.verdict import ItemReading

POINTS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(-50, 50).map(lambda n: n / 7)), min_size=3, max_size=50
).filter(lambda points: len({x for x, _ in points}) > 1)


@given(POINTS)
def test_slope_and_interval_are_scipys(points: list[tuple[int, float]]) -> None:
    x, y = zip(*points, strict=True)
    found, expected = theil_sen(x, y), stats.theilslopes(y, x, 0.95)
    assert found is not None
    assert found.value == pytest.approx(expected.slope)
    if not np.isnan(expected.low_slope):
        assert (found.low, found.high) == (pytest.approx(expected.low_slope), pytest.approx(expected.high_slope))


@given(POINTS, st.integers(-20, 20))
def test_a_line_added_to_the_points_is_added_to_the_slope(points: list[tuple[int, float]], slope: int) -> None:
    x, y = zip(*points, strict=True)
    before, after = theil_sen(x, y), theil_sen(x, [b + slope * a for a, b in points])
    assert before is not None
    assert after is not None
    assert after.value == pytest.approx(before.value + slope, abs=1e-9)


def test_no_slope_without_two_places() -> None:
    assert theil_sen([3, 3, 3], [1, 2, 3]) is None
    assert theil_sen([], []) is None


def test_the_paired_bootstrap_agrees_with_scipys() -> None:
    random = np.random.default_rng(4)
    tokens = random.integers(2, 20, 200)
    a, b = random.gamma(2, 0.5, 200), random.gamma(2, 0.45, 200)
    pairs = [
        (ItemReading(str(n), True, float(a[n]), int(tokens[n])), ItemReading(str(n), True, float(b[n]), int(tokens[n])))
        for n in range(200)
    ]
    found = likelihood(pairs)
    assert found is not None
    delta, (low, high) = found.delta, bootstrap_interval(found, 0)

    def difference(first: np.ndarray, second: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
        return ((second - first) * weights).sum(axis) / weights.sum(axis)

    expected = stats.bootstrap(
        (a, b, tokens), difference, paired=True, vectorized=True, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    width = expected.high - expected.low
    assert delta == pytest.approx(float(((b - a) * tokens).sum() / tokens.sum()))
    assert abs(low - expected.low) < 0.1 * width
    assert abs(high - expected.high) < 0.1 * width


def noisy(slope: float, n: int = WINDOW_EVALUATIONS, spread: float = 0.002) -> list[float]:
    random = np.random.default_rng(7)
    return [0.5 + slope * step / n + spread * float(random.standard_normal()) for step in range(n)]


@pytest.mark.parametrize(
    ("values", "rising", "direction"),
    [
        (noisy(0.2), True, Direction.IMPROVING),
        (noisy(-0.2), True, Direction.DECLINING),
        (noisy(-0.2), False, Direction.IMPROVING),
        (noisy(0.0), True, Direction.PLATEAU),
        (noisy(0.0, spread=0.1), True, Direction.INSUFFICIENT),
        (noisy(0.2, n=FEWEST_EVALUATIONS - 1), True, Direction.INSUFFICIENT),
        ([], True, Direction.INSUFFICIENT),
        ([0.25] * 50, True, Direction.PLATEAU),
    ],
)
def test_verdicts(values: list[float], rising: bool, direction: Direction) -> None:
    found = trend([10.0 * n for n in range(len(values))], values, rising=rising)
    assert found.direction is direction
    assert found.n == len(values)


def test_the_window_is_the_newest_fifty_and_no_choice() -> None:
    risen = [*noisy(5.0), *[5.5] * WINDOW_EVALUATIONS]
    found = trend(list(range(len(risen))), risen)
    assert (found.direction, found.n) == (Direction.PLATEAU, WINDOW_EVALUATIONS)


def test_plateaus_are_rarely_called_improving() -> None:
    random = np.random.default_rng(1)
    calls = [trend(range(50), list(0.5 + 0.05 * random.standard_normal(50))).direction for _ in range(300)]
    wrong = sum(call in (Direction.IMPROVING, Direction.DECLINING) for call in calls)
    assert wrong <= 28  # 5 % of 300, and three standard errors


def evaluation(step: int | None, how: str = "a", suites: tuple[str, ...] = ("s",), created: str = "1") -> Evaluation:
    results = {name: SuiteResult(name, SuiteState.OK, 1) for name in suites}
    return Evaluation(f"{how}{step}{created}", f"step:{step}", str(step), f"{how}-x", results, 1.0, "", created, step)


FILE = Trained("f", "j", "d", first=11, last=20, steps=10, tokens=100, seconds=1.0, joules=None)


def test_a_file_is_between_the_evaluations_at_its_ends() -> None:
    steps = [evaluation(step) for step in (0, 5, 10, 15, 20, 30)]
    pair = around(FILE, steps)
    assert pair.before is not None
    assert pair.after is not None
    assert (pair.before.step, pair.after.step, pair.foreign) == (10, 20, 0)


def test_what_else_was_trained_between_them_is_told() -> None:
    pair = around(FILE, [evaluation(5), evaluation(30)])
    assert pair.before is not None
    assert pair.after is not None
    assert (pair.before.step, pair.after.step, pair.foreign) == (5, 30, 15)


def test_a_file_still_in_training_is_judged_as_far_as_it_came() -> None:
    pair = around(FILE, [evaluation(10), evaluation(14)])
    assert pair.after is not None
    assert (pair.after.step, pair.foreign) == (14, 0)


def test_only_evaluations_of_the_same_engine_and_suite_are_paired() -> None:
    judged = [evaluation(8, "a"), evaluation(10, "b"), evaluation(20, "a"), evaluation(20, "a", ("other",), "2")]
    pair = around(FILE, judged, "s")
    assert pair.before is not None
    assert pair.after is not None
    assert (pair.before.step, pair.after.suites.keys()) == (8, {"s"})
    assert around(FILE, []) == around(FILE, [], "s")


def rows(right: int, n: int = 40) -> list[dict[str, object]]:
    known = {"suite": "s", "gold_nll": 1.0, "gold_tokens": 3}
    return [{**known, "sample_id": str(i), "score": 1.0 if i < right else 0.5} for i in range(n)]


def test_what_a_file_taught_is_paired() -> None:
    found = taught(readings_of(rows(5)), readings_of(rows(25)), 0.02)
    assert (found.verdict, found.delta_exact, found.items) == (Verdict.BETTER, 0.5, 40)
    assert readings_of(rows(5), "another") == []


def test_a_curve_is_over_the_items_that_all_judged() -> None:
    shared, exact, nll = shared_curve([readings_of(rows(10, 20)), readings_of(rows(10, 40))])
    assert (shared, exact, nll) == (20, [0.5, 0.5], [1.0, 1.0])
    assert shared_curve([]) == (0, [], [])
    assert shared_curve([readings_of(rows(1, 1)), []]) == (0, [None, None], [None, None])
