"""The promotion table, row by row."""

import pytest

from stokehold.core.records import Comparison, SuiteState, Verdict
from stokehold.evaluation.promotion import Action, decide

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
