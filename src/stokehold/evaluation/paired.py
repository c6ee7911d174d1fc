"""Two models on the same items: which items pair, which hang together, and the differences of each cluster.

A cluster is what may be right or wrong together, such as rewordings of one question: evidence is counted in clusters,
never in items. An item that names none is a cluster of its own.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stokehold.core.records import Sample
from stokehold.data.firewall import template_fingerprint
from stokehold.tasks.registry import family_of

FEWEST_CLUSTERS = 10
"""With fewer, neither an interval over clusters covers what it says, nor do templates stand for templates unseen."""


@dataclass(frozen=True, slots=True)
class ItemReading:
    """What one model showed on one item; None where it was not measured. `gold_nll` is in nats per gold token.

    `sample_id` is unique among all items compared. Items of one `cluster` are not independent; None: it stands alone.
    """

    sample_id: str
    exact: bool | None
    gold_nll: float | None = None
    gold_tokens: int | None = None
    suite: str = ""
    cluster: str | None = None

    @property
    def likely(self) -> bool:
        """Whether the likelihood of the gold answer was measured."""
        return self.gold_nll is not None and bool(self.gold_tokens)

    @property
    def shown(self) -> tuple[bool | None, float | None, int | None]:
        """What the model did, without what the item is."""
        return self.exact, self.gold_nll, self.gold_tokens


Pair = tuple[ItemReading, ItemReading]
"""The same item under A and under B."""


@dataclass(frozen=True, slots=True)
class Correctness:
    """Items that only A (`lost`) or only B (`gained`) has right; per cluster their difference and all its items."""

    lost: int
    gained: int
    net: NDArray[np.int64]
    """[clusters], gained - lost."""

    sizes: NDArray[np.int64]
    """[clusters], items."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Gold answers by cluster: [clusters, 4] of nats and tokens under A, nats and tokens under B."""

    sums: NDArray[np.float64]

    @property
    def delta(self) -> float:
        """B - A in nats per token, over all tokens."""
        nats_a, tokens_a, nats_b, tokens_b = self.sums.sum(axis=0)
        return float(nats_b / tokens_b - nats_a / tokens_a)

    @property
    def changes(self) -> NDArray[np.float64]:
        """[clusters]: `relative_changes` of the gold answers' nats."""
        return relative_changes(self.sums[:, 0], self.sums[:, 2])


def relative_changes(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """B - A of nats, [..., clusters], each over its own size plus the median size: in (-1, 1), > 0 where B is worse.

    Hard items differ by more nats than all others together, by chance as well: weighed alike they drown the rest. Below
    the median the weights are nearly equal, so that items all but certain do not count by rounding. Weights know what
    was said of an item, not by whom: exchanging A and B turns the sign and nothing else.
    """
    size = a + b
    changes: NDArray[np.float64] = (b - a) / np.maximum(
        size + np.median(size, axis=-1, keepdims=True), np.finfo(np.float64).tiny
    )
    return changes


def clusters_of(samples: Sequence[Sample]) -> list[str | None]:
    """The cluster of each item of one suite, None where it stands alone.

    `metadata.cluster`, else `metadata.template`, names it. Of a task family every item is a problem of its own. Other
    items hang together where only numbers and names differ, unless the suite has fewer than `FEWEST_CLUSTERS` such
    templates: then it asks about these templates, and its items are draws from them.
    """
    named = [_named(sample) for sample in samples]
    own = [name is None and family_of(sample) is None for name, sample in zip(named, samples, strict=True)]
    masked = [template_fingerprint(sample) if free else None for free, sample in zip(own, samples, strict=True)]
    if len(set(masked) - {None}) < FEWEST_CLUSTERS:
        return named
    return [name or template for name, template in zip(named, masked, strict=True)]


def correctness(pairs: Sequence[Pair]) -> Correctness | None:
    """Of the pairs that both have a score; None where there is none."""
    scored = [(x, y) for x, y in pairs if x.exact is not None and y.exact is not None]
    if not scored:
        return None
    place = _places(scored)
    gained = np.array([bool(y.exact) - bool(x.exact) for x, y in scored], dtype=np.int64)
    net = np.bincount(place, weights=gained).astype(np.int64)
    return Correctness(int((gained < 0).sum()), int((gained > 0).sum()), net, np.bincount(place))


def likelihood(pairs: Sequence[Pair]) -> Likelihood | None:
    """Of the pairs whose gold answer has a likelihood on both; None where there is none."""
    likely = [(x, y) for x, y in pairs if x.likely and y.likely]
    if not likely:
        return None
    place = _places(likely)
    table = np.array([_sums(x) + _sums(y) for x, y in likely], dtype=np.float64)
    return Likelihood(np.stack([np.bincount(place, weights=column) for column in table.T], axis=1))


def by_suite(pairs: Sequence[Pair]) -> Mapping[str, list[Pair]]:
    """The pairs of each suite, in order of the names."""
    found: dict[str, list[Pair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: pair[1].suite):
        found[pair[1].suite].append(pair)
    return found


def cluster_of(pair: Pair) -> tuple[bool, str]:
    """What an item hangs together with: the cluster that either of the two readings names, else the item itself."""
    named = {item.cluster for item in pair if item.cluster is not None}
    return (True, min(named)) if named else (False, pair[0].sample_id)


def _places(pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """[pairs]: the number of each one's cluster, in order of appearance."""
    numbers: dict[tuple[bool, str], int] = {}
    return np.array([numbers.setdefault(cluster_of(pair), len(numbers)) for pair in pairs], dtype=np.int64)


def _named(sample: Sample) -> str | None:
    name = sample.metadata.get("cluster", sample.metadata.get("template"))
    return None if name is None else str(name)


def _sums(item: ItemReading) -> tuple[float, float]:
    """(nats, tokens) of the gold answer."""
    tokens = float(item.gold_tokens or 0)
    return (item.gold_nll or 0.0) * tokens, tokens
