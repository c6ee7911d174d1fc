"""From judgements to the next file: curriculum, mining, the governor, and the firewall between held out and trained."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.config import ImprovementConfig
from stokehold.core.errors import NotFoundError
from stokehold.core.identity import is_holdout
from stokehold.core.records import Message, Sample, SuiteResult, SuiteState
from stokehold.improvement.curriculum import FLOOR, apportion, level_history, level_weights
from stokehold.improvement.generation import next_file
from stokehold.improvement.governor import MIN_FREE_BYTES, refusal
from stokehold.improvement.mining import SIBLINGS, Judged, failures, siblings, unsure
from stokehold.improvement.supply import Supply
from stokehold.tasks.registry import draw, identity_of, verify_answer

CONFIG = ImprovementConfig(enabled=True, family="syllo", levels=(1, 2, 3), rows=60)


def held_out(level: int, count: int) -> list[Sample]:
    return list(islice(draw("syllo", level, count, 3, "holdout"), count))


def shares(total: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(0, 1), max_size=total)


def test_uncertain_and_moving_levels_weigh_more_than_known_and_hopeless_ones() -> None:
    weights = level_weights({0: [0.0, 0.0], 1: [1.0, 1.0], 2: [0.5, 0.5], 3: [0.0, 0.0], 4: [0.2, 0.9]})
    assert weights[2] > 4 * weights[1]
    assert weights[1] == weights[3] > 0
    assert weights[4] > weights[2]
    assert weights[1] / weights[2] == pytest.approx(FLOOR / (0.25 + FLOOR))


def test_a_beginner_is_not_spread_over_every_level() -> None:
    weights = level_weights({1: [0.0], 2: [0.0], 3: [0.0]})
    assert weights[1] == pytest.approx((0.25 + FLOOR) / (0.25 + 3 * FLOOR))
    assert weights[2] == weights[3] > 0
    moved = level_weights({1: [0.0, 0.9], 2: [0.0, 0.0], 3: [0.0, 0.0]})
    assert moved[2] > 4 * moved[3]


def test_levels_open_one_after_another() -> None:
    assert level_weights({1: [], 2: [], 3: []}) == {1: 1.0, 2: 0.0, 3: 0.0}
    opened = level_weights({1: [0.5], 2: [], 3: []})
    assert opened[1] == opened[2] == 0.5
    assert opened[3] == 0.0


@given(st.dictionaries(st.integers(1, 10), shares(4), min_size=1))
def test_weights_are_shares_of_a_file(history: dict[int, list[float]]) -> None:
    weights = level_weights(history)
    assert weights.keys() == history.keys()
    assert sum(weights.values()) == pytest.approx(1.0)
    assert all(weight > 0 for level, weight in weights.items() if history[level])


@given(st.dictionaries(st.integers(1, 10), st.floats(0, 10), min_size=1), st.integers(0, 500))
def test_apportioned_counts_sum_up_and_stay_within_one_of_their_share(weights: dict[int, float], total: int) -> None:
    counts = apportion(weights, total)
    if not sum(weights.values()):
        assert not any(counts.values())
        return
    assert sum(counts.values()) == total
    for level, weight in weights.items():
        assert abs(counts[level] - total * weight / sum(weights.values())) <= 1 + 1e-9


def test_history_pools_suites_by_count_and_skips_what_is_not_ok() -> None:
    def suite(name: str, exact: float, n: int, state: SuiteState = SuiteState.OK) -> SuiteResult:
        return SuiteResult(name, state, n, by_level={"1": {"exact": exact, "n": n}})

    first = {"a": suite("a", 1.0, 10), "b": suite("b", 0.0, 30), "c": suite("c", 1.0, 99, SuiteState.BROKEN)}
    second = {"a": suite("a", 0.5, 10)}
    assert level_history([first, second], [1, 2]) == {1: [0.25, 0.5], 2: []}
    assert level_history([first], [1], suites=["a"]) == {1: [1.0]}
    assert level_history([first], [1], suites=[]) == {1: []}


def test_failures_are_the_scored_and_wrong() -> None:
    a, b, c = held_out(1, 3)
    assert failures([Judged(a, True), Judged(b, False), Judged(c, None)]) == [b]


def test_the_least_sure_of_the_right_come_first() -> None:
    a, b, c, d, e = held_out(1, 5)
    judged = [Judged(a, True, 0.4), Judged(b, True, 0.1), Judged(c, True, 0.5), Judged(d, False, 0.0), Judged(e, True)]
    assert unsure(judged, 0.5) == [b, a]
    assert unsure(judged, 0.0) == []


def test_siblings_are_fresh_training_problems_of_the_same_level_and_never_the_item() -> None:
    failed = [*held_out(2, 6), *held_out(3, 3)]
    fresh = siblings(failed, (1, 2, 3), 30, Supply(5))
    assert Counter(sample.metadata["level"] for sample in fresh) == {2: 21, 3: 9}, "in proportion, the rest in front"
    taken = {identity_of(sample) for sample in failed}
    for sample in fresh:
        identity = identity_of(sample)
        assert identity is not None
        assert identity not in taken
        assert not is_holdout(identity)
        assert verify_answer(sample, sample.gold).exact
    parents = Counter(sample.provenance.parent for sample in fresh)
    assert parents.keys() == {sample.id for sample in failed}
    assert max(parents.values()) <= SIBLINGS
    assert all(sample.metadata["parent"] == sample.provenance.parent for sample in fresh)


def test_a_users_own_failures_and_closed_levels_give_nothing() -> None:
    own = Sample("u", (Message("user", "secret"), Message("assistant", "gold")), metadata={"level": 1})
    named = replace(own, metadata={"family": "tickets", "level": 1})
    listed = replace(own, metadata={"family": ["syllo"], "level": 1})
    assert siblings([own, named, listed, *held_out(3, 2)], (1, 2), 50, Supply(1)) == []


def test_levels_that_overlap_give_no_problem_twice() -> None:
    supply = Supply(2)
    taken = [identity_of(sample) for level in (1, 2) for sample in supply.take("arithmetic", level, 400)]
    apart = [identity_of(sample) for level in (1, 2) for sample in Supply(2).take("arithmetic", level, 400)]
    assert len(set(taken)) == len(taken) == 800
    assert len(set(apart)) < 800, "the premise: they do overlap"


def test_a_file_is_filled_fresh_mixed_and_repeatable() -> None:
    judged = [Judged(sample, False) for sample in held_out(2, 10)]
    history = {1: [1.0], 2: [0.4], 7: [0.5]}
    rows = next_file(judged, history, CONFIG, seed=9)
    assert rows == next_file(judged, history, CONFIG, seed=9)
    assert len(rows) == CONFIG.rows
    identities = [identity_of(sample) for sample in rows]
    assert len(set(identities)) == len(rows)
    assert not any(is_holdout(identity) for identity in identities if identity)
    mined = [sample for sample in rows if sample.provenance.parent]
    assert len(mined) == int(CONFIG.rows * CONFIG.failure_share)
    assert {sample.metadata["level"] for sample in rows} == {1, 2, 3}
    positions = [k for k, sample in enumerate(rows) if sample.provenance.parent]
    assert positions != list(range(len(mined))), "shuffled"
    other = next_file(judged, history, CONFIG, seed=10)
    assert len({identity_of(s) for s in other if s.metadata["level"] == 3} & set(identities)) == 0


def test_without_failures_the_curriculum_has_the_whole_file() -> None:
    rows = next_file([Judged(sample, True, 0.2) for sample in held_out(1, 5)], {}, CONFIG, seed=1)
    assert {sample.metadata["level"] for sample in rows} == {1}
    assert not any(sample.provenance.parent for sample in rows)


def test_right_answers_are_mined_where_a_person_said_below_what() -> None:
    config = CONFIG.model_copy(update={"unsure_below": 0.3})
    judged = [Judged(sample, True, 0.2) for sample in held_out(2, 5)]
    rows = next_file(judged, {}, config, seed=1)
    assert {sample.provenance.parent for sample in rows} - {None} == {one.sample.id for one in judged}


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(NotFoundError, match="sylo"):
        next_file([], {}, CONFIG.model_copy(update={"family": "sylo"}), seed=1)


@pytest.mark.parametrize(
    ("changes", "queued", "written", "free", "word"),
    [
        ({}, 2, 10**6, MIN_FREE_BYTES, None),
        ({"enabled": False}, 0, 0, 10**15, "enabled"),
        ({"max_files": 3}, 0, 3, 10**15, "max_files"),
        ({"max_files": 3}, 0, 2, 10**15, None),
        ({}, 3, 0, 10**15, "max_depth"),
        ({}, 0, 0, MIN_FREE_BYTES - 1, "GiB"),
    ],
)
def test_the_governor_refuses_by_each_bound(
    changes: dict[str, object], queued: int, written: int, free: int, word: str | None
) -> None:
    reason = refusal(CONFIG.model_copy(update=changes), queued, written, free)
    assert (reason is None) if word is None else (word in str(reason))
