"""Best-fit decreasing: everything packed once, nothing over capacity, and the law that resuming rests on."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.data.packing import pack

LENGTHS = st.lists(st.integers(1, 40), max_size=60)
CAPACITIES = st.integers(1, 50)


@given(LENGTHS, CAPACITIES)
def test_every_item_is_in_one_bin_and_bins_hold(lengths: list[int], capacity: int) -> None:
    bins = pack(lengths, capacity)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    for items in bins:
        assert sum(lengths[i] for i in items) <= capacity or len(items) == 1
        assert [lengths[i] for i in items] == sorted((lengths[i] for i in items), reverse=True)


@given(LENGTHS, CAPACITIES)
def test_it_is_best_fit_decreasing(lengths: list[int], capacity: int) -> None:
    """Against the definition: longest first, each into the fullest bin with room, else a new bin."""
    sums: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [place for place, total in enumerate(sums) if total + length <= capacity]
        if fitting:
            sums[max(fitting, key=lambda place: sums[place])] += length
        else:
            sums.append(length)
    assert sorted(sum(lengths[i] for i in items) for items in pack(lengths, capacity)) == sorted(sums)


@given(LENGTHS, CAPACITIES, st.randoms())
def test_taking_bins_away_changes_no_other_bin(lengths: list[int], capacity: int, chance: random.Random) -> None:
    bins = pack(lengths, capacity)
    kept = [items for items in bins if chance.random() < 0.5]
    left = sorted(item for items in kept for item in items)
    again = pack([lengths[i] for i in left], capacity)
    assert [[left[i] for i in items] for items in again] == kept


@pytest.mark.parametrize(
    ("lengths", "capacity", "expected"),
    [
        ([], 10, []),
        ([10, 10], 10, [[0], [1]]),
        ([4, 6, 5, 5], 10, [[1, 0], [2, 3]]),
        ([25, 3], 10, [[0], [1]]),
        ([7, 8, 2, 3], 10, [[1, 2], [0, 3]]),
        ([16, 17, 1], 16, [[1], [0], [2]]),
    ],
)
def test_known_packings(lengths: list[int], capacity: int, expected: list[list[int]]) -> None:
    assert pack(lengths, capacity) == expected


def test_tight_bins_waste_little() -> None:
    chance = random.Random(1)
    lengths = [chance.randint(20, 400) for _ in range(5000)]
    bins = pack(lengths, 4096)
    assert sum(lengths) / (len(bins) * 4096) > 0.99
