"""The token report over all rows, the warning about masks, and what an example looks like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.errors import InputError
from stokehold.core.records import Message, Sample
from stokehold.data.report import mask_warning, rendered_example, token_report
from stokehold.data.tokenizer import ChatTokenizer


def test_a_known_report() -> None:
    report = token_report(list(range(1, 101)), [1] * 100, 90)
    assert (report.rows, report.max, report.mean) == (100, 100, 50.5)
    assert (report.p50, report.p95, report.p99) == (50, 95, 99)
    assert (report.max_length, report.truncated_share) == (90, 0.1)
    assert report.suggested_max_length == 128
    assert report.masked_share == pytest.approx(1 - 100 / 5050)


def test_one_outlier_does_not_set_the_suggestion() -> None:
    assert token_report([100] * 999 + [50_000], [1] * 1000, 2048).suggested_max_length == 128
    assert token_report([100] * 999 + [190], [1] * 1000, 2048).suggested_max_length == 192


@pytest.mark.parametrize(("lengths", "trained"), [([], []), ([10, 20], [0, 0])])
def test_nothing_to_train_is_refused(lengths: list[int], trained: list[int]) -> None:
    with pytest.raises(InputError, match="no token of this file would be trained"):
        token_report(lengths, trained, 100)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50), st.integers(1, 10**6))
def test_reports_are_whole_and_ordered(lengths: list[int], max_length: int) -> None:
    report = token_report(lengths, lengths, max_length)
    assert report.p50 <= report.p95 <= report.p99 <= report.max == max(lengths)
    assert {report.p50, report.p95, report.p99} <= set(lengths)
    assert report.suggested_max_length % 64 == 0
    assert report.suggested_max_length >= report.p99
    assert report.truncated_share == sum(n > max_length for n in lengths) / len(lengths)
    assert report.masked_share == 0
    assert np.isfinite(report.mean)


@pytest.mark.parametrize(("share", "warned"), [(0.1, True), (0.15, False), (0.5, False), (0.95, False), (0.96, True)])
def test_shares_outside_15_to_95_per_cent_are_warned_about(share: float, warned: bool) -> None:
    warning = mask_warning(share)
    assert (warning is not None) is warned
    if warning:
        assert f"{share:.1%}" in warning
    assert mask_warning(share, plain_text=True) is None


def test_an_example_shows_what_is_trained(chatml: ChatTokenizer) -> None:
    messages = (Message("user", "One?"), Message("assistant", "First."))
    assert rendered_example(chatml, Sample("s", messages)) == (
        "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n⟦First.<|im_end|>⟧\n"
    )
