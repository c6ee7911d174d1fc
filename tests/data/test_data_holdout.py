"""The held-out share of a file: its bounds, its determinism, and whole prompts on one side."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stokehold.core.identity import content_hash
from stokehold.data.holdout import choose_holdout


def prompts(count: int) -> list[str]:
    return [content_hash(str(number)) for number in range(count)]


@pytest.mark.parametrize(
    ("rows", "share", "expected"),
    [
        (0, 0.02, 0),
        (199, 0.02, 0),
        (200, 0.02, 20),
        (1000, 0.02, 20),
        (5000, 0.02, 100),
        (50_000, 0.02, 200),
        (1000, 0.0, 0),
        (1000, 0.5, 200),
        (200, 0.0001, 20),
    ],
)
def test_two_per_cent_within_bounds(rows: int, share: float, expected: int) -> None:
    assert len(choose_holdout(prompts(rows), share)) == expected


def test_the_choice_is_by_hash_and_not_by_place() -> None:
    hashes = prompts(1000)
    chosen = {hashes[row] for row in choose_holdout(hashes, 0.02)}
    assert chosen == {hashes[::-1][row] for row in choose_holdout(hashes[::-1], 0.02)}
    assert chosen == set(sorted(hashes)[:20])


@settings(max_examples=40)
@given(st.lists(st.integers(0, 120), min_size=200, max_size=300), st.floats(0.001, 0.5))
def test_identical_prompts_are_on_one_side_and_bounds_hold(numbers: list[int], share: float) -> None:
    hashes = [content_hash(str(number)) for number in numbers]
    chosen = choose_holdout(hashes, share)
    assert not {hashes[row] for row in chosen} & {hashes[row] for row in range(len(hashes)) if row not in chosen}
    assert len(chosen) <= 200
    assert chosen == choose_holdout(hashes, share)


def test_prompts_that_repeat_too_often_are_trained() -> None:
    assert choose_holdout([content_hash("a")] * 500, 0.02) == set()
    mixed = [content_hash("a")] * 300 + prompts(100)
    chosen = choose_holdout(mixed, 0.02)
    assert len(chosen) == 20
    assert min(chosen) >= 300


def test_groups_larger_than_the_share_are_taken_when_nothing_smaller_is_left() -> None:
    hashes = [content_hash(str(number // 30)) for number in range(600)]
    assert len(choose_holdout(hashes, 0.02)) == 30


@pytest.mark.parametrize(("rows", "count"), [(200, 1), (200, 2), (210, 3), (300, 2), (600, 6)])
def test_a_prompt_that_is_a_large_part_of_the_file_is_trained(rows: int, count: int) -> None:
    hashes = [content_hash(str(number % count)) for number in range(rows)]
    assert choose_holdout(hashes, 0.02) == set()


@pytest.mark.parametrize(("rows", "size", "held"), [(201, 3, 21), (210, 15, 30), (209, 19, 38), (990, 90, 90)])
def test_one_prompt_more_than_was_wanted_is_still_taken(rows: int, size: int, held: int) -> None:
    assert len(choose_holdout([content_hash(str(number // size)) for number in range(rows)], 0.02)) == held
