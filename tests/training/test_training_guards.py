"""The laws of dividing a batch, of a loss that is too high, and of trying more at once again."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.errors import StokeholdError
from stokehold.data.batches import Batch, Cursor
from stokehold.store.home import Home
from stokehold.training import guards
from stokehold.training.guards import BadBatch, ceiling, divide_further, divided, guarded_step, probe
from stokehold.training.state import Lineage, Progress, open_lineage
from stokehold.training.step import accumulate, trained_tokens


def batch_of(lengths: list[int], seed: int = 0, vocabulary: int = 100) -> Batch:
    """Random documents of these lengths, every token but the first trained."""
    drawn = np.random.default_rng(seed)
    total = sum(lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return Batch(
        ids=drawn.integers(5, vocabulary, total),
        trained=positions > 0,
        positions=positions,
        lengths=tuple(lengths),
        row_ids=tuple(f"row{number}" for number in range(len(lengths))),
        examples=len(lengths),
        cursor=Cursor(0, 1, (), 64),
        fingerprint="f",
    )


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 40))
def test_the_parts_together_are_the_batch_and_documents_stay_whole(lengths: list[int], parts: int) -> None:
    batch = batch_of(lengths)
    pieces = divided([batch], parts)
    assert 1 <= len(pieces) <= min(parts, len(lengths))
    assert [length for piece in pieces for length in piece.lengths] == lengths
    for name in ("ids", "trained", "positions"):
        assert np.array_equal(np.concatenate([getattr(piece, name) for piece in pieces]), getattr(batch, name))
    assert all(len(piece.ids) == sum(piece.lengths) for piece in pieces)
    largest = max(len(piece.ids) for piece in pieces)
    assert largest <= math.ceil(len(batch.ids) / parts) + max(lengths), "the parts are about equal"


@pytest.fixture
def lineage(make_home: Callable[..., Home]) -> Lineage:
    home = make_home()
    return open_lineage(home.root / home.config().model.base, home.config())


@pytest.mark.parametrize("parts", [2, 3, 7, 64])
def test_divided_or_not_the_gradient_is_that_of_one_big_batch(lineage: Lineage, parts: int) -> None:
    group = [batch_of([30, 1, 12, 25, 40, 2, 17]), batch_of([9, 60], seed=1)]
    loss_tokens = trained_tokens(group)
    whole = accumulate(lineage, group, loss_tokens)
    expected = [p.grad.clone() for p in lineage.model.parameters() if p.grad is not None]
    pieces = accumulate(lineage, divided(group, parts), loss_tokens)
    found = [p.grad for p in lineage.model.parameters() if p.grad is not None]
    scale = max(float(gradient.abs().max()) for gradient in expected)
    assert max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True)) < 1e-6 * scale
    for name, value in whole.components.items():
        assert float(pieces.components[name]) == pytest.approx(float(value), rel=1e-6)


def test_one_document_that_does_not_fit_is_told_with_the_way_out(lineage: Lineage) -> None:
    alone = [batch_of([50])]
    with pytest.raises(StokeholdError, match=r"memory does not hold one document · 50 tokens · lower data.max_length"):
        divide_further(lineage, alone, RuntimeError("DefaultCPUAllocator: not enough memory"))


def test_after_good_steps_more_at_once_is_tried_again(lineage: Lineage) -> None:
    lineage.parts, lineage.parts_since, lineage.step = 4, 10, 10 + guards.PROBE_STEPS - 1
    assert probe(lineage) is None
    lineage.step += 1
    assert "2 parts" in str(probe(lineage))
    assert (lineage.parts, probe(lineage)) == (2, None)
    lineage.parts = 1
    lineage.step += 10 * guards.PROBE_STEPS
    assert probe(lineage) is None


START = Progress("data", Cursor.start())


@pytest.mark.parametrize(
    ("progress", "factor", "expected"),
    [
        (START, 5.0, math.inf),
        (replace(START, steps=19, mean_loss=2.0), 5.0, math.inf),
        (replace(START, steps=20, mean_loss=2.0), 5.0, 10.0),
        (replace(START, steps=20, mean_loss=0.01), 5.0, 1.01),
        (replace(START, steps=20, mean_loss=2.0), 0.0, math.inf),
    ],
)
def test_what_counts_as_a_spike(progress: Progress, factor: float, expected: float) -> None:
    assert ceiling(progress, factor) == expected


def test_a_loss_above_the_ceiling_changes_no_weight_and_names_its_rows(lineage: Lineage) -> None:
    before = {name: p.detach().clone() for name, p in lineage.model.named_parameters()}
    with pytest.raises(BadBatch, match="the loss rose suddenly") as caught:
        guarded_step(lineage, [batch_of([20, 30])], 0.5, lambda _: None)
    assert (caught.value.step, caught.value.examples, caught.value.rows) == (1, 2, ("row0", "row1"))
    assert all(torch.equal(p, before[name]) for name, p in lineage.model.named_parameters())
    assert lineage.step == 0
