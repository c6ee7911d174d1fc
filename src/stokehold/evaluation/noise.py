"""The noise floor: how far the readings of the very same weights lie apart.

Greedy answers from one engine repeat exactly, and their floor is 0. Batch sizes, number types, engines and sampled
answers move readings although nothing was learnt; a verdict must not call that a difference.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from stokehold.evaluation.paired import ItemReading, correctness, likelihood


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """The largest difference between two of `runs` evaluations of the same weights, over all items that both judged.

    `exact` is a share, `nll` in nats per token; `moved` is the largest share of items whose correctness changed. It
    is a maximum over so few runs, and grows with them.
    """

    exact: float
    nll: float
    moved: float
    runs: int


def noise_floor(repeats: Sequence[Sequence[ItemReading]]) -> NoiseFloor | None:
    """Measured from two or more evaluations of the same weights; None where no two of them share an item."""
    found = [_apart(a, b) for a, b in itertools.combinations(repeats, 2)]
    there = [one for one in found if one is not None]
    if not there:
        return None
    exact, nll, moved = (max(values) for values in zip(*there, strict=True))
    return NoiseFloor(exact, nll, moved, len(repeats))


def _apart(a: Sequence[ItemReading], b: Sequence[ItemReading]) -> tuple[float, float, float] | None:
    """Absolute differences of correctness and likelihood, and the share of items that changed."""
    second = {item.sample_id: item for item in b}
    pairs = [(item, second[item.sample_id]) for item in a if item.sample_id in second]
    right, likely = correctness(pairs), likelihood(pairs)
    if right is None and likely is None:
        return None
    n = int(right.sizes.sum()) if right else 1
    lost, gained = (right.lost, right.gained) if right else (0, 0)
    return abs(gained - lost) / n, abs(likely.delta) if likely else 0.0, (gained + lost) / n
