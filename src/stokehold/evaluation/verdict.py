"""Is B better than A? A paired answer over the items that both were judged on, with its uncertainty.

Two readings of every item are compared: the likelihood of the gold answer (paired bootstrap of nats per token, the
more sensitive one) and correctness (exact McNemar test). Correctness outranks likelihood where both speak. Equal
readings on every item are EQUIVALENT; too little evidence is INCONCLUSIVE, never a guess.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stokehold.core.records import Comparison, Completion, Score, Verdict
from stokehold.evaluation.metrics import Z_95

ALPHA = 0.05
"""Chance of calling equal models different, for each of the two tests."""

RESAMPLES = 4000
"""Bootstrap resamples: the ends of a 95 % interval move by about 2 % of its width between seeds."""

MIN_BOOTSTRAP_ITEMS = 10
"""Below this the percentile bootstrap covers far less than it says; likelihood then decides nothing."""

RESAMPLE_CELLS = 2**21
"""Indices drawn at once: 16 MB."""


@dataclass(frozen=True, slots=True)
class ItemReading:
    """What one model showed on one item; None where it was not measured. `gold_nll` is in nats per gold token."""

    sample_id: str
    exact: bool | None
    gold_nll: float | None = None
    gold_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _Evidence:
    """The two tests; None where there was nothing to test. Deltas are B - A."""

    exact: float | None = None
    exact_ci: tuple[float, float] | None = None
    p_value: float | None = None
    nll: float | None = None
    nll_ci: tuple[float, float] | None = None


def item_readings(completions: Sequence[Completion], scores: Sequence[Score], suite: str = "") -> list[ItemReading]:
    """Readings of one suite; with `suite`, ids carry its name, so that suites can be compared together."""
    return [
        ItemReading(
            sample_id=f"{suite}/{done.sample_id}" if suite else done.sample_id,
            exact=None if found.value is None else found.exact,
            gold_nll=done.gold_nll,
            gold_tokens=done.gold_tokens,
        )
        for done, found in zip(completions, scores, strict=True)
    ]


def compare(a: Sequence[ItemReading], b: Sequence[ItemReading], margin: float, seed: int = 0) -> Comparison:
    """B against A on shared items. `margin` is the difference in exact match that does not matter."""
    first, second = {item.sample_id: item for item in a}, {item.sample_id: item for item in b}
    if len(first) < len(a) or len(second) < len(b):
        return Comparison(Verdict.BROKEN, 0, reason="an item was judged twice in one evaluation")
    if any(item.gold_nll is not None and not math.isfinite(item.gold_nll) for item in (*a, *b)):
        return Comparison(Verdict.BROKEN, 0, reason="a likelihood is not finite")
    if not a or not b:
        return Comparison(Verdict.INCONCLUSIVE, 0, reason=f"nothing was judged: {len(a)} and {len(b)} items")
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return Comparison(Verdict.INCONCLUSIVE, 0, reason="no item was judged on both")
    pairs = [(first[name], second[name]) for name in shared]
    likely = [(x, y) for x, y in pairs if _has_nll(x) and _has_nll(y)]
    scored = [(x, y) for x, y in pairs if x.exact is not None and y.exact is not None]
    if not likely and not scored:
        return Comparison(Verdict.INCONCLUSIVE, 0, reason="no shared item has a reading on both")
    evidence = _evidence(scored, likely, seed)
    verdict, reason = _decide(evidence, margin, len(shared), identical=_identical(pairs))
    return Comparison(
        verdict,
        len(shared),
        evidence.exact,
        evidence.exact_ci,
        evidence.p_value,
        evidence.nll,
        evidence.nll_ci,
        reason,
    )


def items_needed(comparison: Comparison, margin: float) -> int | None:
    """About how many items would bring the interval of exact match inside ± margin; None where that is unknown."""
    if comparison.delta_exact_ci is None:
        return None
    low, high = comparison.delta_exact_ci
    # The half-width falls with the root of the number of items.
    return max(comparison.items, math.ceil(comparison.items * ((high - low) / 2 / margin) ** 2))


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p that `lost` and `gained` discordant items come from a fair coin; 1 when there are none."""
    n, fewer = lost + gained, min(lost, gained)
    tail = ways = 1
    for k in range(fewer):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    # Whole numbers until the end: exact at any n.
    return min(1.0, 2 * tail / (1 << n))


