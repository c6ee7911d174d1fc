"""Faster layers: the numbers and gradients of the ones they replace, in every family, and nothing else changed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from model_families import CAUSAL, family_model
from stokehold.training.layers import rms_norm, rotate, speed_up

RMS = {"qwen3", "llama", "llama_tied", "gemma", "gemma2", "gemma3_text", "mistral", "phi3", "olmo2", "granite"}
"""Families whose norms are RMS norms of a form that is computed here."""

HALVES = RMS
"""Families that rotate the first half of a head with the second."""


def outcome(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Logits, then every gradient of their sum of squares."""
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    logits.float().square().mean().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest distance between two of a kind, relative to the length of the second."""
    largest = 0.0
    for one, other in zip(found, expected, strict=True):
        largest = max(largest, float((one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-12)))
    return largest


@pytest.mark.parametrize("family", CAUSAL)
def test_a_model_computes_the_same_with_and_without(family: str) -> None:
    model = family_model(family)
    fast = copy.deepcopy(model)
    done = speed_up(fast)
    assert (done["norms"] > 0) >= (family in RMS)
    ids = torch.arange(40).view(2, 20) * 7 % 96
    assert error(outcome(fast, ids), outcome(model, ids)) < 5e-6
    assert fast.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("family", sorted(HALVES))
def test_what_is_known_is_exchanged(family: str) -> None:
    model = family_model(family)
    done = speed_up(model)
    norms = sum("RMSNorm" in type(module).__name__ for module in model.modules())
    attentions = sum(type(module).__name__.endswith("Attention") for module in model.modules())
    assert done == {"norms": norms, "rotations": attentions}


def test_the_random_state_and_other_models_stay_as_they_are() -> None:
    other, model = family_model("qwen3"), family_model("qwen3")
    forward = type(model.model.layers[0].self_attn).forward
    before = torch.get_rng_state()
    speed_up(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert "forward" not in other.model.layers[0].self_attn.__dict__
    assert type(model.model.layers[0].self_attn).forward is forward


def test_a_copy_of_a_fast_model_computes_with_its_own_weights() -> None:
    model = family_model("qwen3")
    speed_up(model)
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(twin.model.norm.weight)
    ids = torch.arange(8)[None]
    assert float(twin(input_ids=ids).logits.detach().abs().max()) == 0
    assert float(model(input_ids=ids).logits.detach().abs().max()) > 0


def test_without_autograd_a_fast_model_gives_the_bits_of_any_other() -> None:
    model, fast = family_model("qwen3"), family_model("qwen3")
    speed_up(fast)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.equal(fast(input_ids=ids).logits, model(input_ids=ids).logits)


class StrangeRMSNorm(torch.nn.Module):
    """Calls itself an RMS norm and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)


def test_a_layer_that_computes_something_else_is_left_alone() -> None:
    model = torch.nn.Sequential(StrangeRMSNorm())
    assert speed_up(model) == {"norms": 0, "rotations": 0}


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_norms_gradients_are_its_derivatives(offset: float) -> None:
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda a, b: rms_norm(a, b, 1e-3, offset), (x, weight))


def test_the_rotations_gradients_are_its_derivatives() -> None:
    q = torch.randn(1, 2, 3, 8, dtype=torch.float64, requires_grad=True)
    k = torch.randn(1, 1, 3, 8, dtype=torch.float64, requires_grad=True)
    angles = torch.rand(1, 3, 8, dtype=torch.float64)  # halves need not agree
    assert gradcheck(lambda a, b: rotate(a, b, angles.cos(), angles.sin()), (q, k))


def plain_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float() if x.dtype == torch.bfloat16 else x
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


@pytest.mark.parametrize("width", [48, 256, 5120])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_the_norm_is_as_exact_as_the_plain_one(width: int, dtype: torch.dtype, bound: float) -> None:
    x, weight, grad = (torch.randn(*shape).to(dtype) for shape in ((64, width), (width,), (64, width)))

    def run(norm: Callable[..., torch.Tensor], like: torch.dtype) -> list[torch.Tensor]:
        inputs = [one.to(like).requires_grad_() for one in (x, weight)]
        y = norm(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, grad.to(like))]

    exact = run(plain_norm, torch.float64)
    ours = error(run(lambda a, b: rms_norm(a, b, 1e-6), dtype), exact)
    assert ours < bound
    assert ours < 4 * error(run(plain_norm, dtype), exact)


def test_a_fast_step_gives_the_same_bits_in_every_run() -> None:
    model = family_model("qwen3")
    speed_up(model)
    ids = torch.arange(60)[None]
    once, again = outcome(model, ids), outcome(model, ids)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
