"""A comparison that may be looked at after every batch, and stopped whenever it is decided: anytime-valid.

Evidence is wealth won by betting. If A and B are alike, the sign of every cluster's difference is a fair coin, whatever
its size; who bets on coins starts with 1 and, by Ville's inequality, ever reaches 1/alpha with chance at most alpha, no
matter when one looks or stops. Wealth is spread over bets of several sizes, both ways, on likelihood and correctness.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from stokehold.core.records import Verdict
from stokehold.evaluation.paired import Pair, cluster_of, relative_changes
from stokehold.evaluation.verdict import ALPHA

LIKELIHOOD_BETS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Sizes of mean over root mean square of the differences; the bet of a size near the true one grows fastest."""

CORRECTNESS_BETS = (0.1, 0.2, 0.4, 0.8)
"""Excess of one side among clusters that changed: at 0.4, 70 of 100 changed the same way."""

MARGIN_BETS = (1 / 64, 1 / 16, 1 / 4, 0.9)
"""Shares of the wealth laid on a difference within the margin; the fewer items change, the larger the best one."""

FEWEST_DRAWN = 10
"""Items to draw at least: a look costs a batch."""

Array = NDArray[np.float64]


def likelihood_gains(changes: Array, scale: Array) -> Array:
    """[..., clusters] of changes and [..., 1] their scale: log wealth [..., 2, bets] won on B worse, and on B better.

    `scale` may depend on everything but the signs.
    """
    ratio = 2 * np.divide(changes, scale, out=np.zeros_like(changes), where=scale > 0)
    worse = [math.log(2) * ratio.shape[-1] - np.logaddexp(0, -bet * ratio).sum(axis=-1) for bet in LIKELIHOOD_BETS]
    better = [math.log(2) * ratio.shape[-1] - np.logaddexp(0, bet * ratio).sum(axis=-1) for bet in LIKELIHOOD_BETS]
    return np.stack([np.stack(worse, axis=-1), np.stack(better, axis=-1)], axis=-2)


def correctness_wealth(lost: Array, gained: Array) -> Array:
    """[...] clusters that went either way: log wealth [..., 2, bets] on B worse, and on B better."""
    up, down = np.log1p(CORRECTNESS_BETS), np.log1p(-np.array(CORRECTNESS_BETS))
    worse = lost[..., None] * up + gained[..., None] * down
    better = gained[..., None] * up + lost[..., None] * down
    return np.stack([worse, better], axis=-2)


def evidence(likelihood: Array, correctness: Array) -> Array:
    """Log wealth [..., 2] on B worse and on B better, from [..., 2, bets] of each reading.

    The mean of the two sides is an e-value of "A and B are alike".
    """
    return np.logaddexp(_mean(likelihood), _mean(correctness)) - math.log(2)


def margin_gains(shares: Array, margin: float) -> Array:
    """[..., clusters] of differences in [-1, 1]: log wealth [..., 2, bets] against B better, and worse, by `margin`."""
    sides = []
    for side in (1.0, -1.0):
        sides.append(np.stack([np.log1p(bet * (margin - side * shares)).sum(axis=-1) for bet in MARGIN_BETS], axis=-1))
    return np.stack(sides, axis=-2)