def paired_share_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired shares over n > 0 items (Bonett and Price 2012, adjusted Wald).

    It keeps a width where no item differs: ten items on which two models agree do not prove them equal.
    """
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z_95 * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def bootstrap_nll(pairs: Sequence[tuple[ItemReading, ItemReading]], seed: int) -> tuple[float, tuple[float, float]]:
    """Difference B - A of nats per token, and its 95 % percentile interval over resampled items."""
    table = np.array([_sums(x) + _sums(y) for x, y in pairs], dtype=np.float64)  # [items, 4]
    random = np.random.default_rng(seed)
    chunk = max(1, RESAMPLE_CELLS // len(table))
    deltas: list[NDArray[np.float64]] = []
    for start in range(0, RESAMPLES, chunk):
        drawn = random.integers(0, len(table), size=(min(chunk, RESAMPLES - start), len(table)))
        sums = np.stack([column[drawn].sum(axis=1) for column in table.T], axis=1)
        deltas.append(sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1])
    low, high = np.quantile(np.concatenate(deltas), [ALPHA / 2, 1 - ALPHA / 2])
    nats_a, tokens_a, nats_b, tokens_b = table.sum(axis=0)
    return float(nats_b / tokens_b - nats_a / tokens_a), (float(low), float(high))


def _evidence(
    scored: Sequence[tuple[ItemReading, ItemReading]], likely: Sequence[tuple[ItemReading, ItemReading]], seed: int
) -> _Evidence:
    exact = exact_ci = p_value = nll = nll_ci = None
    if scored:
        lost = sum(bool(x.exact) and not y.exact for x, y in scored)
        gained = sum(bool(y.exact) and not x.exact for x, y in scored)
        exact = (gained - lost) / len(scored)
        exact_ci = paired_share_interval(lost, gained, len(scored))
        p_value = mcnemar_exact(lost, gained)
    if likely:
        nll, nll_ci = bootstrap_nll(likely, seed)
        nll_ci = nll_ci if len(likely) >= MIN_BOOTSTRAP_ITEMS else None
    return _Evidence(exact, exact_ci, p_value, nll, nll_ci)


def _decide(evidence: _Evidence, margin: float, items: int, identical: bool) -> tuple[Verdict, str]:
    if identical:
        return Verdict.EQUIVALENT, f"the same readings on all {items} items"
    delta, p_value, nll_ci = evidence.exact, evidence.p_value, evidence.nll_ci
    if delta is not None and p_value is not None and p_value < ALPHA:
        return (Verdict.BETTER if delta > 0 else Verdict.WORSE), f"exact match {delta:+.3f}, p = {p_value:.2g}"
    if nll_ci is not None and (nll_ci[1] < 0 or nll_ci[0] > 0):
        better = nll_ci[1] < 0
        likelihood = f"gold answers {'more' if better else 'less'} likely ({evidence.nll:+.4f} nats per token)"
        if delta is not None and (delta < -margin if better else delta > margin):
            return Verdict.INCONCLUSIVE, f"{likelihood}, but exact match {delta:+.3f}"
        return (Verdict.BETTER if better else Verdict.WORSE), likelihood
    if evidence.exact_ci is None:
        return Verdict.INCONCLUSIVE, f"likelihood alone shows no difference on {items} items"
    low, high = evidence.exact_ci
    if -margin <= low and high <= margin:
        return Verdict.EQUIVALENT, f"exact match differs by less than {margin:g}"
    return Verdict.INCONCLUSIVE, f"{items} items cannot tell differences of exact match below {(high - low) / 2:.3f}"


def _identical(pairs: Sequence[tuple[ItemReading, ItemReading]]) -> bool:
    """Whether both showed the same on every item: then what differs cannot be seen here, and chance has no part."""
    return all(x == y and _has_nll(x) for x, y in pairs)


def _has_nll(item: ItemReading) -> bool:
    return item.gold_nll is not None and bool(item.gold_tokens)


def _sums(item: ItemReading) -> tuple[float, float]:
    """(nats, tokens) of the gold answer."""
    tokens = float(item.gold_tokens or 0)
    return (item.gold_nll or 0.0) * tokens, tokens
