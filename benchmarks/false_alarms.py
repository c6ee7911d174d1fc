"""How often the verdict calls equal models different, and how often it sees a true loss. Simulated; needs no model.

`python benchmarks/false_alarms.py [--runs N]` prints JSON; equal arguments print equal figures on every machine.

Two models are judged on the same items. An item has a difficulty of its own, which both share: the chance of a right
answer and the likelihood of the gold answer move with it. Beyond that each model's readings are drawn independently,
as those of two trainings are. `loss` is how much less often the second model is right, on average, with the
likelihood of its gold answers unchanged: only correctness can show it.
"""

import argparse
import json
import sys
from collections import Counter

import numpy as np

from stokehold.core.config import Config
from stokehold.core.records import Verdict
from stokehold.evaluation.verdict import ItemReading, compare

ITEMS = (50, 100, 200, 400)
LOSSES = (0.0, 0.1, 0.2)
GOLD_TOKENS = 20
DIFFICULTY = 1.5
"""Spread of the items, in logits: with it two equal models agree on about 7 answers in 10."""

NOISE = 0.2
"""Spread of one model's nats per token on an item, beside what the item's difficulty gives."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--exact", type=float, default=0.6, help="share of right answers of a middling item")
    given = parser.parse_args()
    margin = Config().evaluation.equivalence_margin
    rows = [
        {"items": items, "loss": loss, **shares(items, loss, given.exact, margin, given.runs)}
        for loss in LOSSES
        for items in ITEMS
    ]
    json.dump({"runs": given.runs, "exact": given.exact, "margin": margin, "verdicts": rows}, sys.stdout, indent=2)
    print()


def shares(items: int, loss: float, exact: float, margin: float, runs: int) -> dict[str, float]:
    """Share of runs that ended in each verdict."""
    random = np.random.default_rng([items, round(100 * loss)])
    verdicts: Counter[Verdict] = Counter()
    for run in range(runs):
        difficulty = random.normal(0.0, DIFFICULTY, items)
        chance = 1 / (1 + np.exp(difficulty - np.log(exact / (1 - exact))))
        a = readings(random, chance, difficulty)
        b = readings(random, chance - loss, difficulty)
        verdicts[compare(a, b, margin, seed=run).verdict] += 1
    return {verdict.value: verdicts[verdict] / runs for verdict in Verdict if verdict is not Verdict.BROKEN}


def readings(random: np.random.Generator, chance: np.ndarray, difficulty: np.ndarray) -> list[ItemReading]:
    right = random.random(len(chance)) < chance
    nll = np.exp(0.3 * difficulty + random.normal(0.0, NOISE, len(chance)))
    return [
        ItemReading(str(n), bool(r), float(v), GOLD_TOKENS) for n, (r, v) in enumerate(zip(right, nll, strict=True))
    ]


if __name__ == "__main__":
    main()
