"""Cross-entropy in chunks: the plain one's value and gradients, and never the logits of all positions at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stokehold.training import crossentropy
from stokehold.training.crossentropy import Score, score, score_linear, score_through

VOCABULARY = 151_936
HIDDEN = 8


class Largest(TorchDispatchMode):
    """Elements of the largest floating-point tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.elements = max(self.elements, leaf.numel())
        return out


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three positions a chunk at a vocabulary of 11."""
    monkeypatch.setattr(crossentropy, "CHUNK_BYTES", 3 * 11 * 4)


def capped(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda states: torch.tanh(states @ weight.t() / 2) * 2


def drawn(n: int, dtype: torch.dtype = torch.float64, vocabulary: int = 11) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(n)
    states = torch.randn(n, 5, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, 5, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    return states, weight, torch.randint(0, vocabulary, (n,), generator=random)


def slopes(found: Score, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(0.3 * found.loss, inputs)


def assert_same(found: Score, expected: Score, inputs: tuple[torch.Tensor, ...], bound: float) -> None:
    torch.testing.assert_close(found.loss, expected.loss, rtol=bound, atol=bound)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=bound, atol=bound)
    assert not found.entropy.requires_grad
    for ours, plain in zip(slopes(found, *inputs), slopes(expected, *inputs), strict=True):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain, rtol=bound, atol=bound)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("n", [1, 3, 4, 20])
def test_chunks_give_the_loss_and_the_gradients_of_all_logits_at_once(n: int) -> None:
    states, weight, targets = drawn(n)
    assert_same(score_linear(states, weight, targets), score(states @ weight.t(), targets), (states, weight), 1e-12)


@pytest.mark.usefixtures("chunked")
def test_any_other_head_is_taken_in_chunks_too() -> None:
    states, weight, targets = drawn(20)
    head = capped(weight)
    assert_same(score_through(head, states, targets), score(head(states), targets), (states, weight), 1e-12)


@given(st.integers(1, 40), st.integers(2, 50), st.integers(1, 4000))
def test_in_float32_chunks_of_any_size_agree_to_a_millionth(n: int, vocabulary: int, room: int) -> None:
    states, weight, targets = drawn(n, torch.float32, vocabulary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossentropy, "CHUNK_BYTES", room)
        found = score_linear(states, weight, targets)
    expected = score(states @ weight.t(), targets)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-6)
    for ours, plain in zip(slopes(found, states, weight), slopes(expected, states, weight), strict=True):
        assert float((ours - plain).norm()) <= 1e-6 * float(plain.norm()) + 1e-6


def test_the_plain_score_is_torchs_cross_entropy() -> None:
    logits, _, targets = drawn(7)
    wanted = torch.nn.functional.cross_entropy(logits, targets % 5, reduction="sum")
    found = score(logits, targets % 5)
    torch.testing.assert_close(found.loss, wanted)
    torch.testing.assert_close(found.entropy, torch.distributions.Categorical(logits=logits).entropy().sum().detach())


def test_a_frozen_head_gets_no_gradient_and_no_memory_for_one() -> None:
    states, weight, targets = drawn(6)
    with Largest() as seen:
        score_linear(states, weight.detach().requires_grad_(False), targets).loss.backward()
    assert states.grad is not None
    assert weight.grad is None
    assert seen.elements == 6 * 11


def test_without_autograd_no_gradient_is_computed() -> None:
    states, weight, targets = drawn(6)
    with torch.no_grad():
        found = score_linear(states, weight, targets)
    assert not found.loss.requires_grad
    torch.testing.assert_close(found.loss, score(states @ weight.t(), targets).loss.detach())


@pytest.mark.usefixtures("chunked")
def test_in_bfloat16_many_chunks_do_not_round_the_heads_gradient_away() -> None:
    states, weight, targets = drawn(300, torch.bfloat16)
    exact = slopes(score(states.double() @ weight.double().t(), targets), states, weight)
    found = slopes(score_linear(states, weight, targets), states, weight)
    for ours, wanted in zip(found, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours.double() - wanted.double()).norm() / wanted.double().norm()) < 0.01


@pytest.mark.parametrize("way", ["linear", "through"])
def test_logits_of_a_large_vocabulary_never_exist_whole(way: str) -> None:
    n = 300
    states = torch.randn(n, HIDDEN, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    targets = torch.arange(n)
    with Largest() as seen:
        if way == "linear":
            found = score_linear(states, weight, targets)
        else:
            found = score_through(lambda some: some @ weight.t(), states, targets)
        found.loss.backward()
    assert weight.grad is not None
    # A chunk, or what is as large as the head itself.
    assert seen.elements <= max(crossentropy.CHUNK_BYTES // 4, weight.numel())
    assert seen.elements < n * VOCABULARY // 2


def test_the_gradients_are_the_same_bits_in_every_run() -> None:
    states, weight, targets = drawn(50, torch.float32)
    once, again = (slopes(score_linear(states, weight, targets), states, weight) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_is_far_below_the_others_costs_what_it_costs(dtype: torch.dtype) -> None:
    """Deeper than the floor of the other logits, where a chance is nothing in float32."""
    weight = torch.tensor([[0.0], [1.0], [-1.0]], dtype=dtype, requires_grad=True)
    states = torch.tensor([[128.0], [64.0]], dtype=dtype, requires_grad=True)
    found = score_linear(states, weight, torch.tensor([2, 0]))
    assert found.loss.item() == pytest.approx(256.0 + 64.0)
    found.loss.backward()
    assert states.grad is not None
    assert states.grad.flatten().tolist() == [2.0, 1.0], "towards the token that is asked for, with its whole chance"
