"""What follows from an evaluation: promote, hold, go back to the champion, or call somebody. A table, nothing else."""

from dataclasses import dataclass
from enum import StrEnum

from stokehold.core.records import Comparison, SuiteState, Verdict

WORSE_BEFORE_ROLLBACK = 2
"""WORSE verdicts in a row after which training goes on from the champion."""


class Action(StrEnum):
    """`promote` makes a version; `rollback` keeps the champion and trains on from it; `alert` holds and tells."""

    PROMOTE = "promote"
    HOLD = "hold"
    ROLLBACK = "rollback"
    ALERT = "alert"


@dataclass(frozen=True, slots=True)
class Decision:
    """One action and why, in a line a person reads."""

    action: Action
    reason: str


def decide(
    comparison_to_champion: Comparison | None,
    comparison_to_best: Comparison | None,
    state: SuiteState,
    worse_in_a_row: int,
    rollback_margin: float,
    comparison_to_previous: Comparison | None = None,
) -> Decision:
    """The action for one evaluated checkpoint.

    `comparison_to_champion` is None when there is no champion yet; `comparison_to_best` is None when the champion is
    the best ever; `comparison_to_previous`, with the checkpoint judged before this one, None where there was none: it
    tells a model on its way back up from one that stays down, and sees no drift that is slow. `state` is that of the
    whole evaluation. `worse_in_a_row` counts the WORSE verdicts directly before this one. `rollback_margin` is a loss
    of exact match.
    """
    if state is SuiteState.BROKEN:
        return Decision(Action.ALERT, "the evaluation is broken")
    if state is SuiteState.NO_DATA:
        return Decision(Action.HOLD, "nothing was evaluated")
    if comparison_to_champion is None:
        return Decision(Action.PROMOTE, "there is no champion yet")
    verdict, why = comparison_to_champion.verdict, _why(comparison_to_champion)
    previous = comparison_to_previous.verdict if comparison_to_previous else None
    if verdict is Verdict.BROKEN:
        return Decision(Action.ALERT, f"the comparison is broken: {why}")
    if verdict is Verdict.BETTER:
        return Decision(Action.PROMOTE, f"better than the champion: {why}")
    if verdict is Verdict.WORSE:
        return _worse(comparison_to_champion, why, worse_in_a_row + 1, rollback_margin, previous is Verdict.BETTER)
    if verdict is Verdict.INCONCLUSIVE:
        fallen = ", but worse than the checkpoint before it" if previous is Verdict.WORSE else ""
        return Decision(Action.HOLD, f"not told apart from the champion{fallen}: {why}")
    if comparison_to_best is not None and comparison_to_best.verdict is Verdict.WORSE:
        return Decision(Action.HOLD, f"as good as the champion but worse than the best: {_why(comparison_to_best)}")
    if lost := _worse_suites(comparison_to_champion):
        return Decision(Action.HOLD, f"as good as the champion in all, but worse on {', '.join(lost)}")
    return Decision(Action.PROMOTE, f"as good as the champion, and newer: {why}")


def _worse(comparison: Comparison, why: str, in_a_row: int, rollback_margin: float, rising: bool) -> Decision:
    if comparison.delta_exact is not None and comparison.delta_exact < -rollback_margin:
        return Decision(Action.ROLLBACK, f"exact match fell by more than {rollback_margin:g}: {why}")
    if in_a_row < WORSE_BEFORE_ROLLBACK:
        return Decision(Action.HOLD, f"worse than the champion: {why}")
    if rising:
        return Decision(Action.HOLD, f"worse than the champion, but better than the checkpoint before it: {why}")
    return Decision(Action.ROLLBACK, f"worse than the champion {in_a_row} times in a row: {why}")


def _why(comparison: Comparison) -> str:
    """The comparison's reason, and suites that do not share in it."""
    why = comparison.reason or "no reason given"
    lost = [] if comparison.verdict is Verdict.WORSE else _worse_suites(comparison)
    return f"{why}; worse on {', '.join(lost)}" if lost else why


def _worse_suites(comparison: Comparison) -> list[str]:
    return [name for name, one in comparison.by_suite.items() if one.verdict is Verdict.WORSE]
