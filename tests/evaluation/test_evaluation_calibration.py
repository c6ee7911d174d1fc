"""Calibration against torchmetrics, relplot, scikit-learn and the definitions; what holds of any pairs."""

import json
import math
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import relplot
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import binary_calibration_error

from stokehold.core.identity import short_id
from stokehold.core.records import Completion
from stokehold.evaluation.calibration import (
    BINS,
    Calibration,
    calibrate,
    equal_mass_error,
    expected_error,
    fit_temperature,
    smooth_error,
)
from stokehold.evaluation.confidence import CALIBRATED, answer_spans, signals

Pairs = list[tuple[float, bool]]
PAIRS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def drawn(n: int, seed: int, bend: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and outcomes that are right with their power of `bend`: 1 is calibrated, more is too sure."""
    rng = np.random.default_rng(seed)
    sure = rng.beta(2, 1, n)
    return sure, (rng.random(n) < sure**bend).astype(float)


def split(pairs: Pairs) -> tuple[list[float], list[bool]]:
    return [sure for sure, _ in pairs], [right for _, right in pairs]


def calibrated(pairs: Pairs) -> Calibration:
    return calibrate(*split(pairs))


def completion(text: str, logprobs: list[float], ends: list[int] | None = None, reason: str = "stop") -> Completion:
    return Completion(
        sample_id="a",
        text=text,
        token_ids=tuple(range(len(logprobs))),
        token_logprobs=tuple(logprobs),
        finish_reason=reason,
        token_ends=tuple(ends or ()),
    )


def worded(pieces: list[tuple[str, float]]) -> Completion:
    """An answer of these pieces, one token each, with their probabilities; the last ends the turn."""
    ends = np.cumsum([len(text) for text, _ in pieces]).tolist()
    return completion("".join(text for text, _ in pieces), [math.log(p) for _, p in pieces], ends)


@pytest.mark.parametrize("bins", [1, 5, 10, 15])
@pytest.mark.parametrize("bend", [0.3, 1.0, 3.0])
def test_ece_is_that_of_torchmetrics(bins: int, bend: float) -> None:
    sure, right = drawn(777, bins, bend)
    expected = binary_calibration_error(torch.tensor(sure), torch.tensor(right, dtype=torch.int), n_bins=bins)
    assert expected_error(sure, right, np.linspace(0, 1, bins + 1)) == pytest.approx(float(expected), abs=1e-9)


def test_ece_over_the_six_bins_by_hand() -> None:
    pairs = [(0.1, False), (0.2, True), (0.79, True), (0.8, False), (0.94, True), (0.95, True), (1.0, False)]
    gaps = [0.1, 0.2 - 1, 0.79 - 1, 0.8 + 0.94 - 1, 0.95 + 1.0 - 1]
    found = calibrated(pairs)
    assert found.ece == pytest.approx(sum(map(abs, gaps)) / 7)
    assert [held.n for held in found.bins] == [1, 1, 0, 1, 2, 2]
    assert [(held.lower, held.upper) for held in found.bins] == list(pairwise(BINS))
    assert found.bins[2].accuracy is found.bins[2].confidence is found.bins[2].accuracy_ci is None


@pytest.mark.parametrize("n", [60, 400, 3000])
@pytest.mark.parametrize("bend", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_smooth_ece_is_that_of_relplot(n: int, bend: float, seed: int) -> None:
    sure, right = drawn(n, seed, bend)
    assert smooth_error(sure, right) == pytest.approx(relplot.smECE(sure, right), abs=1e-3)


def reflected(sure: np.ndarray, right: np.ndarray, width: float) -> float:
    """The definition: the integral over [0, 1] of the mean gap under a Gaussian folded at both ends, image by image."""
    points = (np.arange(4000) + 0.5) / 4000
    gap = np.zeros_like(points)
    for place, off in zip(sure, sure - right, strict=True):
        images = np.concatenate([2 * k + np.array([place, -place]) for k in range(-6, 7)])
        gap += off * np.exp(-(((points[:, None] - images) / width) ** 2) / 2).sum(1)
    return float(np.abs(gap).mean() / (width * math.sqrt(2 * math.pi)) / len(sure))


@pytest.mark.parametrize("pairs", [drawn(40, 1), drawn(40, 2, 6.0), (np.full(9, 0.97), np.zeros(9))])
def test_smooth_ece_is_the_width_at_which_the_definition_gives_that_width(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    found = smooth_error(*pairs)
    assert reflected(*pairs, found) == pytest.approx(found, abs=2e-4)


def test_equal_mass_by_hand_and_blind_to_the_order_of_equals() -> None:
    sure, right = np.array([0.1, 0.2, 0.6, 0.9]), np.array([0.0, 1.0, 1.0, 1.0])
    assert equal_mass_error(sure, right, 2) == pytest.approx((abs(0.3 - 1) + abs(1.5 - 2)) / 4)
    same = np.full(40, 0.7)
    outcome = np.repeat([1.0, 0.0], 20)
    assert equal_mass_error(same, outcome) == pytest.approx(0.2)


@given(PAIRS)
def test_brier_is_that_of_scikit_learn_and_its_parts_add_up(pairs: Pairs) -> None:
    sure, right = split(pairs)
    found = calibrated(pairs).brier
    assert found is not None
    assert found.score == pytest.approx(brier_score_loss([*right, True], [*sure, 1.0]) * (len(pairs) + 1) / len(pairs))
    parts = found.reliability - found.resolution + found.uncertainty + found.spread - found.association
    assert parts == pytest.approx(found.score, abs=1e-12)


@given(PAIRS, st.randoms(use_true_random=False))
def test_every_error_is_a_share_and_order_says_nothing(pairs: Pairs, rng: "np.random.Generator") -> None:
    found = calibrated(pairs)
    for error in (found.ece, found.ece_equal_mass, found.smooth_ece, found.brier and found.brier.score):
        assert error is not None
        assert 0 <= error <= 1
    assert found.ece is not None
    assert found.accuracy is not None
    assert found.confidence is not None
    assert found.ece >= abs(found.accuracy - found.confidence) - 1e-12
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    assert calibrated(shuffled) == found


@given(PAIRS)
def test_pairs_without_a_confidence_or_a_judgement_change_only_their_count(pairs: Pairs) -> None:
    sure, right = split(pairs)
    found = calibrate([None, *sure, 0.5, math.nan, math.inf, 1.5], [True, *right, None, False, True, False])
    assert found.left_out == 5
    assert asdict(found) | {"left_out": 0} == asdict(calibrated(pairs))


def test_nothing_gives_nothing_and_everything_goes_into_json() -> None:
    empty = calibrate([], [])
    assert (empty.n, empty.ece, empty.smooth_ece, empty.brier, empty.temperature) == (0, None, None, None, None)
    sure, right = drawn(200, 1)
    full = calibrate(sure.tolist(), [bool(one) for one in right], [str(k) for k in range(200)])
    assert full.temperature is not None
    assert json.loads(json.dumps(asdict(full), allow_nan=False))["temperature"]["fitted_on"] > 50


def test_calibrated_outcomes_show_little_error_and_bent_ones_much() -> None:
    good, bad = (calibrate(sure, right.astype(bool)) for sure, right in (drawn(20000, 3), drawn(20000, 3, 4.0)))
    for name in ("ece", "ece_equal_mass", "smooth_ece"):
        assert getattr(good, name) < 0.015, name
        assert getattr(bad, name) > 0.2, name
    for held in good.bins:
        assert held.accuracy_ci is not None
        assert held.confidence is not None
        assert held.accuracy_ci[0] - 0.01 < held.confidence < held.accuracy_ci[1] + 0.01


def test_the_temperature_that_bent_the_odds_is_found_and_undoes_them() -> None:
    honest, right = drawn(8000, 5)
    odds = np.log(honest / (1 - honest))
    sure, ids = 1 / (1 + np.exp(-2.5 * odds)), [f"item {k}" for k in range(8000)]
    found = fit_temperature(sure, right, ids)
    assert found is not None
    assert found.value == pytest.approx(2.5, rel=0.1)
    assert found.fitted_on + found.judged_on == 8000
    assert found.ece_before > 4 * found.ece_after
    # No other temperature makes the half it was fitted on more likely.
    half = [int(short_id("calibration", name), 16) % 2 == 0 for name in ids]
    loss = [
        log_loss(right[half], 1 / (1 + np.exp(-2.5 * odds[half] / t))) for t in np.array([0.98, 1, 1.02]) * found.value
    ]
    assert loss[1] < min(loss[0], loss[2])


def test_no_temperature_without_enough_or_without_both_outcomes() -> None:
    sure, right = drawn(300, 6)
    names = [str(k) for k in range(300)]
    assert fit_temperature(sure, right, names) is not None
    assert fit_temperature(sure[:30], right[:30], names[:30]) is None
    assert fit_temperature(sure, np.ones(300), names) is None
    assert calibrate(sure, right.astype(bool)).temperature is None


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=40, max_size=120))
def test_a_temperature_is_within_its_bounds_whatever_the_pairs(pairs: Pairs) -> None:
    found = calibrate(*split(pairs), [str(k) for k in range(len(pairs))]).temperature
    assert found is None or (0.01 <= found.value <= 100.0 and 0 <= found.ece_after <= 1)


def test_signals_by_hand() -> None:
    done = worded([("the ", 0.5), ("sea", 0.25), (" is blue", 1.0), ("", 0.5)])
    draws = [completion(text, [0.0]) for text in ("the sea is blue", " the sea is blue\n", "red")]
    found = signals(done, [*draws, completion("", [], reason="error")])
    assert set(found) == {"sequence_mean", "minimum_token", "answer_span", "self_consistency"}
    assert found["sequence_mean"] == pytest.approx((0.5 * 0.25 * 0.5) ** 0.25)
    assert found["minimum_token"] == pytest.approx(0.25)
    assert found["answer_span"] == pytest.approx((0.5 * 0.25) ** (1 / 3))
    assert found["self_consistency"] == pytest.approx(2 / 3)
    assert CALIBRATED in found


def test_the_answer_span_leaves_thoughts_keys_and_units_out() -> None:
    thought = worded([("<think>", 0.1), ("well </think>", 0.1), ("\n", 0.1), ("red", 0.8), ("", 0.1)])
    assert signals(thought)["answer_span"] == pytest.approx(0.8)
    fields = worded([('{"a": ', 0.1), ('"x"', 0.5), (', "b": ', 0.1), ("-2.5", 0.5), (', "c": ', 0.1), ("true}", 0.5)])
    assert signals(fields, scorer="json_fields")["answer_span"] == pytest.approx(0.5)
    number = worded([("3 + 4 is ", 0.1), ("1,0", 0.4), ("07.5", 0.9), (" kg", 0.1)])
    assert signals(number, scorer="numeric")["answer_span"] == pytest.approx(math.sqrt(0.4 * 0.9))


def test_what_a_completion_does_not_hold_is_none() -> None:
    silent = signals(completion("", [], reason="error"), [completion("a", [0.0])])
    assert set(silent.values()) == {None}
    plain = signals(completion("red", [-0.1, -0.2]))
    assert plain["answer_span"] is plain["self_consistency"] is None
    assert plain["sequence_mean"] == pytest.approx(math.exp(-0.15))
    broken = signals(completion("red", [-0.1, -math.inf], [2, 3]))
    assert set(broken.values()) == {None}


@given(st.text(max_size=200), st.sampled_from(["exact", "numeric", "json_fields"]))
def test_spans_lie_inside_the_text_and_do_not_overlap(text: str, scorer: str) -> None:
    spans = answer_spans(text, scorer)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert bool(spans) == bool(text.rpartition("</think>")[2].strip())


@given(
    st.lists(st.tuples(st.text(max_size=5), st.floats(-30, 0)), min_size=1, max_size=20),
    st.sampled_from(["exact", "numeric", "json_fields"]),
)
def test_signals_are_shares_and_the_least_is_the_least(pieces: list[tuple[str, float]], scorer: str) -> None:
    found = signals(worded([(text, math.exp(value)) for text, value in pieces]), scorer=scorer)
    assert found["minimum_token"] is not None
    for name in ("sequence_mean", "answer_span"):
        value = found[name]
        assert value is None or found["minimum_token"] - 1e-12 <= value <= 1
