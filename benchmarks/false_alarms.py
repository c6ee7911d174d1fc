"""How often verdicts call equal models different, and how often they see a true loss. Simulated; needs no model.

`python benchmarks/false_alarms.py [--runs N]` prints JSON; equal arguments print equal figures on every machine.

Two checkpoints answer the same items. The gold answer to an item costs a checkpoint N nats: the item's own figure times
a factor that each training draws anew. The answer is right with chance exp(-N), which is exactly so for answers sampled
at temperature 1. A loss comes in two settings:

- `both`: all N are multiplied by the factor that takes so many points of correctness;
- `correctness`: N is untouched, and right answers become wrong ones by chance: likelihood cannot see it.

Beside the verdict stands the plain rule "alarm when exact match fell by 10 points", on the same items.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stokehold.core.config import Config
from stokehold.core.records import Comparison, SuiteState, Verdict
from stokehold.evaluation.paired import relative_changes
from stokehold.evaluation.promotion import Action, decide
from stokehold.evaluation.sequential import LIKELIHOOD_BETS, correctness_wealth, evidence, likelihood_gains
from stokehold.evaluation.significance import mcnemar_exact, sign_flip_saddlepoint
from stokehold.evaluation.stream import budget, level
from stokehold.evaluation.verdict import ALPHA, ItemReading, compare

ITEMS = (50, 200, 500)
LOSSES = (0.0, 0.02, 0.05, 0.1)
SETTINGS = ("both", "correctness")
EXACT = 0.6
"""Share of right answers before any loss."""

SPREAD = 2.0
"""Standard deviation of the items' log nats: two equal checkpoints then agree on about 8 answers in 10."""

NOISE = 0.3
"""Standard deviation of what a training adds to an item's log nats."""

