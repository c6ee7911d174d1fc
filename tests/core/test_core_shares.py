"""Shares as people read them."""

import pytest

from stokehold.core.shares import hundredths, percent


@pytest.mark.parametrize(
    ("share", "digits", "said"),
    [
        (0.0, 1, "0.0 %"),
        (1.0, 1, "100.0 %"),
        (1 / 3, 1, "33.3 %"),
        (0.9996, 1, "99.9 %"),
        (0.996, 0, "99 %"),
        (1 / 5000, 1, "<0.1 %"),
        (0.001, 0, "<1 %"),
        (0.0006, 1, "0.1 %"),
        (0.9994, 1, "99.9 %"),
        (1.02, 1, "102.0 %"),
    ],
)
def test_only_all_is_100_and_only_nothing_is_0(share: float, digits: int, said: str) -> None:
    assert percent(share, digits) == said
    assert f"{hundredths(share, digits)} %" == said


def test_the_rounding_of_a_sum_is_no_difference() -> None:
    assert percent(sum([0.1] * 10)) == "100.0 %"
    assert percent(0.1 + 0.2 - 0.3) == "0.0 %"
