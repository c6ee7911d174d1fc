"""How sure a verdict must be when a checkpoint follows every file, for weeks, and each is compared with the champion.

At a constant level false verdicts come without end: one in a hundred comparisons at 1 %. Here the level falls with the
number of comparisons, so that where nothing ever changes the false verdicts of all time are few, and it is raised by
every finding, so that a model that goes on learning is judged nearly as at the start (LOND, Javanmard and Montanari
2015). Without findings the bound is the sum of the levels: it holds however the comparisons hang together.
"""

import math
from collections.abc import Iterable

from stokehold.core.records import Verdict
from stokehold.evaluation.promotion import Action
from stokehold.evaluation.verdict import ALPHA

FULL = 5
"""Comparisons at the full level without a finding."""

DECAY = 1.5
"""Power of the fall beyond. Above 1, so that the sum is finite; the nearer to 1, the later the power goes."""


def level(comparisons: int, findings: int, alpha: float = ALPHA) -> float:
    """Alpha of the next comparison with the champion, after so many and the findings among them; at most `alpha`."""
    return alpha * min(1.0, (1 + findings) * math.pow(FULL / (comparisons + 1), DECAY))


def budget(alpha: float = ALPHA) -> float:
    """Bound of the sum of all levels to the end of time, where there is no finding."""
    return alpha * FULL * (1 + 1 / (DECAY - 1))


def counted(history: Iterable[tuple[Verdict | None, Action | str | None]]) -> tuple[int, int]:
    """Comparisons and findings among (verdict against the champion, action) of all evaluations so far, in any order.

    A finding is a promotion of what was BETTER. A going back is none: a champion that owes its place to luck would earn
    its successors ever more false alarms. Where nothing was compared or decided does not count.
    """
    decided = [(verdict, action) for verdict, action in history if verdict is not None and action is not None]
    return len(decided), sum(v is Verdict.BETTER and a == Action.PROMOTE for v, a in decided)
