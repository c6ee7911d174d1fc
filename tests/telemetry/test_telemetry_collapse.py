"""Collapses found in replayed logs of a (simulated) throttling card, and the look-alikes that are none."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.records import Source
from stokehold.telemetry.analysis import Derived, SessionAnalysis
from stokehold.telemetry.collapse import CollapseRule, decayed
from stokehold.telemetry.replay import ReplayedSensors

Row = dict[str, object]
ONSET_S = 120.0


def card_log(
    *,
    hz: float = 1.0,
    seconds: float = 200.0,
    onset_s: float = ONSET_S,
    unrest_s: float = 60.0,
    c_per_s: float = 0.12,
    power_w: float | None = 192.0,
    power_source: str = "measured",
    base_pct: float = 98.0,
    start_c: float = 55.0,
    surge: float = 1.0,
) -> list[Row]:
    """A card that warms steadily through a whole-degree sensor and, from the onset, swings its utilisation.

    With a `surge` it draws that many times its power instead.
    """
    rows: list[Row] = []
    for i in range(int(seconds * hz)):
        t = i / hz
        swinging = onset_s <= t < onset_s + unrest_s
        rows.append(
            {
                "monotonic_s": 1000.0 + t,
                "device": "gpu0",
                "utilisation_pct": base_pct - (36.0 if swinging and surge == 1.0 and i % 2 else 0.0),
                "power_w": power_w * surge if power_w is not None and swinging else power_w,
                "power_w_source": power_source if power_w is not None else None,
                "temperature_c": float(round(start_c + c_per_s * t)),
                "rated_power_w": 200.0,
                "temperature_limit_c": 83.0,
            }
        )
    return rows


def replay(rows: list[Row]) -> tuple[list[Derived], SessionAnalysis]:
    analysis = SessionAnalysis()
    return [analysis.observe(tick)[0] for tick in ReplayedSensors.from_rows(rows).ticks()], analysis


def collapses(rows: list[Row]) -> int | None:
    return replay(rows)[1].summary(0)["collapses"]["gpu0"]


@pytest.mark.parametrize("hz", [1.0, 2.0, 4.0])
def test_a_throttling_card_collapses_once_whatever_the_sampling_rate(hz: float) -> None:
    derived, analysis = replay(card_log(hz=hz))
    first = next(i for i, d in enumerate(derived) if d.collapsed) / hz
    assert ONSET_S + 7.0 <= first <= ONSET_S + 14.0
    assert analysis.summary(0)["collapses"] == {"gpu0": 1}
    assert not derived[-1].collapsed


def test_twice_the_power_for_the_same_work_is_a_collapse() -> None:
    assert collapses(card_log(power_w=96.0, surge=2.0, unrest_s=20.0)) == 1


def test_two_separate_drops_are_two() -> None:
    rows = card_log(seconds=120.0, onset_s=80.0, unrest_s=20.0, c_per_s=0.1)
    again = [{**row, "monotonic_s": float(row["monotonic_s"]) + 120.0} for row in rows]  # type: ignore[arg-type]
    for row in again:
        row["temperature_c"] = float(row["temperature_c"]) + 12.0  # type: ignore[arg-type]
    assert collapses([*rows, *again]) == 2


LOOK_ALIKES: dict[str, Callable[[], list[Row]]] = {
    "steady": lambda: card_log(unrest_s=0.0),
    "too short": lambda: card_log(power_w=96.0, surge=2.0, unrest_s=4.0),
    "before warm-up": lambda: card_log(onset_s=20.0, unrest_s=35.0),
    "not heating": lambda: card_log(c_per_s=0.0),
    "one tick of heat": lambda: card_log(c_per_s=0.004),
    "cooling": lambda: card_log(c_per_s=-0.1),
    "no load": lambda: card_log(base_pct=50.0, power_w=100.0),
    "no evidence": lambda: card_log(power_w=150.0, start_c=40.0),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alikes_are_no_collapse(name: str) -> None:
    assert collapses(LOOK_ALIKES[name]()) == 0


def test_without_power_the_count_is_unknown_not_zero() -> None:
    assert collapses(card_log(power_w=None)) is None


def test_estimated_power_is_marked_in_the_summary() -> None:
    summary = replay(card_log(power_source=Source.ESTIMATED))[1].summary(0)
    assert summary["rle_degenerate"] == {"gpu0": True}
    assert summary["energy_j"] is None
    assert summary["max_power_w"] == {"gpu0": None}


def test_a_hole_in_the_log_is_not_a_lasting_drop() -> None:
    low = range(120, 126)
    rows = [row for i, row in enumerate(card_log()) if i < 126 or i >= 140]
    derived, _ = replay(rows)
    assert not any(derived[i].collapsed for i in (*low, 126, 127, 128, 129, 130))


@given(st.floats(1e-3, 10), st.floats(0, 300), st.floats(0, 300))
def test_peak_decay_depends_on_time_not_on_ticks(peak: float, first_s: float, second_s: float) -> None:
    rule = CollapseRule()
    assert decayed(decayed(peak, first_s, rule), second_s, rule) == pytest.approx(
        decayed(peak, first_s + second_s, rule)
    )
    assert decayed(peak, 10.0, rule) == pytest.approx(0.98 * peak)
