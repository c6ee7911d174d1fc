"""The promotion table, row by row."""

from dataclasses import replace

import numpy as np
import pytest

from stokehold.core.records import Comparison, SuiteState, Verdict
from stokehold.evaluation.promotion import Action, decide
from stokehold.evaluation.verdict import ItemReading, compare

OK = SuiteState.OK


def found(verdict: Verdict, delta: float | None = 0.0) -> Comparison:
    return Comparison(verdict, 100, delta_exact=delta, reason="because")


@pytest.mark.parametrize("verdict", [None, *Verdict])
@pytest.mark.parametrize(("state", "action"), [(SuiteState.BROKEN, Action.ALERT), (SuiteState.NO_DATA, Action.HOLD)])
def test_no_verdict_outweighs_an_evaluation_without_readings(
    verdict: Verdict | None, state: SuiteState, action: Action
) -> None:
    comparison = found(verdict) if verdict else None
    assert decide(comparison, None, state, 5, 0.2).action is action


def test_the_first_good_checkpoint_is_promoted() -> None:
    assert decide(None, None, OK, 0, 0.2).action is Action.PROMOTE


@pytest.mark.parametrize(
    ("verdict", "action"),
    [
        (Verdict.BETTER, Action.PROMOTE),
        (Verdict.EQUIVALENT, Action.PROMOTE),
        (Verdict.INCONCLUSIVE, Action.HOLD),
        (Verdict.WORSE, Action.HOLD),
        (Verdict.BROKEN, Action.ALERT),
    ],
)
def test_each_verdict_against_the_champion(verdict: Verdict, action: Action) -> None:
    decision = decide(found(verdict), None, OK, 0, 0.2)
    assert decision.action is action
    assert "because" in decision.reason


@pytest.mark.parametrize("best", list(Verdict))
def test_equivalent_is_promoted_unless_worse_than_the_best_ever(best: Verdict) -> None:
    action = decide(found(Verdict.EQUIVALENT), found(best), OK, 0, 0.2).action
    assert action is (Action.HOLD if best is Verdict.WORSE else Action.PROMOTE)


def test_better_than_the_champion_is_enough() -> None:
    assert decide(found(Verdict.BETTER), found(Verdict.WORSE), OK, 0, 0.2).action is Action.PROMOTE


@pytest.mark.parametrize(("before", "action"), [(0, Action.HOLD), (1, Action.ROLLBACK), (4, Action.ROLLBACK)])
def test_worse_twice_in_a_row_goes_back(before: int, action: Action) -> None:
    assert decide(found(Verdict.WORSE, -0.05), None, OK, before, 0.2).action is action


@pytest.mark.parametrize(("delta", "action"), [(-0.2, Action.HOLD), (-0.21, Action.ROLLBACK), (None, Action.HOLD)])
def test_a_loss_beyond_the_margin_goes_back_at_once(delta: float | None, action: Action) -> None:
    assert decide(found(Verdict.WORSE, delta), None, OK, 0, 0.2).action is action


def test_only_worse_goes_back() -> None:
    assert decide(found(Verdict.INCONCLUSIVE, -0.5), None, OK, 3, 0.2).action is Action.HOLD


def test_a_model_on_its_way_back_up_is_not_taken_back() -> None:
    worse = found(Verdict.WORSE, -0.05)
    assert decide(worse, None, OK, 1, 0.2, found(Verdict.BETTER)).action is Action.HOLD
    for previous in (Verdict.WORSE, Verdict.EQUIVALENT, Verdict.INCONCLUSIVE, Verdict.BROKEN):
        assert decide(worse, None, OK, 1, 0.2, found(previous)).action is Action.ROLLBACK
    assert decide(found(Verdict.WORSE, -0.3), None, OK, 0, 0.2, found(Verdict.BETTER)).action is Action.ROLLBACK


def test_a_fall_since_the_checkpoint_before_is_told() -> None:
    decision = decide(found(Verdict.INCONCLUSIVE), None, OK, 0, 0.2, found(Verdict.WORSE))
    assert decision.action is Action.HOLD
    assert "checkpoint before" in decision.reason


def test_a_suite_that_got_worse_is_not_hidden_by_the_whole() -> None:
    parts = {"sums": found(Verdict.WORSE), "words": found(Verdict.EQUIVALENT)}
    held = decide(replace(found(Verdict.EQUIVALENT), by_suite=parts), None, OK, 0, 0.2)
    assert held.action is Action.HOLD
    assert "worse on sums" in held.reason
    better = decide(replace(found(Verdict.BETTER), by_suite=parts), None, OK, 0, 0.2)
    assert better.action is Action.PROMOTE
    assert "worse on sums" in better.reason


def drifting(step: int, items: int, flips: float) -> list[ItemReading]:
    """Half a point of exact match is lost with each step; `flips` of the answers are turned by chance as well."""
    random = np.random.default_rng(step)
    right = np.arange(items) < items * (0.8 - 0.005 * step)
    right ^= random.random(items) < flips
    return [ItemReading(str(k), bool(one)) for k, one in enumerate(right)]


@pytest.mark.parametrize(("items", "flips", "salami"), [(300, 0.04, False), (4000, 0.02, True)])
def test_a_slow_drift_is_caught_against_champion_and_best(items: int, flips: float, salami: bool) -> None:
    """With few items no step is told apart from the one before. With many each is as good as the one before, within
    the margin, and takes the champion's place, until the best ever stands against it."""
    champion = best = previous = drifting(0, items, flips)
    actions, against_previous, in_a_row = [], [], 0
    for step in range(1, 60):
        now = drifting(step, items, flips)
        to_champion, to_best, to_previous = (compare(one, now, 0.02) for one in (champion, best, previous))
        decision = decide(to_champion, to_best, OK, in_a_row, 0.2, to_previous)
        actions.append(decision.action)
        against_previous.append(to_previous.verdict)
        in_a_row = in_a_row + 1 if to_champion.verdict is Verdict.WORSE else 0
        champion = now if decision.action is Action.PROMOTE else champion
        previous = now
        if decision.action is Action.ROLLBACK:
            break
    assert actions[-1] is Action.ROLLBACK
    assert Verdict.WORSE not in against_previous[:-1] or salami
    assert (actions[0] is Action.PROMOTE) is salami
    assert 0.005 * len(actions) < (0.05 if salami else 0.2), "points of exact match that were lost until then"