@dataclass(frozen=True, slots=True)
class SequentialComparison:
    """B against A so far: evidence in, a new state out; nothing is forgotten and nothing else is kept.

    `decision` is BETTER, WORSE or EQUIVALENT once that is settled, for good; `alpha` bounds the chance of a false
    one. It is BROKEN after a likelihood that is not finite. A cluster counts once, in the batch where it first appears:
    draw items of one cluster together.
    """

    margin: float
    alpha: float = ALPHA
    decision: Verdict | None = None
    items: int = 0
    clusters: int = 0
    lost: int = 0
    gained: int = 0
    net: float = 0.0
    """Sum over clusters of B's exact share less A's."""

    energy: float = 0.0
    """Sum of squared relative changes of nats."""

    likelihood: tuple[tuple[float, ...], ...] = ((0.0,) * len(LIKELIHOOD_BETS),) * 2
    margins: tuple[tuple[float, ...], ...] = ((0.0,) * len(MARGIN_BETS),) * 2
    seen: frozenset[tuple[bool, str]] = field(default_factory=frozenset)

    def update(self, pairs: Sequence[Pair]) -> "SequentialComparison":
        """The state after another batch; the order inside it changes nothing. Decided states stay as they are."""
        groups: dict[tuple[bool, str], list[Pair]] = defaultdict(list)
        for pair in pairs:
            if cluster_of(pair) not in self.seen:
                groups[cluster_of(pair)].append(pair)
        if self.decision is not None or not groups:
            return self
        found = [_difference(group) for _, group in sorted(groups.items())]
        nats = np.array([sums for sums, _ in found])
        shares = np.array([share for _, share in found if share is not None])
        if not np.isfinite(nats).all():
            return replace(self, decision=Verdict.BROKEN)
        changes = relative_changes(nats[:, 0], nats[:, 1])
        energy = self.energy + float((changes**2).sum())
        clusters = self.clusters + len(groups)
        # Weights and scale know the sizes in this batch, never the signs: the coins stay fair.
        won = likelihood_gains(changes, np.array([math.sqrt(energy / clusters)]))
        grown = replace(
            self,
            items=self.items + sum(map(len, groups.values())),
            clusters=clusters,
            lost=self.lost + int((shares < 0).sum()),
            gained=self.gained + int((shares > 0).sum()),
            net=self.net + float(shares.sum()),
            energy=energy,
            likelihood=_added(self.likelihood, won),
            margins=_added(self.margins, margin_gains(shares, self.margin)),
            seen=self.seen | groups.keys(),
        )
        return replace(grown, decision=grown._decided())

    @property
    def wealth(self) -> tuple[float, float]:
        """Log wealth on B worse, and on B better."""
        worse, better = evidence(np.array(self.likelihood), self._correctness())
        return float(worse), float(better)

    def more_items(self) -> int:
        """How many to draw before the next look, 0 once decided: what is missing at the present rate of growth.

        Never more than there are, so a rate read from few items is corrected soon.
        """
        if self.decision is not None:
            return 0
        target = math.log(1 / self.alpha)
        best = max(float(np.max(self.likelihood)), float(self._correctness().max()))
        within = min(max(side) for side in self.margins)
        reached = (self._log_evidence(), best), (min(_mean(np.array(self.margins))), within)
        missing = [(target - now) / grown * self.items for now, grown in reached if grown > 0]
        wanted = math.ceil(min([*missing, float(self.items)]))
        return max(FEWEST_DRAWN, min(wanted, self.items))

    def _decided(self) -> Verdict | None:
        if self._log_evidence() >= math.log(1 / self.alpha):
            worse, better = self.wealth
            mean = self.net / self.clusters
            # Likelihood alone does not outvote a visible change of correctness the other way.
            if worse > better and mean <= self.margin:
                return Verdict.WORSE
            if better > worse and mean >= -self.margin:
                return Verdict.BETTER
        if min(_mean(np.array(self.margins))) >= math.log(1 / self.alpha):
            return Verdict.EQUIVALENT
        return None

    def _correctness(self) -> Array:
        return correctness_wealth(np.array(float(self.lost)), np.array(float(self.gained)))

    def _log_evidence(self) -> float:
        return float(np.logaddexp(*self.wealth)) - math.log(2)


def _difference(group: Sequence[Pair]) -> tuple[tuple[float, float], float | None]:
    """Of one cluster: nats under A and B, 0 without any, and the difference of exact shares."""
    likely = [pair for pair in group if all(item.likely for item in pair)]
    nats_a, nats_b = (math.fsum((p[i].gold_nll or 0.0) * (p[i].gold_tokens or 0) for p in likely) for i in (0, 1))
    right = [bool(y.exact) - bool(x.exact) for x, y in group if x.exact is not None and y.exact is not None]
    return (nats_a, nats_b), sum(right) / len(right) if right else None


def _mean(logs: Array) -> Array:
    """Log of the mean wealth over the last axis."""
    top = logs.max(axis=-1)
    found: Array = top + np.log(np.exp(logs - top[..., None]).mean(axis=-1))
    return found


def _added(before: tuple[tuple[float, ...], ...], won: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in (np.array(before) + won).tolist())