GOLD_TOKENS = 20
LOOK_EVERY = 10
CHECKPOINTS = 500
DROP_AT = 300
STREAM_ITEMS = 200
TEN_POINTS = 0.10
WORLD = 200_000
"""Items from which the average chance of a right answer is computed."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """[runs, items] of one checkpoint in each run: nats of the gold answer, and whether the answer is right."""

    nats: Array
    right: NDArray[np.bool_]

    def put(self, where: NDArray[np.bool_], other: "Answers") -> "Answers":
        """These answers, with the other's in the runs of `where`."""
        rows = where[:, None]
        return Answers(np.where(rows, other.nats, self.nats), np.where(rows, other.right, self.right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=200)
    given = parser.parse_args()
    margin = Config().evaluation.equivalence_margin
    cells = [(setting, loss, items) for setting in SETTINGS for loss in LOSSES for items in ITEMS]
    json.dump(
        {
            "alpha": ALPHA,
            "margin": margin,
            "runs": given.runs,
            "pairs": [pairs(*cell, given.runs, margin) for cell in cells],
            "sequential": [sequential(setting, loss, given.runs, margin) for setting in SETTINGS for loss in LOSSES],
            "streams": given.streams,
            "budget": budget(),
            "stream": [
                stream(setting, loss, rule, given.streams, margin)
                for rule in ("falling", "constant")
                for setting in SETTINGS
                for loss in (LOSSES if setting == "both" else LOSSES[1:])
            ],
        },
        sys.stdout,
        indent=2,
    )
    print()


def pairs(setting: str, loss: float, items: int, runs: int, margin: float) -> dict[str, object]:
    """Shares of `runs` pairs that the verdict calls different, worse and better, and those that fell by 10 points."""
    random = np.random.default_rng([SETTINGS.index(setting), round(1000 * loss), items])
    hard = difficulty(random, runs, items)
    a, b = answers(random, hard, 0.0, setting), answers(random, hard, loss, setting)
    worse, better, _ = verdicts(a, b, margin, ALPHA)
    for run in range(10):
        found = compare(readings(a, run), readings(b, run), margin).verdict
        assert (found is Verdict.WORSE, found is Verdict.BETTER) == (worse[run], better[run])
    fell = moved(a, b) <= -TEN_POINTS + 1e-9
    said = {
        "worse": worse,
        "better": better,
        "different": worse | better,
        "ten_point_rule": fell,
        "agree": a.right == b.right,
    }
    return {"setting": setting, "loss": loss, "items": items, **{name: share(found) for name, found in said.items()}}


def sequential(setting: str, loss: float, runs: int, margin: float) -> dict[str, object]:
    """Up to the largest number of items, with a look after every `LOOK_EVERY`; `items_used` is the mean."""
    random = np.random.default_rng([7, SETTINGS.index(setting), round(1000 * loss)])
    hard = difficulty(random, runs, ITEMS[-1])
    a, b = answers(random, hard, 0.0, setting), answers(random, hard, loss, setting)
    batches = range(0, ITEMS[-1], LOOK_EVERY)
    changes = np.hstack(
        [relative_changes(a.nats[:, n : n + LOOK_EVERY], b.nats[:, n : n + LOOK_EVERY]) for n in batches]
    )
    energy, net = np.cumsum(changes**2, axis=1), b.right.astype(float) - a.right
    wealth, verdict, used = np.zeros((runs, 2, len(LIKELIHOOD_BETS))), np.zeros(runs), np.full(runs, ITEMS[-1])
    for n in range(LOOK_EVERY, ITEMS[-1] + 1, LOOK_EVERY):
        wealth += likelihood_gains(changes[:, n - LOOK_EVERY : n], np.sqrt(energy[:, n - 1 : n] / n))
        lost, gained = (net[:, :n] < 0).sum(axis=1), (net[:, :n] > 0).sum(axis=1)
        sides = evidence(wealth, correctness_wealth(lost.astype(float), gained.astype(float)))
        mean = net[:, :n].mean(axis=1)
        enough = np.logaddexp(*sides.T) - np.log(2) >= np.log(1 / ALPHA)
        side = np.where(sides[:, 0] > sides[:, 1], -1.0, 1.0)
        now = (verdict == 0) & enough & (mean * side >= -margin)
        verdict, used = np.where(now, side, verdict), np.where(now, n, used)
    found = {"worse": verdict < 0, "better": verdict > 0, "different": verdict != 0}
    shares = {name: share(one) for name, one in found.items()}
    return {"setting": setting, "loss": loss, **shares, "items_used": round(float(used.mean()), 1)}


def stream(setting: str, loss: float, rule: str, streams: int, margin: float) -> dict[str, object]:
    """`CHECKPOINTS` checkpoints one after another on the same items; from `DROP_AT` on all are worse by `loss`.

    After a going back the training begins anew from the champion, and what it lost is not lost again.
    """
    random = np.random.default_rng([11, SETTINGS.index(setting), round(1000 * loss)])
    hard = difficulty(random, streams, STREAM_ITEMS)
    champion = answers(random, hard, 0.0, setting)
    findings, in_a_row = np.zeros(streams, int), np.zeros(streams, int)
    lost_now, caught = np.zeros(streams, bool), np.full(streams, -1)
    counts = {"false_worse": 0, "false_rollbacks": 0, "false_better": 0, "worse": 0}
    for step in range(1, CHECKPOINTS):
        lost_now |= (step == DROP_AT) & (loss > 0)
        sound, poor = answers(random, hard, 0.0, setting), answers(random, hard, loss, setting)
        new = sound.put(lost_now, poor)
        alphas = np.array([level(step - 1, k) for k in findings]) if rule == "falling" else np.full(streams, ALPHA)
        worse, better, delta = verdicts(champion, new, margin, alphas)
        back = np.array([rolls_back(*one) for one in zip(worse, delta, in_a_row, strict=True)])
        counts["false_worse"] += int((worse & ~lost_now).sum())
        counts["false_better"] += int((better & ~lost_now).sum())
        counts["false_rollbacks"] += int((back & ~lost_now).sum())
        counts["worse"] += int((worse & lost_now).sum())
        caught = np.where(back & lost_now & (caught < 0), step - DROP_AT + 1, caught)
        champion = champion.put(better, new)
        lost_now &= ~back
        findings, in_a_row = findings + better, np.where(worse & ~back, in_a_row + 1, 0)
    seen = caught[caught > 0]
    return {
        "rule": rule,
        "setting": setting,
        "loss": loss,
        **{name: count / streams for name, count in counts.items()},
        "caught": len(seen) / streams,
        "caught_within_10": float((seen <= 10).sum() / streams),
        "checkpoints_until": float(np.median(seen)) if len(seen) else None,
    }


def rolls_back(worse: bool, delta: float, in_a_row: int) -> bool:
    """As `decide` has it."""
    if not worse:
        return False
    found = Comparison(Verdict.WORSE, STREAM_ITEMS, delta_exact=float(delta))
    return (
        decide(found, None, SuiteState.OK, int(in_a_row), Config().evaluation.rollback_margin).action is Action.ROLLBACK
    )


def verdicts(a: Answers, b: Answers, margin: float, alpha: float | Array) -> tuple[NDArray[np.bool_], ...]:
    """`compare` of each run at once: worse, better, and the difference of exact match."""
    changes, delta = relative_changes(a.nats, b.nats), moved(a, b)
    lost, gained = (a.right & ~b.right).sum(axis=1), (b.right & ~a.right).sum(axis=1)
    exact = np.array([mcnemar(int(x), int(y)) for x, y in zip(lost, gained, strict=True)])
    likely = sign_flip_saddlepoint(changes)
    first = 2 * np.minimum(exact, likely)
    by_exact, by_nll = np.maximum(first, exact) <= alpha, np.maximum(first, likely) <= alpha
    less = (b.nats - a.nats).sum(axis=1)
    by_nll &= less * changes.sum(axis=1) > 0
    worse = np.where(by_exact, delta < 0, by_nll & (less > 0) & (delta <= margin))
    better = np.where(by_exact, delta > 0, by_nll & (less < 0) & (delta >= -margin))
    return worse, better, delta


def difficulty(random: np.random.Generator, runs: int, items: int) -> Array:
    """[runs, items]: log nats of each item."""
    return random.normal(level_of_items(), SPREAD, (runs, items))


def answers(random: np.random.Generator, hard: Array, loss: float, setting: str) -> Answers:
    """A training's answers to these items, `loss` points of correctness below the others."""
    nats = np.exp(hard + random.normal(0.0, NOISE, hard.shape))
    if setting == "both":
        nats *= factor(loss)
        return Answers(nats, random.random(hard.shape) < np.exp(-nats))
    return Answers(nats, random.random(hard.shape) < np.exp(-nats) * (1 - loss / EXACT))


@cache
def world() -> Array:
    return np.exp(np.random.default_rng(0).normal(0.0, np.hypot(SPREAD, NOISE), WORLD))


@cache
def level_of_items() -> float:
    """Mean log nats at which `EXACT` of the answers are right."""
    return root(lambda x: float(np.exp(-world() * np.exp(x)).mean()) - EXACT)


@cache
def factor(loss: float) -> float:
    """By how much nats grow where `loss` of all answers turn wrong."""
    nats = world() * np.exp(level_of_items())
    return 1.0 if loss == 0 else np.exp(root(lambda x: float(np.exp(-nats * np.exp(x)).mean()) - EXACT + loss))


@cache
def mcnemar(lost: int, gained: int) -> float:
    return mcnemar_exact(lost, gained)


def root(falling: Callable[[float], float]) -> float:
    """Where it crosses 0, by bisection in [-10, 10]."""
    low, high = -10.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return low


def moved(a: Answers, b: Answers) -> Array:
    return b.right.mean(axis=1) - a.right.mean(axis=1)


def share(found: NDArray[np.bool_]) -> float:
    return round(float(found.mean()), 4)


def readings(found: Answers, run: int) -> list[ItemReading]:
    rows = zip(found.right[run], found.nats[run] / GOLD_TOKENS, strict=True)
    return [ItemReading(str(n), bool(right), float(nll), GOLD_TOKENS) for n, (right, nll) in enumerate(rows)]


if __name__ == "__main__":
    main()
