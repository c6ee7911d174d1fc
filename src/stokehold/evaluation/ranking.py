"""Several models in one order, with what is known of it: by exact match on the items that all of them answered.

Likelihood orders those that are right equally often. Neighbours that no paired test tells apart share a rank: the exact
test on correctness, and the one on the gold answers' likelihood, which counts only where it agrees with the order; with
Holm's correction over both tests of all pairs. Speed has no part in it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stokehold.evaluation.metrics import weighted_mean, wilson
from stokehold.evaluation.paired import ItemReading, cluster_of, correctness, likelihood
from stokehold.evaluation.power import POWER
from stokehold.evaluation.significance import holm, mcnemar_clustered, sign_flip
from stokehold.evaluation.verdict import ALPHA

RESAMPLES = 2000
"""Bootstrap resamples: the ends of an interval of ranks are whole numbers, and 50 resamples lie beyond each."""

OUTSIDE = 0.05
"""Share of the resamples outside an interval of ranks."""

DRAWN_CELLS = 2**21
"""Counts drawn at once: 16 MB."""

Table = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gap:
    """From one model to the next one in order: items that only the better or only the other answered rightly.

    `p_value` is Holm's, the smaller of the two tests. `items_to_tell` is about how many items would tell them apart by
    correctness if they went on to differ as on these, None where they do not differ or are told apart already.
    """

    ahead: int
    behind: int
    p_value: float
    apart: bool
    items_to_tell: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """One model: `rank` is 1 and how many stand in better groups; `rank_ci` is the 95 % interval over resampled items,
    in which ties count both ways, widened to hold the rank. `gap` leads to the next place; the last has none."""

    name: str
    rank: int
    rank_ci: tuple[int, int]
    exact: float | None
    exact_ci: tuple[float, float] | None
    nll_per_token: float | None
    gap: Gap | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Places on `items` shared items, best first, by `by`: exact, or nll_per_token where nothing was scored.

    `alpha` is the chance that any two are told apart, were all alike. `left_out` share no item with the others.
    """

    items: int
    by: str
    pairs: int
    alpha: float
    places: tuple[Place, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Entrant:
    """One model's readings of the shared items, in one order of items; `exact` and `nll` are over all of them, None
    where one was not measured."""

    name: str
    readings: tuple[ItemReading, ...]
    exact: float | None
    nll: float | None


@dataclass(frozen=True, slots=True)
class _Resampled:
    """What each model would show on resampled clusters of items; zeros where it was not measured.

    Both are [resamples, models].
    """

    exact: Table
    nll: Table


def rank(entrants: Mapping[str, Sequence[ItemReading]], seed: int = 0, alpha: float = ALPHA) -> Ranking:
    """The order of these models; it does not depend on the order they are given in."""
    tables = {name: {item.sample_id: item for item in readings} for name, readings in entrants.items()}
    shared, left_out = _shared(tables)
    by, items = _measure([tables[name] for name in tables if name not in left_out], shared)
    found = [_entrant(name, [tables[name][item] for item in items]) for name in tables if name not in left_out]
    found.sort(key=_order)
    if not items or not found:
        return Ranking(0, by, 0, alpha, (), tuple(sorted(left_out)))
    drawn = _resample(found, seed)
    p_values = _p_values(found)
    apart = {pair for pair, p in p_values.items() if p <= alpha}
    ranks = _ranks(len(found), apart)
    intervals = _intervals(drawn, ranks)
    level = alpha / max(1, 2 * len(p_values))
    gaps = [_gap(found[k], found[k + 1], p_values[k, k + 1], (k, k + 1) in apart, level) for k in range(len(found) - 1)]
    places = tuple(
        Place(one.name, first, ends, one.exact, _interval(one), one.nll, gap)
        for one, first, ends, gap in zip(found, ranks, intervals, [*gaps, None], strict=True)
    )
    return Ranking(len(items), by, len(p_values), alpha, places, tuple(sorted(left_out)))


def items_to_tell(ahead: int, behind: int, items: int, level: float) -> int | None:
    """Items with which McNemar's test at `level` tells two models apart four times in five, if they differ as on these.

    Connor's formula (1987) for paired shares; None where they are right equally often.
    """
    discordant, delta = (ahead + behind) / items, (ahead - behind) / items
    if not delta:
        return None
    quantile = NormalDist().inv_cdf
    spread = math.sqrt(max(0.0, discordant - delta**2))
    return math.ceil(((quantile(1 - level / 2) * math.sqrt(discordant) + quantile(POWER) * spread) / delta) ** 2)


def _shared(tables: Mapping[str, Mapping[str, ItemReading]]) -> tuple[list[str], set[str]]:
    """Items that all answered, and who shares none with those that answered more."""
    shared: set[str] | None = None
    left_out = set()
    for name in sorted(tables, key=lambda name: (-len(tables[name]), name)):
        both = set(tables[name]) if shared is None else shared & tables[name].keys()
        if both:
            shared = both
        else:
            left_out.add(name)
    return sorted(shared or ()), left_out


def _measure(tables: Sequence[Mapping[str, ItemReading]], shared: Sequence[str]) -> tuple[str, list[str]]:
    """What is ranked by, and the items that all have a reading of it for."""
    scored = [item for item in shared if all(table[item].exact is not None for table in tables)]
    if scored:
        return "exact", scored
    return "nll_per_token", [item for item in shared if all(table[item].likely for table in tables)]


def _entrant(name: str, readings: Sequence[ItemReading]) -> _Entrant:
    scored = [item.exact for item in readings if item.exact is not None]
    likely = [(i.gold_nll, i.gold_tokens) for i in readings if i.gold_nll is not None and i.gold_tokens]
    exact = sum(scored) / len(scored) if scored and len(scored) == len(readings) else None
    return _Entrant(name, tuple(readings), exact, weighted_mean(likely) if len(likely) == len(readings) else None)


def _interval(one: _Entrant) -> tuple[float, float] | None:
    right = sum(bool(item.exact) for item in one.readings)
    return None if one.exact is None else wilson(right, len(one.readings))


def _order(one: _Entrant) -> tuple[float, float, tuple[bool, ...], str]:
    """Best first; models of equal readings stand next to one another."""
    nll = math.inf if one.nll is None else one.nll
    return -(one.exact or 0.0), nll, tuple(bool(item.exact) for item in one.readings), one.name


def _resample(found: Sequence[_Entrant], seed: int) -> _Resampled:
    """Clusters are drawn, not items. Rounded, so that equal models stay equal whatever order sums were made in."""
    place = _clusters(found)
    clusters = int(place.max()) + 1

    def per_cluster(values: Sequence[float]) -> Table:
        return np.bincount(place, weights=np.array(values), minlength=clusters).astype(np.float64)

    right = np.stack([per_cluster([float(bool(item.exact)) for item in one.readings]) for one in found], axis=1)
    tokens = np.stack([per_cluster([float(i.gold_tokens or 0) for i in one.readings]) for one in found], axis=1)
    nats = np.stack(
        [per_cluster([(i.gold_nll or 0.0) * (i.gold_tokens or 0) for i in one.readings]) for one in found], axis=1
    )
    sizes = np.bincount(place)[:, None]
    measured = all(one.nll is not None for one in found)
    random = np.random.default_rng(seed)
    chunk = max(1, DRAWN_CELLS // clusters)
    exact: list[Table] = []
    nll: list[Table] = []
    for start in range(0, RESAMPLES, chunk):
        drawn = min(chunk, RESAMPLES - start)
        counts = random.multinomial(clusters, np.full(clusters, 1 / clusters), size=drawn)
        exact.append(counts @ right / (counts @ sizes))
        nll.append(counts @ nats / (counts @ tokens) if measured else np.zeros((drawn, len(found))))
    return _Resampled(*(np.concatenate(parts).round(12).astype(np.float64) for parts in (exact, nll)))


def _clusters(found: Sequence[_Entrant]) -> NDArray[np.int64]:
    """[items]: the number of each one's cluster, whichever model's readings name it."""
    numbers: dict[tuple[bool, str], int] = {}
    rows = zip(*(one.readings for one in found), strict=True)
    names = [max(cluster_of((item, item)) for item in items) for items in rows]
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def _p_values(found: Sequence[_Entrant]) -> dict[tuple[int, int], float]:
    """Of each pair of places, the smaller of Holm's two."""
    pairs = list(combinations(range(len(found)), 2))
    tested = [_tests(found[a], found[b]) for a, b in pairs]
    adjusted = holm([p for kind in range(2) for p in (both[kind] for both in tested)])
    return {pair: min(adjusted[k], adjusted[k + len(pairs)]) for k, pair in enumerate(pairs)}


def _tests(better: _Entrant, other: _Entrant) -> tuple[float, float]:
    """p of correctness and of likelihood; 1 where there is nothing to test, or likelihood contradicts the order."""
    pairs = list(zip(better.readings, other.readings, strict=True))
    right = correctness(pairs)
    exact = 1.0 if right is None else mcnemar_clustered(right.net)
    likely = likelihood(pairs) if better.nll is not None and other.nll is not None else None
    if likely is None or likely.delta <= 0 or likely.changes.sum() <= 0:
        return exact, 1.0
    return exact, sign_flip(likely.changes)


def _ranks(models: int, apart: set[tuple[int, int]]) -> list[int]:
    """A group goes on down the order until somebody is told apart from one of it."""
    ranks: list[int] = []
    first = 0
    for number in range(models):
        if any((member, number) in apart for member in range(first, number)):
            first = number
        ranks.append(first + 1)
    return ranks


def _intervals(drawn: _Resampled, ranks: Sequence[int]) -> list[tuple[int, int]]:
    found = []
    for k, rank_ in enumerate(ranks):
        exact, nll = drawn.exact[:, k : k + 1], drawn.nll[:, k : k + 1]
        level = drawn.exact == exact
        better = ((drawn.exact > exact) | (level & (drawn.nll < nll))).sum(axis=1)
        equal = (level & (drawn.nll == nll)).sum(axis=1)
        low = np.quantile(better + 1, OUTSIDE / 2, method="inverted_cdf")
        high = np.quantile(better + equal, 1 - OUTSIDE / 2, method="inverted_cdf")
        found.append((min(int(low), rank_), max(int(high), rank_)))
    return found


def _gap(one: _Entrant, other: _Entrant, p_value: float, apart: bool, level: float) -> Gap:
    both = list(zip(one.readings, other.readings, strict=True))
    ahead = sum(bool(a.exact) and b.exact is False for a, b in both)
    behind = sum(bool(b.exact) and a.exact is False for a, b in both)
    return Gap(ahead, behind, p_value, apart, None if apart else items_to_tell(ahead, behind, len(both), level))
