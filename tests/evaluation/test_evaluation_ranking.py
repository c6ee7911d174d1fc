"""Ranks hold what is known: ties stay ties, order of input has no part, and what differs clearly is told apart."""

import random
from collections.abc import Iterator
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stokehold.evaluation.paired import ItemReading
from stokehold.evaluation.ranking import Ranking, items_to_tell, rank
from stokehold.evaluation.significance import mcnemar_exact
from stokehold.evaluation.verdict import ALPHA

MODELS = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=5)


def readings(right: list[bool], nll: list[float] | None = None) -> list[ItemReading]:
    likely = nll or [0.5] * len(right)
    return [ItemReading(f"s/{k}", one, likely[k], 4) for k, one in enumerate(right)]


def share_right(items: int, right: int) -> list[bool]:
    return [k < right for k in range(items)]


def paired(models: list[list[bool]]) -> Iterator[Iterator[tuple[bool, bool]]]:
    return (zip(x, y, strict=True) for x, y in combinations(models, 2))


def by_name(ranking: Ranking) -> dict[str, int]:
    return {place.name: place.rank for place in ranking.places}


@settings(max_examples=25)
@given(MODELS, st.randoms(use_true_random=False))
def test_the_order_of_input_has_no_part(models: list[list[bool]], chance: random.Random) -> None:
    entrants = {f"m{k}": readings(right) for k, right in enumerate(models)}
    shuffled = list(entrants)
    chance.shuffle(shuffled)
    mixed = {name: chance.sample(entrants[name], len(entrants[name])) for name in shuffled}
    assert rank(mixed) == rank(entrants)


@settings(max_examples=25)
@given(MODELS)
def test_identical_models_tie(models: list[list[bool]]) -> None:
    entrants = {f"m{k}": readings(right) for k, right in enumerate(models)}
    found = rank({**entrants, "copy": entrants["m0"]})
    first, copy = (next(place for place in found.places if place.name == name) for name in ("m0", "copy"))
    assert (first.rank, first.rank_ci, first.exact) == (copy.rank, copy.rank_ci, copy.exact)
    assert first.rank_ci[0] <= first.rank <= first.rank_ci[1]


def test_a_clearly_better_one_is_first_and_alone() -> None:
    found = rank(
        {"a": readings(share_right(200, 60)), "b": readings(share_right(200, 62)), "c": readings(share_right(200, 150))}
    )
    assert [place.name for place in found.places] == ["c", "b", "a"]
    assert by_name(found) == {"c": 1, "b": 2, "a": 2}
    assert found.places[0].rank_ci == (1, 1)
    assert found.places[0].gap is not None
    assert found.places[0].gap.apart
    second = found.places[1].gap
    assert second is not None
    assert (second.ahead, second.behind, second.apart) == (2, 0, False)
    assert second.items_to_tell is not None
    assert second.items_to_tell > 200
    assert (found.items, found.by, found.pairs) == (200, "exact", 3)
    assert found.places[-1].gap is None


def test_many_equal_models_are_not_told_apart() -> None:
    """Of 10 models with the same chance on every item, 45 pairs: without a correction a pair stands out."""
    chance = random.Random(23)
    models = [[chance.random() < 0.5 for _ in range(150)] for _ in range(10)]
    pairs = [(sum(x > y for x, y in both), sum(y > x for x, y in both)) for both in map(list, paired(models))]
    assert min(mcnemar_exact(*pair) for pair in pairs) < ALPHA / 5
    assert set(by_name(rank({f"m{k}": readings(right) for k, right in enumerate(models)})).values()) == {1}


def test_likelihood_breaks_ties_of_correctness_only_where_it_agrees() -> None:
    chance = random.Random(1)
    noise = [chance.random() * 0.1 for _ in range(100)]
    low, high = [0.5 + value for value in noise], [1.0 + value for value in reversed(noise)]
    none = [False] * 100
    assert by_name(rank({"unlikely": readings(none, high), "likely": readings(none, low)})) == {
        "likely": 1,
        "unlikely": 2,
    }
    one = [True] + [False] * 99
    contradicted = rank({"unlikely": readings(one, high), "likely": readings(none, low)})
    assert [place.name for place in contradicted.places] == ["unlikely", "likely"]
    assert set(by_name(contradicted).values()) == {1}


def test_plain_text_is_ranked_by_likelihood() -> None:
    def text(nll: float) -> list[ItemReading]:
        return [ItemReading(str(k), None, nll + k / 1000, 5) for k in range(30)]

    found = rank({"worse": text(2.0), "better": text(1.0)})
    assert (found.by, by_name(found)) == ("nll_per_token", {"better": 1, "worse": 2})
    assert found.places[0].exact is None
    assert found.places[0].exact_ci is None


def test_rewordings_of_one_question_are_one_piece_of_evidence() -> None:
    def clustered(right: bool) -> list[ItemReading]:
        sure = [ItemReading(f"q{k}", True, None, None, "", f"q{k}") for k in range(10)]
        return sure + [ItemReading(f"r{k}", right, None, None, "", "one question") for k in range(60)]

    assert set(by_name(rank({"a": clustered(True), "b": clustered(False)})).values()) == {1}


def test_only_shared_items_count_and_strangers_are_named() -> None:
    wide, narrow = readings(share_right(30, 30)), readings(share_right(20, 10))
    stranger = [ItemReading("elsewhere/1", True)]
    found = rank({"wide": wide, "narrow": narrow, "stranger": stranger})
    assert (found.items, found.left_out) == (20, ("stranger",))
    assert {place.name for place in found.places} == {"wide", "narrow"}
    empty = rank({})
    assert (empty.items, empty.places) == (0, ())


@pytest.mark.parametrize(("ahead", "behind", "wanted"), [(20, 10, 234), (5, 5, None), (0, 0, None)])
def test_items_that_would_tell(ahead: int, behind: int, wanted: int | None) -> None:
    """Connor 1987 by hand: shares .2 and .1 discordant at 5 % and 80 %: ((1.96 √.3 + .8416 √.29) / .1)² = 233.1."""
    assert items_to_tell(ahead, behind, 100, 0.05) == wanted
