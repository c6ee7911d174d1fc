"""The tests behind a verdict against SciPy's and statsmodels', and the laws that any comparison must keep."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from stokehold.core.records import Comparison, Message, Sample, Verdict
from stokehold.evaluation.bootstrap import bootstrap_interval
from stokehold.evaluation.noise import NoiseFloor, noise_floor
from stokehold.evaluation.paired import (
    FEWEST_CLUSTERS,
    ItemReading,
    Likelihood,
    clusters_of,
    correctness,
    relative_changes,
)
from stokehold.evaluation.power import design_effect, items_needed, paired_share_interval, smallest_detectable
from stokehold.evaluation.significance import (
    ENUMERATED,
    holm,
    mcnemar_clustered,
    mcnemar_exact,
    sign_flip,
    sign_flip_saddlepoint,
)
from stokehold.evaluation.verdict import ALPHA, compare

MARGIN = 0.02
MIRROR = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}


def drawn(n: int, seed: int, share: float = 0.6, factor: float = 1.0, suite: str = "") -> list[ItemReading]:
    """`n` items of the same difficulty at every seed; `factor` makes gold answers less likely."""
    hard = np.random.default_rng(n).normal(0, 1, n)
    own = np.random.default_rng(seed)
    nll = np.exp(hard + own.normal(0, 0.3, n)) * factor
    right = own.random(n) < share
    return [ItemReading(f"{suite}/{k}", bool(right[k]), float(nll[k]), 5 + k % 7, suite) for k in range(n)]


def with_clusters(items: list[ItemReading], size: int) -> list[ItemReading]:
    return [replace(item, cluster=f"c{k // size}") for k, item in enumerate(items)]


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_statsmodels(lost: int, gained: int) -> None:
    expected = mcnemar([[40, lost], [gained, 7]], exact=True).pvalue
    assert mcnemar_exact(lost, gained) == pytest.approx(min(1.0, expected), rel=1e-9)
    net = np.array([-1] * lost + [1] * gained + [0] * 5)
    assert mcnemar_clustered(net) == mcnemar_exact(lost, gained)


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_clustered_mcnemar_counts_every_sign_pattern(net: list[int]) -> None:
    sums = [
        abs(sum(s * d for s, d in zip(signs, net, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(net))
    ]
    expected = sum(one >= abs(sum(net)) for one in sums) / len(sums)
    assert mcnemar_clustered(np.array(net, dtype=np.int64)) == pytest.approx(expected, rel=1e-9)


def test_the_sign_flip_test_is_scipys_permutation_test() -> None:
    moved = np.random.default_rng(3).normal(0.4, 1, 12)
    expected = stats.permutation_test((moved,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(moved) == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize("shift", [0.1, 0.4, 0.8, 1.2])
def test_the_saddlepoint_follows_the_exact_distribution_into_its_tail(shift: float) -> None:
    moved = np.random.default_rng(5).normal(shift, 1, 20)
    signs = np.zeros(1)
    for one in moved:
        signs = np.concatenate([signs + one, signs - one])
    exact = float(np.mean(np.abs(signs) >= abs(moved.sum()) - 1e-12))
    assert len(moved) > ENUMERATED
    assert sign_flip(moved) == pytest.approx(exact, rel=0.06)


def test_signs_that_all_agree_have_the_least_p_there_is() -> None:
    moved = np.random.default_rng(1).random(40) + 0.1
    assert sign_flip(moved) == 2.0**-39
    assert sign_flip(moved[:10]) == 2.0**-9
    assert sign_flip(np.zeros(30)) == sign_flip(np.zeros(0)) == 1.0


def test_p_of_alike_differences_is_uniform() -> None:
    moved = np.random.default_rng(2).standard_t(3, (4000, 60))
    p = sign_flip_saddlepoint(moved)
    for level in (0.005, 0.05, 0.5):
        assert float((p <= level).mean()) == pytest.approx(level, abs=3.5 * math.sqrt(level / 4000))


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    _, expected, _, _ = multipletests(p_values, alpha=0.05, method="holm")
    found = holm(p_values)
    assert found == pytest.approx(list(expected))
    assert holm(p_values, [2.5] * len(p_values)) == pytest.approx(found)


def test_weights_of_holm_are_shares_of_alpha() -> None:
    assert holm([0.009, 0.001], [9, 1]) == pytest.approx([0.01, 0.01])
    assert holm([0.009, 0.5], [9, 1]) == pytest.approx([0.01, 0.5])
    assert holm([0.009, 0.5], [1, 9])[0] > 0.05


def test_the_bootstrap_is_scipys_over_clusters() -> None:
    random = np.random.default_rng(4)
    nats = random.gamma(2, 3, (80, 2)) + np.array([0.0, 0.8])
    tokens = random.integers(3, 60, 80).astype(float)
    found = Likelihood(np.stack([nats[:, 0], tokens, nats[:, 1], tokens], axis=1))

    def delta(a: np.ndarray, b: np.ndarray, n: np.ndarray, axis: int) -> np.ndarray:
        return (b - a).sum(axis) / n.sum(axis)

    expected = stats.bootstrap(
        (nats[:, 0], nats[:, 1], tokens),
        delta,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=1,
    ).confidence_interval
    width = expected.high - expected.low
    assert bootstrap_interval(found, 0) == pytest.approx((expected.low, expected.high), abs=0.06 * width)


@settings(max_examples=60)
@given(
    st.integers(0, 60), st.integers(0, 999), st.floats(0.8, 1.3), st.integers(1, 4), st.randoms(use_true_random=False)
)
def test_a_comparison_mirrors_and_knows_no_order(n: int, seed: int, factor: float, size: int, random: object) -> None:
    a = with_clusters(drawn(n, seed), size)
    b = with_clusters(drawn(n, seed + 1, 0.5, factor), size)
    one, other = compare(a, b, MARGIN, seed), compare(b, a, MARGIN, seed)
    assert other.verdict is MIRROR.get(one.verdict, one.verdict)
    assert (other.p_value, other.p_nll, other.p_adjusted) == (
        one.p_value,
        pytest.approx(one.p_nll),
        pytest.approx(one.p_adjusted),
    )
    shuffled = b[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert compare(list(reversed(a)), shuffled, MARGIN, seed) == one


@settings(max_examples=40)
@given(st.integers(10, 60), st.integers(0, 999), st.integers(2, 5))
def test_saying_an_item_again_in_its_cluster_adds_nothing(n: int, seed: int, times: int) -> None:
    a, b = drawn(n, seed), drawn(n, seed + 1, 0.45, 1.1)

    def again(items: list[ItemReading]) -> list[ItemReading]:
        return [replace(i, sample_id=f"{i.sample_id}#{t}", cluster=i.sample_id) for i in items for t in range(times)]

    once, often = compare(a, b, MARGIN), compare(again(a), again(b), MARGIN)
    assert often.items == times * n
    assert often.clusters == once.clusters == n
    assert often.verdict is once.verdict
    for name in ("p_value", "p_nll", "p_adjusted", "delta_exact", "delta_exact_ci", "smallest_detectable"):
        assert getattr(often, name) == pytest.approx(getattr(once, name)), name


def test_items_of_one_cluster_would_have_been_called_evidence() -> None:
    a = [ItemReading(str(k), True, cluster=f"c{k // 20}") for k in range(200)]
    b = [replace(item, exact=k >= 60) for k, item in enumerate(a)]
    assert compare(a, b, MARGIN).verdict is Verdict.INCONCLUSIVE
    found = compare([replace(i, cluster=None) for i in a], [replace(i, cluster=None) for i in b], MARGIN)
    assert found.verdict is Verdict.WORSE


def test_a_cluster_that_only_one_evaluation_names_counts() -> None:
    a, b = drawn(100, 1), drawn(100, 2)
    whole = compare(with_clusters(a, 5), with_clusters(b, 5), MARGIN)
    assert whole.clusters == 20
    assert compare(a, with_clusters(b, 5), MARGIN) == compare(with_clusters(a, 5), b, MARGIN) == whole


def test_the_design_effect_is_one_for_single_items_and_the_size_for_copies() -> None:
    a, b = drawn(40, 1), drawn(40, 2)
    pairs = list(zip(a, b, strict=True))
    alone = correctness(pairs)
    assert alone is not None
    assert design_effect(alone) == 1.0
    copies = [(replace(x, cluster=x.sample_id), y) for x, y in pairs for _ in range(3)]
    found = correctness(copies)
    assert found is not None
    assert design_effect(found) == pytest.approx(3.0)
    agree = correctness([(replace(x, cluster=x.sample_id), x) for x in a for _ in range(3)])
    assert agree is not None
    assert design_effect(agree) == pytest.approx(3.0), "nothing differs: the most it could be"


def test_few_clusters_prove_no_equivalence() -> None:
    a = [ItemReading(str(k), k % 2 == 0, cluster=f"c{k % 3}") for k in range(6000)]
    b = [replace(item, exact=not item.exact) if k < 6 else item for k, item in enumerate(a)]
    assert compare(a, b, MARGIN).verdict is Verdict.INCONCLUSIVE
    alone = compare([replace(i, cluster=None) for i in a], [replace(i, cluster=None) for i in b], MARGIN)
    assert alone.verdict is Verdict.EQUIVALENT


def test_each_suite_has_its_own_comparison_and_all_are_corrected_together() -> None:
    a = drawn(150, 1, suite="x") + drawn(150, 3, suite="y")
    b = drawn(150, 2, share=0.4, factor=1.6, suite="x") + drawn(150, 4, suite="y")
    found = compare(a, b, MARGIN)
    assert set(found.by_suite) == {"x", "y"}
    x, y = found.by_suite["x"], found.by_suite["y"]
    assert (x.verdict, y.verdict) == (Verdict.WORSE, Verdict.INCONCLUSIVE)
    own = compare(a[:150], b[:150], MARGIN)
    assert own.by_suite == {}
    assert (x.items, x.p_nll, x.delta_exact) == (150, own.p_nll, own.delta_exact)
    assert (x.p_adjusted or 0) > (own.p_adjusted or 0)
    assert (x.smallest_detectable or 0) > (own.smallest_detectable or 0)
    assert (found.alpha, x.alpha) == (ALPHA, ALPHA)


def test_many_suites_raise_no_more_false_alarms() -> None:
    false = 0
    for run in range(80):
        a = [item for k in range(6) for item in drawn(30, 1000 * run + k, suite=str(k))]
        b = [item for k in range(6) for item in drawn(30, 1000 * run + 500 + k, suite=str(k))]
        found = compare(a, b, MARGIN, alpha=0.1)
        false += any(one.verdict in MIRROR for one in (found, *found.by_suite.values()))
    assert 1 <= false <= 16, "10 %, and the noise of 80 runs"


def test_a_hard_item_does_not_drown_the_others() -> None:
    a = [ItemReading(str(k), None, 0.5, 10) for k in range(60)]
    b = [replace(item, gold_nll=0.55 + 0.001 * k) for k, item in enumerate(a)]
    hard = ItemReading("hard", None, 90.0, 400)
    assert compare([*a, hard], [*b, replace(hard, gold_nll=91.0)], MARGIN).verdict is Verdict.WORSE
    contrary = compare([*a, hard], [*b, replace(hard, gold_nll=80.0)], MARGIN)
    assert contrary.verdict is Verdict.INCONCLUSIVE
    assert "other way" in (contrary.reason or "")


def test_changes_know_sizes_but_not_by_whom() -> None:
    a, b = np.array([1.0, 0.0, 5.0]), np.array([2.0, 0.0, 4.0])
    assert relative_changes(a, b).tolist() == (-relative_changes(b, a)).tolist()
    assert relative_changes(np.zeros(3), np.zeros(3)).tolist() == [0.0] * 3
    assert (np.abs(relative_changes(a, b * 1e9)) < 1).all()


def test_the_floor_is_what_the_same_weights_show() -> None:
    a = drawn(50, 1)
    assert noise_floor([a, a, a]) == NoiseFloor(0.0, 0.0, 0.0, 3)
    shaken = [
        replace(i, exact=not i.exact if k < 2 else i.exact, gold_nll=(i.gold_nll or 0) + 0.01) for k, i in enumerate(a)
    ]
    found = noise_floor([a, shaken, a])
    assert found is not None
    assert (found.nll, found.moved, found.runs) == (pytest.approx(0.01), pytest.approx(0.04), 3)
    assert found.exact in (pytest.approx(0.0), pytest.approx(0.04))
    assert noise_floor([a]) is None
    assert noise_floor([a, drawn(50, 1, suite="other")]) is None


def test_nothing_below_the_floor_is_called_different() -> None:
    a = drawn(100, 1)
    b = [replace(item, gold_nll=(item.gold_nll or 0) + 1e-4) for item in a]
    assert compare(a, b, MARGIN).verdict is Verdict.WORSE
    floor = NoiseFloor(exact=0.0, nll=2e-4, moved=0.0, runs=2)
    found = compare(a, b, MARGIN, floor=floor)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "noise floor" in (found.reason or "")
    assert compare(a, b, MARGIN, floor=replace(floor, nll=5e-5)).verdict is Verdict.WORSE
    wrong = [replace(item, exact=k >= 30 and item.exact, gold_nll=None) for k, item in enumerate(a)]
    bare = [replace(item, gold_nll=None) for item in a]
    assert compare(bare, wrong, MARGIN).verdict is Verdict.WORSE
    assert compare(bare, wrong, MARGIN, floor=replace(floor, exact=0.5)).verdict is not Verdict.WORSE


def test_the_smallest_detectable_difference_is_found_four_times_in_five() -> None:
    random, n, level = np.random.default_rng(8), 400, 0.005
    error = math.sqrt(0.2 / n)
    delta = smallest_detectable(error, level)
    lost = random.binomial(n, 0.1 + delta / 2, 4000)
    gained = np.array([random.binomial(n - x, (0.1 - delta / 2) / (0.9 - delta / 2)) for x in lost])
    found = np.array([mcnemar_exact(int(x), int(y)) <= level for x, y in zip(lost, gained, strict=True)])
    assert found.mean() == pytest.approx(0.8, abs=0.06)


def test_items_needed_settles_the_matter() -> None:
    a, b = drawn(60, 1), drawn(60, 2, factor=1.08)
    first = compare(a, b, MARGIN)
    assert first.verdict is Verdict.INCONCLUSIVE
    assert first.items_needed == items_needed(first, MARGIN)
    assert 60 < (first.items_needed or 0) < 5000
    low, high = paired_share_interval(5, 5, 100)
    level = Comparison(Verdict.INCONCLUSIVE, 100, 0.0, (low, high), alpha=ALPHA)
    assert items_needed(level, MARGIN) == math.ceil(100 * ((high - low) / 2 / MARGIN) ** 2)
    assert items_needed(Comparison(Verdict.INCONCLUSIVE, 3), MARGIN) is None


def asked(text: str, **metadata: object) -> Sample:
    return Sample(text, (Message("user", text), Message("assistant", "x")), metadata=metadata)


def test_users_items_hang_together_by_template_and_task_items_stand_alone() -> None:
    suite = [asked(f"{'word ' * (k % FEWEST_CLUSTERS)}what is {k}?") for k in range(30)]
    found = clusters_of(suite)
    assert len(set(found)) == FEWEST_CLUSTERS
    assert found[0] == found[FEWEST_CLUSTERS]
    assert clusters_of([asked(f"what is {k}?") for k in range(30)]) == [None] * 30, (
        "one template is no sample of templates"
    )
    family = [replace(sample, metadata={"family": "arithmetic"}) for sample in suite]
    assert clusters_of(family) == [None] * 30
    for own in ("billing", ["arithmetic"], None):
        named = [replace(sample, metadata={"family": own}) for sample in suite]
        assert clusters_of(named) == found, "a word for one's own groups makes nobody stand alone"
    assert clusters_of([asked("a", template="t1"), asked("b", cluster="c", template="t1")]) == ["t1", "c"]
