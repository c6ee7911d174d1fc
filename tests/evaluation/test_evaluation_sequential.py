"""The comparison that may be looked at after every batch, and the level that falls over a stream of checkpoints."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stokehold.core.records import Verdict
from stokehold.evaluation.paired import ItemReading, Pair
from stokehold.evaluation.promotion import Action
from stokehold.evaluation.sequential import (
    FEWEST_DRAWN,
    SequentialComparison,
    correctness_wealth,
    evidence,
    likelihood_gains,
    margin_gains,
)
from stokehold.evaluation.stream import FULL, budget, counted, level
from stokehold.evaluation.verdict import ALPHA

MARGIN = 0.02
MIRROR = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}


def drawn(n: int, seed: int, factor: float = 1.0, loss: float = 0.0) -> list[Pair]:
    """Items on which B's gold answers cost `factor` times as much, and B is right `loss` less often."""
    random = np.random.default_rng(seed)
    hard = random.normal(0, 1, n)
    nll = np.exp(hard[:, None] + random.normal(0, 0.3, (n, 2))) * [1.0, factor]
    right = random.random((n, 2)) < [0.6, 0.6 - loss]
    return [
        (
            ItemReading(f"{seed}/{k}", bool(right[k, 0]), float(nll[k, 0]), 8),
            ItemReading(f"{seed}/{k}", bool(right[k, 1]), float(nll[k, 1]), 8),
        )
        for k in range(n)
    ]


def until(pairs: list[Pair], batch: int = 10, **settings: float) -> SequentialComparison:
    """Looks after every batch and stops when decided."""
    state = SequentialComparison(MARGIN, **settings)
    for start in range(0, len(pairs), batch):
        state = state.update(pairs[start : start + batch])
        if state.decision is not None:
            break
    return state


def test_equal_models_are_rarely_called_different_at_any_look() -> None:
    called = sum(until(drawn(200, seed), alpha=0.1).decision in MIRROR for seed in range(200))
    assert called <= 30, "10 %, and the noise of 200 runs"


def test_a_loss_is_seen_early_and_the_drawing_stops() -> None:
    used = []
    for seed in range(20):
        worse = until(drawn(500, seed, factor=1.5))
        assert worse.decision is Verdict.WORSE
        assert worse.more_items() == 0
        assert worse.update(drawn(50, seed + 1000)) is worse
        used.append(worse.items)
    assert sorted(used)[10] <= 40
    assert max(used) <= 250


def test_correctness_alone_decides_where_there_is_no_likelihood() -> None:
    pairs = [(replace(x, gold_nll=None), replace(y, gold_nll=None)) for x, y in drawn(900, 3, loss=0.3)]
    assert until(pairs).decision is Verdict.WORSE
    assert until([(y, x) for x, y in pairs]).decision is Verdict.BETTER


def test_models_that_agree_are_proven_equivalent() -> None:
    pairs = [(x, replace(x, gold_nll=None)) for x, _ in drawn(2000, 3)]
    found = until(pairs)
    assert found.decision is Verdict.EQUIVALENT
    assert 100 < found.items < 600
    unread = [(replace(x, exact=None), replace(y, exact=None)) for x, y in pairs]
    assert until(unread).decision is None, "what was not read proves nothing"


def test_likelihood_does_not_outvote_a_visible_gain() -> None:
    pairs = [
        (replace(x, exact=k % 20 > 0), replace(y, exact=True)) for k, (x, y) in enumerate(drawn(60, 1, factor=1.6))
    ]
    assert until(pairs).decision is None


