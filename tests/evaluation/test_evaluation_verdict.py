"""The verdict: intervals and tests against scipy, and what each kind of evidence leads to."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from stokehold.core.records import Verdict
from stokehold.evaluation.bootstrap import bootstrap_interval
from stokehold.evaluation.metrics import mean, weighted_mean, wilson
from stokehold.evaluation.paired import likelihood
from stokehold.evaluation.power import paired_share_interval
from stokehold.evaluation.significance import mcnemar_exact
from stokehold.evaluation.verdict import ItemReading, compare, items_needed

MARGIN = 0.02


def readings(n: int, share: float, seed: int, shift: float = 0.0, noise: float = 0.0) -> list[ItemReading]:
    """`n` items of equal difficulty in every call; `share` of them right; likelihood moved by `shift`."""
    items = np.random.default_rng(0)
    base, tokens = items.gamma(2.0, 0.4, n), items.integers(4, 60, n)
    own = np.random.default_rng(seed)
    right, jitter = own.random(n) < share, own.normal(0, 1, n) * noise
    return [
        ItemReading(str(k), bool(right[k]), max(0.0, float(base[k] + shift + jitter[k])), int(tokens[k]))
        for k in range(n)
    ]


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert mcnemar_exact(lost, gained) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_stays_exact_where_powers_leave_floats() -> None:
    assert mcnemar_exact(3000, 3000) == 1.0
    assert mcnemar_exact(2850, 3150) == pytest.approx(binomtest(2850, 6000, 0.5).pvalue, rel=1e-9)


@given(st.integers(1, 2000), st.data())
def test_wilson_agrees_with_scipy(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    expected = binomtest(k, n).proportion_ci(0.95, "wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_nothing_has_no_interval_and_no_mean() -> None:
    assert wilson(0, 0) is None
    assert mean([]) is None
    assert mean([1.0, math.nan]) is None
    assert weighted_mean([(1.0, 0.0)]) is None
    assert weighted_mean([(math.inf, 1.0)]) is None
    assert weighted_mean([(1.0, 1.0), (4.0, 2.0)]) == 3.0


def test_the_paired_interval_covers_the_true_difference() -> None:
    random, hits, runs, n = np.random.default_rng(1), 0, 2000, 60
    for _ in range(runs):
        lost, gained, _ = random.multinomial(n, [0.10, 0.18, 0.72])
        low, high = paired_share_interval(lost, gained, n)
        hits += low <= 0.08 <= high
    assert 0.93 < hits / runs < 0.985


def test_agreement_on_few_items_proves_little() -> None:
    low, high = paired_share_interval(0, 0, 10)
    assert low == -high
    assert high > 0.2


def test_the_bootstrap_is_centred_and_as_wide_as_the_normal_approximation() -> None:
    a, b = readings(300, 0.5, 1, noise=0.3), readings(300, 0.5, 2, shift=0.05, noise=0.3)
    pairs = list(zip(a, b, strict=True))
    found = likelihood(pairs)
    assert found is not None
    delta, (low, high) = found.delta, bootstrap_interval(found, seed=3)
    tokens = np.array([x.gold_tokens for x in a], dtype=float)
    gaps = np.array([(y.gold_nll or 0) - (x.gold_nll or 0) for x, y in pairs])
    assert delta == pytest.approx(float((gaps * tokens).sum() / tokens.sum()))
    spread = math.sqrt(float((((gaps - delta) * tokens) ** 2).sum())) / float(tokens.sum())
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    assert (low, high) == bootstrap_interval(found, seed=3)
    assert (low, high) != bootstrap_interval(found, seed=4)


def test_more_right_is_better_and_fewer_is_worse() -> None:
    a, b = readings(200, 0.3, 1), readings(200, 0.7, 2)
    up, down = compare(a, b, MARGIN), compare(b, a, MARGIN)
    assert (up.verdict, down.verdict) == (Verdict.BETTER, Verdict.WORSE)
    assert up.items == 200
    assert up.p_value is not None
    assert up.p_value < 1e-6
    assert up.delta_exact == -(down.delta_exact or 0)


def test_likelihood_speaks_where_correctness_is_silent() -> None:
    a = readings(60, 0.0, 1, noise=0.05)
    better, worse = readings(60, 0.0, 2, -0.1, 0.05), readings(60, 0.0, 3, 0.1, 0.05)
    assert compare(a, better, MARGIN).verdict is Verdict.BETTER
    found = compare(a, worse, MARGIN)
    assert found.verdict is Verdict.WORSE
    assert found.delta_nll_ci is not None
    assert 0 < found.delta_nll_ci[0] < (found.delta_nll_per_token or 0) < found.delta_nll_ci[1]


def test_correctness_outranks_likelihood() -> None:
    a = [replace(item, exact=False) for item in readings(60, 0.0, 1)]
    b = [replace(item, exact=True) for item in readings(60, 1.0, 2, shift=0.5)]
    assert compare(a, b, MARGIN).verdict is Verdict.BETTER
    assert compare(b, a, MARGIN).verdict is Verdict.WORSE


def test_likelihood_against_a_visible_but_insignificant_loss_is_inconclusive() -> None:
    a, b = readings(40, 0.0, 1), readings(40, 0.0, 2, shift=-0.1)
    a = [replace(item, exact=k < 3) for k, item in enumerate(a)]
    found = compare(a, b, MARGIN)
    assert found.p_value is not None
    assert found.p_value > 0.05
    assert found.verdict is Verdict.INCONCLUSIVE


def test_the_same_readings_are_equivalent_and_few_alike_ones_are_inconclusive() -> None:
    a = readings(20, 0.5, 1)
    assert compare(a, list(a), MARGIN).verdict is Verdict.EQUIVALENT
    nearly = [replace(item, gold_nll=(item.gold_nll or 0) + 1e-6 * (-1) ** k) for k, item in enumerate(a)]
    found = compare(a, nearly, MARGIN)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert (items_needed(found, MARGIN) or 0) > 100
    many = readings(400, 0.5, 1)
    alike = [replace(item, gold_nll=(item.gold_nll or 0) + 1e-6 * (-1) ** k) for k, item in enumerate(many)]
    assert compare(many, alike, MARGIN).verdict is Verdict.EQUIVALENT


def test_without_likelihoods_correctness_alone_decides() -> None:
    def bare(items: list[ItemReading]) -> list[ItemReading]:
        return [ItemReading(item.sample_id, item.exact) for item in items]

    a, b = bare(readings(300, 0.4, 1)), bare(readings(300, 0.7, 2))
    assert compare(a, b, MARGIN).verdict is Verdict.BETTER
    assert compare(a, list(a), MARGIN).verdict is Verdict.EQUIVALENT
    assert compare(a[:5], b[:5], MARGIN).delta_nll_per_token is None


def test_few_items_give_likelihood_no_vote() -> None:
    found = compare(readings(5, 0.0, 1), readings(5, 0.0, 1, shift=1.0), MARGIN)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.delta_nll_ci is None


def test_only_shared_items_count() -> None:
    a, b = readings(100, 0.5, 1), readings(100, 0.5, 2)
    found = compare(a[:80], b[20:], MARGIN, seed=5)
    assert found.items == 60
    assert found == compare(a[20:80], b[20:80], MARGIN, seed=5)
    assert compare(a[:50], b[50:], MARGIN).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_broken(bad: float) -> None:
    a = readings(20, 0.5, 1)
    assert compare(a, [replace(a[0], gold_nll=bad), *a[1:]], MARGIN).verdict is Verdict.BROKEN
    assert compare([*a, a[0]], a, MARGIN).verdict is Verdict.BROKEN


def test_nothing_judged_is_inconclusive_with_a_reason() -> None:
    a = readings(20, 0.5, 1)
    for one, other in (([], a), (a, []), ([], [])):
        found = compare(one, other, MARGIN)
        assert (found.verdict, found.items, found.delta_exact) == (Verdict.INCONCLUSIVE, 0, None)
        assert found.reason
    blank = [ItemReading(str(k), None) for k in range(20)]
    assert compare(blank, blank, MARGIN).verdict is Verdict.INCONCLUSIVE


def test_unscored_items_are_left_out_of_correctness_only() -> None:
    a, b = readings(50, 1.0, 1), readings(50, 1.0, 2)
    b = [replace(item, exact=None) if k < 10 else item for k, item in enumerate(b)]
    found = compare(a, b, MARGIN)
    assert found.items == 50
    assert found.delta_exact == 0.0
    assert found.delta_exact_ci == paired_share_interval(0, 0, 40)


def test_equal_models_are_rarely_called_different() -> None:
    calls = Counter(
        compare(readings(50, 0.6, 2 * k, noise=0.2), readings(50, 0.6, 2 * k + 1, noise=0.2), MARGIN, k).verdict
        for k in range(200)
    )
    assert calls[Verdict.BETTER] + calls[Verdict.WORSE] <= 7, "1 %, and the noise of 200 runs"
    assert calls[Verdict.INCONCLUSIVE] >= 190


@given(st.integers(0, 40), st.integers(0, 1000), st.floats(0.001, 0.5))
def test_swapping_the_models_swaps_the_verdict(n: int, seed: int, margin: float) -> None:
    a, b = readings(n, 0.4, seed, noise=0.1), readings(n, 0.6, seed + 1, noise=0.1)
    one, other = compare(a, b, margin, seed), compare(b, a, margin, seed)
    mirror = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    assert other.verdict is mirror.get(one.verdict, one.verdict)
