"""Is B better than A? A paired answer over the items that both were judged on, with its uncertainty.

Two readings of every item are compared: the likelihood of the gold answer and correctness. Each has an exact test that
respects clusters (`significance`); Holm's correction over both tests, and over the suites beside the whole, keeps the
chance that anything at all is called different, where nothing is, at `alpha`. Correctness outranks likelihood where
both speak. Equal readings on every item are EQUIVALENT; too little evidence is INCONCLUSIVE, never a guess.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stokehold.core.records import Comparison, Verdict
from stokehold.evaluation.bootstrap import bootstrap_interval
from stokehold.evaluation.noise import NoiseFloor
from stokehold.evaluation.paired import (
    FEWEST_CLUSTERS,
    ItemReading,
    Pair,
    by_suite,
    cluster_of,
    correctness,
    likelihood,
)
from stokehold.evaluation.power import (
    effective_counts,
    items_needed,
    paired_share_error,
    paired_share_interval,
    smallest_detectable,
)
from stokehold.evaluation.significance import holm, mcnemar_clustered, sign_flip

__all__ = ["ALPHA", "ItemReading", "compare", "items_needed"]

ALPHA = 0.01
"""Chance that one comparison calls equal models different, all its tests and suites together."""

WHOLE_SHARE = 0.5
"""Share of alpha that the verdict over all suites begins with; the suites divide the rest evenly."""


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Readings of some pairs; None where there was nothing to test. Deltas are B - A."""

    items: int
    clusters: int
    identical: bool
    exact: float | None = None
    exact_ci: tuple[float, float] | None = None
    exact_error: float | None = None
    p_exact: float | None = None
    nll: float | None = None
    nll_ci: tuple[float, float] | None = None
    p_nll: float | None = None
    nll_agrees: bool = False
    """Whether most items and the mean moved the same way."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a claim must pass, beside its own p-values."""

    margin: float
    alpha: float
    floor: NoiseFloor | None


@dataclass(frozen=True, slots=True)
class _Tested:
    """Adjusted p-values, and the level at which correctness was tested to begin with."""

    nll: float | None
    exact: float | None
    level: float


def compare(
    a: Sequence[ItemReading],
    b: Sequence[ItemReading],
    margin: float,
    seed: int = 0,
    alpha: float = ALPHA,
    floor: NoiseFloor | None = None,
) -> Comparison:
    """B against A on shared items; `seed` moves the ends of the likelihood's interval, never the verdict.

    `margin` is the difference in exact match that does not matter. `alpha` bounds the chance that anything is called
    BETTER or WORSE, the whole or a suite, where A and B are alike. What is not beyond `floor` is never called so.
    """
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
    whole, suites = _measured(pairs, seed), by_suite(pairs)
    if whole.p_exact is None and whole.p_nll is None:
        return Comparison(Verdict.INCONCLUSIVE, 0, reason="no shared item has a reading on both")
    parts = {name: _measured(own, seed) for name, own in suites.items()} if len(suites) > 1 else {}
    rule = _Rule(margin, alpha, floor)
    tested, tested_parts = _adjusted(whole, parts, alpha)
    found = {name: _judged(part, tested_parts[name], rule) for name, part in parts.items()}
    return replace(_judged(whole, tested, rule), by_suite=found)


def _measured(pairs: Sequence[Pair], seed: int) -> _Evidence:
    right, likely = correctness(pairs), likelihood(pairs)
    found = _Evidence(
        len(pairs), len({cluster_of(pair) for pair in pairs}), all(x.shown == y.shown and x.likely for x, y in pairs)
    )
    if right is not None:
        counts = effective_counts(right)
        found = replace(
            found,
            exact=(right.gained - right.lost) / int(right.sizes.sum()),
            exact_ci=paired_share_interval(*counts),
            exact_error=paired_share_error(*counts),
            p_exact=mcnemar_clustered(right.net),
        )
    if likely is not None:
        changes, enough = likely.changes, len(likely.sums) >= FEWEST_CLUSTERS
        found = replace(
            found,
            nll=likely.delta,
            nll_ci=bootstrap_interval(likely, seed) if enough else None,
            p_nll=sign_flip(changes),
            nll_agrees=float(changes.sum()) * likely.delta > 0,
        )
    return found