@settings(max_examples=40)
@given(st.integers(0, 999), st.floats(0.6, 1.6), st.randoms(use_true_random=False))
def test_updates_are_pure_mirrored_and_know_no_order_in_a_batch(seed: int, factor: float, random: object) -> None:
    pairs, state = drawn(40, seed, factor), SequentialComparison(MARGIN)
    once = state.update(pairs)
    assert state == SequentialComparison(MARGIN)
    shuffled = pairs[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert state.update(shuffled) == once
    other = state.update([(y, x) for x, y in pairs])
    assert other.decision is MIRROR.get(once.decision, once.decision)  # type: ignore[arg-type]
    assert other.wealth == pytest.approx(once.wealth[::-1])


def test_an_item_or_cluster_counts_once() -> None:
    pairs = drawn(30, 1, factor=1.1)
    state = SequentialComparison(MARGIN).update(pairs)
    assert state.update(pairs) is state
    bound = [(replace(x, cluster=f"c{k % 6}"), y) for k, (x, y) in enumerate(pairs)]
    assert SequentialComparison(MARGIN).update(bound).clusters == 6
    again = [
        (replace(x, sample_id=f"again {x.sample_id}"), replace(y, sample_id=f"again {y.sample_id}")) for x, y in bound
    ]
    first = SequentialComparison(MARGIN).update(bound)
    assert first.update(again) is first


def test_a_likelihood_that_is_not_finite_is_broken() -> None:
    pairs = drawn(10, 1)
    pairs[3] = (pairs[3][0], replace(pairs[3][1], gold_nll=math.nan))
    assert SequentialComparison(MARGIN).update(pairs).decision is Verdict.BROKEN


def test_more_items_is_a_batch_at_least_and_at_most_as_many_as_there_are() -> None:
    state = SequentialComparison(MARGIN)
    assert state.more_items() == FEWEST_DRAWN
    state = state.update(drawn(40, 2, factor=1.2))
    assert state.decision is None
    assert FEWEST_DRAWN <= state.more_items() <= 40
    drawn_so_far = 0
    for seed in range(3, 40):
        drawn_so_far += state.more_items()
        state = state.update(drawn(max(1, state.more_items()), seed, factor=1.2))
        if state.decision is not None:
            break
    assert state.decision is Verdict.WORSE
    assert drawn_so_far < 400


def test_wealth_of_every_bet_is_one_on_average_when_signs_are_fair() -> None:
    """Over all sign patterns, not over draws: the bets are martingales, not nearly so."""
    sizes = np.array([0.1, 0.9, 0.3, 0.5, 0.02, 0.7])
    patterns = np.array([[1 if n >> k & 1 else -1 for k in range(6)] for n in range(64)])
    scale = np.full((64, 1), 0.4)
    likely = likelihood_gains(patterns * sizes, scale)
    assert np.exp(likely).mean(axis=0) == pytest.approx(1.0)
    lost, gained = (patterns < 0).sum(axis=1).astype(float), (patterns > 0).sum(axis=1).astype(float)
    right = correctness_wealth(lost, gained)
    assert np.exp(right).mean(axis=0) == pytest.approx(1.0)
    assert np.exp(evidence(likely, right)).mean(axis=0) == pytest.approx(1.0)


def test_wealth_against_the_margin_is_one_on_average_at_the_margin() -> None:
    values, chances = np.array([[-1.0], [0.0], [1.0]]), np.array([0.19, 0.6, 0.21])
    gains = np.exp(margin_gains(values, 0.02))
    assert (chances[:, None] * gains[:, 0]).sum(axis=0) == pytest.approx(1.0)
    assert (chances[::-1, None] * gains[:, 1]).sum(axis=0) == pytest.approx(1.0)


def test_the_levels_of_all_time_stay_within_the_budget() -> None:
    levels = [level(k, 0) for k in range(200_000)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == ALPHA
    assert 0.9 * budget() < sum(levels) <= budget()
    assert level(400, 9) == pytest.approx(10 * level(400, 0))
    assert level(400, 10**6) == ALPHA


def test_findings_are_promotions_of_what_was_better() -> None:
    history = [
        (Verdict.BETTER, "promote"),
        (Verdict.BETTER, Action.PROMOTE),
        (Verdict.EQUIVALENT, "promote"),
        (Verdict.BETTER, "hold"),
        (Verdict.WORSE, "rollback"),
        (Verdict.INCONCLUSIVE, "hold"),
        (None, "promote"),
        (Verdict.WORSE, None),
    ]
    assert counted(history) == (6, 2)
    assert counted([]) == (0, 0)
    assert level(*counted([])) == level(FULL - 1, 0) == ALPHA
