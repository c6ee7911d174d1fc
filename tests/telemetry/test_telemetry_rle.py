"""RLE is the formula it claims to be, stays in its ranges, and is null where a number is missing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.records import Reading, Source
from stokehold.telemetry.readings import UNAVAILABLE
from stokehold.telemetry.rle import Rle, Slope, rle, sigma, slope, t_sustain_s

percent = st.floats(0, 100)
window = st.lists(percent, min_size=2, max_size=10)
watts = st.floats(0.1, 1500)
celsius = st.floats(-20, 130)
steepness = st.floats(-5, 5)


def measured(value: float) -> Reading:
    return Reading(value, Source.MEASURED)


BUSY, DRAWN, WARM = measured(90), measured(150), measured(70)
HEATING = Slope(0.1, 20.0)


def compute(
    utilisation: Reading = BUSY,
    power: Reading = DRAWN,
    temperature: Reading = WARM,
    rated: float = 200.0,
    limit: float = 83.0,
    recent: list[float] | None = None,
    heat: Slope | None = HEATING,
) -> Rle:
    return rle(
        utilisation,
        power,
        temperature,
        rated_power_w=rated,
        temperature_limit_c=limit,
        recent_utilisation_pct=[80.0, 90.0] if recent is None else recent,
        temperature_slope=heat,
    )


def test_worked_example() -> None:
    now = compute()
    assert now.eta == pytest.approx(0.9)
    assert now.alpha == pytest.approx(0.75)
    assert now.sigma == pytest.approx(1 / 6)
    assert now.t_sustain_s == pytest.approx(130.0)
    assert now.rle == pytest.approx(0.9 * (1 / 6) / (0.75 * (1 + 1 / 130)))
    assert not now.degenerate


@given(percent, window, watts, watts, celsius, celsius, steepness)
def test_formula_and_ranges(
    use: float, recent: list[float], power: float, rated: float, temperature: float, limit: float, heat: float
) -> None:
    now = compute(measured(use), measured(power), measured(temperature), rated, limit, recent, Slope(heat, 20.0))
    assert None not in (now.eta, now.alpha, now.sigma, now.t_sustain_s, now.e_th, now.e_pw, now.rle)
    assert 0 <= now.eta <= 1
    assert now.alpha > 0
    assert 0 < now.sigma <= 1
    assert 1 <= now.t_sustain_s <= 600
    assert now.sigma / 2 <= now.e_th < now.sigma
    assert now.e_pw >= 0
    direct = now.eta * now.sigma / (now.alpha * (1 + 1 / now.t_sustain_s))
    assert math.isclose(now.rle, direct, rel_tol=1e-12, abs_tol=1e-300)


@given(percent.filter(lambda u: u > 1e-6), window, st.floats(1, 1000), celsius)
def test_power_estimated_from_utilisation_says_nothing_and_is_marked(
    use: float, recent: list[float], rated: float, temperature: float
) -> None:
    estimated = Reading(rated * use / 100.0, Source.ESTIMATED)
    now = compute(measured(use), estimated, measured(temperature), rated, recent=recent)
    assert now.e_pw == pytest.approx(1.0)
    assert now.rle == pytest.approx(now.e_th)
    assert now.degenerate


@given(window, st.floats(1, 1000), st.floats(1.01, 3))
def test_more_power_for_the_same_work_is_worth_less(recent: list[float], power: float, factor: float) -> None:
    less = compute(power=measured(power), recent=recent)
    more = compute(power=measured(power * factor), recent=recent)
    assert more.rle == pytest.approx(less.rle / factor)


def test_no_power_sensor_no_alpha_and_no_rle() -> None:
    now = compute(power=UNAVAILABLE)
    assert (now.alpha, now.e_pw, now.rle) == (None, None, None)
    assert now.e_th is not None
    assert not now.degenerate


@pytest.mark.parametrize(
    "missing",
    [
        {"utilisation": UNAVAILABLE},
        {"temperature": UNAVAILABLE},
        {"heat": None},
        {"recent": [90.0]},
        {"power": measured(0.0)},
        {"power": measured(5e-324), "rated": 1e6},
    ],
    ids=["utilisation", "temperature", "slope", "history", "zero watts", "vanishing watts"],
)
def test_a_missing_part_makes_rle_null_never_a_number(missing: dict[str, object]) -> None:
    assert compute(**missing).rle is None  # type: ignore[arg-type]


@given(st.lists(percent, min_size=2, max_size=10), st.floats(-50, 50))
def test_steadiness_ignores_level_and_order(use: list[float], shift: float) -> None:
    assert sigma([u + shift for u in use]) == pytest.approx(sigma(use), rel=1e-6)
    assert sigma(list(reversed(use))) == pytest.approx(sigma(use))


def test_only_perfect_steadiness_is_one() -> None:
    assert sigma([40.0] * 10) == 1.0
    assert sigma([40.0] * 9 + [41.0]) < 1.0
    assert sigma([40.0]) is None


@given(celsius, celsius, st.floats(0.001, 5), st.floats(0.001, 5))
def test_steeper_heating_leaves_no_more_time(temperature: float, limit: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    if temperature <= limit:
        assert t_sustain_s(temperature, limit, high) <= t_sustain_s(temperature, limit, low)
    else:
        assert t_sustain_s(temperature, limit, high) == 1.0


def test_cooling_leaves_all_the_time() -> None:
    assert t_sustain_s(60, 83, -3.0) == 600.0


@given(celsius, st.floats(-2, 2), st.floats(0, 1e6), st.integers(15, 60))
def test_regression_recovers_a_line(start_c: float, c_per_s: float, start_s: float, seconds: int) -> None:
    found = slope([(start_s + t, start_c + c_per_s * t) for t in range(seconds)])
    assert found is not None
    assert found.c_per_s == pytest.approx(c_per_s, abs=1e-6)
    assert 10 <= found.span_s <= 30


def test_regression_looks_back_thirty_seconds_and_wants_ten() -> None:
    flat_then_hot = [(float(t), 50.0) for t in range(100)] + [(100.0 + t, 50.0 + t) for t in range(40)]
    found = slope(flat_then_hot)
    assert found is not None
    assert found.c_per_s == pytest.approx(1.0)
    assert slope(flat_then_hot[:9]) is None
    assert slope([(0.0, 50.0), (20.0, 60.0)]) is None
    assert slope([]) is None


@given(st.integers(10, 30), st.data(), st.floats(30, 80))
def test_one_tick_of_a_whole_degree_sensor_is_not_heating(seconds: int, data: st.DataObject, base: float) -> None:
    at = data.draw(st.integers(1, seconds))
    found = slope([(float(t), base + (t >= at)) for t in range(seconds + 1)])
    assert found is not None
    assert found.c_per_s > 0
    assert not found.heating


def test_a_real_ramp_through_a_whole_degree_sensor_is_heating() -> None:
    found = slope([(float(t), float(round(60 + 0.12 * t))) for t in range(31)])
    assert found is not None
    assert found.heating
    assert found.c_per_s == pytest.approx(0.12, abs=0.03)