def _adjusted(whole: _Evidence, parts: Mapping[str, _Evidence], alpha: float) -> tuple[_Tested, dict[str, _Tested]]:
    """Weighted Holm over all tests there are: those of the whole, and of each suite where there are several."""
    shares = {None: WHOLE_SHARE if parts else 1.0} | dict.fromkeys(parts, (1 - WHOLE_SHARE) / max(1, len(parts)))
    tests: list[tuple[str | None, str, float]] = []
    for name, part in ((None, whole), *parts.items()):
        tests += [(name, kind, p) for kind, p in (("nll", part.p_nll), ("exact", part.p_exact)) if p is not None]
    each = {name: sum(owner == name for owner, _, _ in tests) for name in shares}
    weights = [shares[owner] / each[owner] for owner, _, _ in tests]
    adjusted = holm([p for _, _, p in tests], weights)
    found = {(owner, kind): p for (owner, kind, _), p in zip(tests, adjusted, strict=True)}
    levels = {name: alpha * shares[name] / max(1, each[name]) / sum(weights) for name in shares}

    def tested(name: str | None) -> _Tested:
        return _Tested(found.get((name, "nll")), found.get((name, "exact")), levels[name])

    return tested(None), {name: tested(name) for name in parts}


def _judged(found: _Evidence, tested: _Tested, rule: _Rule) -> Comparison:
    verdict, reason = _decided(found, tested, rule)
    adjusted = [p for p in (tested.nll, tested.exact) if p is not None]
    comparison = Comparison(
        verdict,
        found.items,
        found.exact,
        found.exact_ci,
        found.p_exact,
        found.nll,
        found.nll_ci,
        reason,
        alpha=rule.alpha,
        margin=rule.margin,
        clusters=found.clusters,
        p_nll=found.p_nll,
        p_adjusted=min(adjusted, default=None),
        smallest_detectable=None if found.exact_error is None else smallest_detectable(found.exact_error, tested.level),
    )
    if verdict is not Verdict.INCONCLUSIVE:
        return comparison
    return replace(comparison, items_needed=items_needed(comparison, rule.margin))


def _decided(found: _Evidence, tested: _Tested, rule: _Rule) -> tuple[Verdict, str]:
    if found.identical:
        return Verdict.EQUIVALENT, f"the same readings on all {found.items} items"
    if claim := _claimed(found.exact, tested.exact, rule.alpha, rule.floor.exact if rule.floor else 0.0):
        delta, p = claim
        return (Verdict.BETTER if delta > 0 else Verdict.WORSE), f"exact match {delta:+.3f}, adjusted p = {p:.2g}"
    if claim := _claimed(found.nll, tested.nll, rule.alpha, rule.floor.nll if rule.floor else 0.0):
        return _by_likelihood(*claim, found, rule.margin)
    return _undecided(found, rule, tested)


def _claimed(delta: float | None, p: float | None, alpha: float, floor: float) -> tuple[float, float] | None:
    """The difference and its p-value where they carry a verdict."""
    if delta is None or p is None:
        return None
    return (delta, p) if p <= alpha and abs(delta) > floor else None


def _by_likelihood(nll: float, p: float, found: _Evidence, margin: float) -> tuple[Verdict, str]:
    better, exact = nll < 0, found.exact
    said = f"gold answers {'more' if better else 'less'} likely ({nll:+.4f} nats per token, adjusted p = {p:.2g})"
    if not found.nll_agrees:
        return Verdict.INCONCLUSIVE, f"{said}, but most items moved the other way"
    if exact is not None and (exact < -margin if better else exact > margin):
        return Verdict.INCONCLUSIVE, f"{said}, but exact match {exact:+.3f}"
    return (Verdict.BETTER if better else Verdict.WORSE), said


def _undecided(found: _Evidence, rule: _Rule, tested: _Tested) -> tuple[Verdict, str]:
    """Neither better nor worse: proven to be within the margin, or not told apart."""
    if found.exact_ci is None or found.exact_error is None:
        return Verdict.INCONCLUSIVE, f"likelihood alone shows no difference on {found.items} items"
    low, high = found.exact_ci
    if -rule.margin <= low and high <= rule.margin and found.clusters >= FEWEST_CLUSTERS:
        return Verdict.EQUIVALENT, f"exact match differs by less than {rule.margin:g}"
    seen = smallest_detectable(found.exact_error, tested.level)
    items = f"{found.items} items" + (f" in {found.clusters} clusters" if found.clusters < found.items else "")
    beyond = ", and what was found is not beyond the noise floor" if _significant(tested, rule.alpha) else ""
    return Verdict.INCONCLUSIVE, f"{items} cannot tell differences of exact match below {seen:.3f}{beyond}"


def _significant(tested: _Tested, alpha: float) -> bool:
    return any(p is not None and p <= alpha for p in (tested.nll, tested.exact))
