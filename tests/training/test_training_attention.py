"""Attention over packed documents in half precision on a CPU: the kernel's output, gradients no worse than its own."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from stokehold.training.attention import SHORT, documents_attention

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(tokens: int, heads: int, shared: int, size: int) -> Three:
    torch.manual_seed(tokens + heads + size)
    shapes = (heads, heads // shared, heads // shared)
    query, key, value = (torch.randn(1, count, tokens, size, dtype=torch.bfloat16).requires_grad_() for count in shapes)
    return query, key, value


def gradients(given: Three, output: torch.Tensor, slope: torch.Tensor) -> list[torch.Tensor]:
    return [one.double() for one in torch.autograd.grad(output, given, slope.to(output.dtype))]


def distance(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("heads", "shared", "size"), [(4, 1, 64), (4, 2, 64), (6, 3, 32)])
@pytest.mark.parametrize("lengths", [(1, 2, 17, 130), (SHORT // 64 + 9, 40)])
def test_short_documents_have_the_kernels_output_and_closer_gradients(
    heads: int, shared: int, size: int, lengths: tuple[int, ...]
) -> None:
    given, scaling = inputs(sum(lengths), heads, shared, size), size**-0.5
    edges = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    output, _ = documents_attention(torch.nn.Module(), *given, None, scaling, cu_seq_lens_q=edges)
    slope = torch.randn(output.shape, dtype=torch.bfloat16)

    def alone(three: Three) -> torch.Tensor:
        parts = zip(*(torch.split(one, lengths, 2) for one in three), strict=True)
        found = (scaled_dot_product_attention(*p, is_causal=True, scale=scaling, enable_gqa=shared > 1) for p in parts)
        return torch.cat([one.transpose(1, 2) for one in found], 1)

    kernel = alone(given)
    query, key, value = (one.detach().double().requires_grad_() for one in given)
    exact = gradients((query, key, value), alone((query, key, value)), slope)
    assert torch.equal(output, kernel)
    ours, theirs = (distance(gradients(given, one, slope), exact) for one in (output, kernel))
    assert ours <= theirs < 2e-2
    assert ours > 0


def test_a_gradient_of_the_gradient_is_refused_and_not_wrong() -> None:
    given = inputs(9, 2, 1, 16)
    edges = torch.tensor([0, 9], dtype=torch.int32)
    output, _ = documents_attention(torch.nn.Module(), *given, None, 0.25, cu_seq_lens_q=edges)
    (first,) = torch.autograd.grad(output.float().square().sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
