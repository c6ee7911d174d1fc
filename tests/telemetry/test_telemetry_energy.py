"""Energy is the trapezoid over measured power, and nothing else; workload states are told before they are guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.errors import UsageError
from stokehold.core.records import Reading, Source
from stokehold.telemetry.energy import EnergyMeter, joules_per_token
from stokehold.telemetry.readings import UNAVAILABLE
from stokehold.telemetry.workload import WorkloadSource, WorkloadState, guessed, told


def meter(*samples: tuple[float, Reading]) -> EnergyMeter:
    energy = EnergyMeter(max_gap_s=5.0)
    for at_s, reading in samples:
        energy.add(at_s, reading)
    return energy


def measured(watts: float) -> Reading:
    return Reading(watts, Source.MEASURED)


@given(st.floats(0, 1e4), st.floats(-10, 10), st.lists(st.floats(0.01, 4.9), min_size=1, max_size=30))
def test_a_linear_power_is_integrated_exactly(base_w: float, w_per_s: float, steps: list[float]) -> None:
    times = [0.0]
    for step in steps:
        times.append(times[-1] + step)
    energy = meter(*((t, measured(base_w + w_per_s * t)) for t in times))
    end = times[-1]
    assert energy.joules == pytest.approx(base_w * end + w_per_s * end * end / 2, abs=1e-6)
    assert energy.covered_s == pytest.approx(end)


def test_no_sensor_no_energy() -> None:
    assert meter((0.0, UNAVAILABLE), (1.0, UNAVAILABLE)).joules is None
    assert meter((0.0, measured(50.0))).joules is None
    assert meter((0.0, Reading(50.0, Source.ESTIMATED)), (1.0, Reading(50.0, Source.ESTIMATED))).joules is None


def test_holes_and_silences_are_not_bridged() -> None:
    silent = meter((0.0, measured(100.0)), (1.0, measured(100.0)), (2.0, UNAVAILABLE), (3.0, measured(100.0)))
    assert silent.joules == pytest.approx(100.0)
    assert silent.covered_s == pytest.approx(1.0)
    asleep = meter((0.0, measured(100.0)), (3600.0, measured(100.0)), (3601.0, measured(100.0)))
    assert asleep.joules == pytest.approx(100.0)


def test_joules_per_token_needs_both() -> None:
    assert joules_per_token(300.0, 100) == 3.0
    assert joules_per_token(None, 100) is None
    assert joules_per_token(300.0, 0) is None


@pytest.mark.parametrize(
    ("cpu", "gpu", "state"),
    [
        (81.0, None, WorkloadState.TRAINING_STEP),
        (5.0, 71.0, WorkloadState.TRAINING_STEP),
        (51.0, 10.0, WorkloadState.DATA_PREP),
        (None, 31.0, WorkloadState.DATA_PREP),
        (50.0, 30.0, WorkloadState.IDLE),
        (0.0, None, WorkloadState.IDLE),
    ],
)
def test_guess_from_utilisation(cpu: float | None, gpu: float | None, state: WorkloadState) -> None:
    workload = guessed(cpu, gpu)
    assert (workload.state, workload.source) == (state, WorkloadSource.UTILISATION)


def test_nothing_known_is_nothing_guessed() -> None:
    assert guessed(None, None).state is None
    assert guessed(None, None).source is WorkloadSource.UNKNOWN


def test_a_word_that_is_no_state_is_refused_with_the_states() -> None:
    assert told("eval", 7).step == 7
    with pytest.raises(UsageError, match="training_step, data_prep, eval, checkpoint, idle"):
        told("evaluating", None)
