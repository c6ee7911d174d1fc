"""Layers of a model computed on a CPU with fewer passes over memory: the same numbers, but for the order of sums.

`speed_up` changes how modules of one model compute, never what they hold: names, weights and files stay as they are.
A layer is exchanged only where it was tried and its own forward gave the same as ours, so an unknown one is left alone.
Without autograd the model's own code runs: what it answers is, to the bit, what any other copy of its weights answers.
Everything here gives the same bits in every run with the same number of threads.
"""

import inspect
from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

ROTATION = "apply_rotary_pos_emb"
"""What transformers' models call the function that rotates queries and keys, in the module of each family."""

HALVES = "rotate_half"
"""What they call where a number's partner is half a head away, or next to it: the trial tells which."""

AGREEMENT = 1e-5
"""Largest relative difference between a layer and what replaces it, in float32; in bfloat16 its own rounding."""

Rotation = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def speed_up(model: torch.nn.Module) -> dict[str, int]:
    """Exchanges the RMS norms and rotary embeddings of a model on a CPU; returns how many of each were.

    The random state stays as it is.
    """
    done = {"norms": 0, "rotations": 0}
    parameter = next(model.parameters())
    if parameter.device.type != "cpu":
        return done
    with torch.random.fork_rng([]), torch.no_grad():
        for module in model.modules():
            if (offset := _norm_offset(module)) is not None:
                module.forward = partial(_norm, module, offset)
                done["norms"] += 1
            if (forward := _with_rotation(module, parameter.dtype)) is not None:
                module.forward = MethodType(forward, module)
                done["rotations"] += 1
    return done


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """x / sqrt(mean of x² over the last dimension + eps) × (offset + weight), in x's shape [..., n] and type."""
    return _RMSNorm.apply(x, weight, eps, offset)  # type: ignore[no-any-return, no-untyped-call]


def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [batch, heads, tokens, head_dim] turned by angles [batch, tokens, width]: of their first
    `width` numbers one of the first half with the one at the same place of the second; the rest stays.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)  # type: ignore[no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = weight + offset if offset else weight
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
        inverse = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, inverse)
        # Rounded to x's type before the weight comes in, as the models do.
        if x.dtype == wide:
            return torch.mul(x, inverse).mul_(scale)
        # One product of two types takes three times as long as its parts.
        return x.to(wide).mul_(inverse).to(x.dtype).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        x, scale, inverse = ctx.saved_tensors
        n, wide = x.shape[-1], inverse.dtype
        rows, slopes, inverse = x.reshape(-1, n).to(wide), grad.reshape(-1, n).to(wide), inverse.reshape(-1, 1)
        # Layer norm with a mean of nought differs from RMS norm in one term, the mean of its slopes.
        found = torch.ops.aten.native_layer_norm_backward(
            slopes, rows, [n], torch.zeros_like(inverse), inverse, scale.to(wide), None, [True, True, False]
        )
        means = torch.mv(slopes, scale.to(wide)).div_(n)[:, None].mul_(inverse)
        return found[0].add_(means).to(x.dtype).view(x.shape), found[1].to(scale.dtype), None, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        half = cos.shape[-1] // 2
        return _turned(x, cos, -sin[..., :half], sin[..., half:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = cos.shape[-1] // 2
        return _turned(grad, cos, sin[..., half:], -sin[..., :half]), None, None


def _turned(x: torch.Tensor, stays: torch.Tensor, to_first: torch.Tensor, to_second: torch.Tensor) -> torch.Tensor:
    """x × stays, plus its second half × to_first in the first, its first half × to_second in the second."""
    width, half = stays.shape[-1], stays.shape[-1] // 2
    out = torch.empty_like(x)
    torch.mul(x[..., :width], stays, out=out[..., :width])
    out[..., :half].addcmul_(x[..., half:width], to_first)
    out[..., half:width].addcmul_(x[..., :half], to_second)
    out[..., width:] = x[..., width:]
    return out


def _norm(module: Any, offset: float, x: torch.Tensor) -> Any:
    if torch.is_grad_enabled():
        return rms_norm(x, module.weight, _eps(module), offset)
    return type(module).forward(module, x)


def _rotation(own: Rotation, *given: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return rotate(*given, **named) if torch.is_grad_enabled() else own(*given, **named)


def _eps(module: Any) -> float:
    found = getattr(module, "variance_epsilon", None)
    return float(module.eps if found is None else found)


def _norm_offset(module: torch.nn.Module) -> float | None:
    """What the module adds to its weight if it is an RMS norm that we compute, None where it is not."""
    weight = getattr(module, "weight", None)
    if "RMSNorm" not in type(module).__name__ or not isinstance(weight, torch.Tensor) or weight.ndim != 1:
        return None
    if len(list(module.parameters())) > 1 or not (hasattr(module, "variance_epsilon") or hasattr(module, "eps")):
        return None
    x = torch.randn(3, len(weight), dtype=weight.dtype) * 4
    own = module(x)
    # In half precision the families that add to their weight round later than we do.
    offsets = (0.0, 1.0) if weight.dtype in (torch.float32, torch.float64) else (0.0,)
    return next((offset for offset in offsets if _same(rms_norm(x, weight, _eps(module), offset), own)), None)


def _with_rotation(module: torch.nn.Module, dtype: torch.dtype) -> Callable[..., Any] | None:
    """The module's forward with our rotation in place of its family's; None where it has none, or another one.

    The function that a family's attention calls is looked up in the module of that family. A copy of the forward that
    looks it up in a table of its own leaves every other model of the process alone.
    """
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or ROTATION not in forward.__code__.co_names:
        return None
    own: Rotation = forward.__globals__[ROTATION]
    if HALVES not in own.__code__.co_names or list(inspect.signature(own).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return None
    q, k = torch.randn(1, 2, 3, 8, dtype=dtype), torch.randn(1, 1, 3, 8, dtype=dtype)
    angles = torch.rand(1, 3, 4).mul(6).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    if not all(_same(ours, theirs) for ours, theirs in zip(rotate(q, k, cos, sin), own(q, k, cos, sin), strict=True)):
        return None
    table = {**forward.__globals__, ROTATION: partial(_rotation, own)}
    copy = FunctionType(forward.__code__, table, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    limit = AGREEMENT if ours.dtype in (torch.float32, torch.float64) else 2 * torch.finfo(ours.dtype).eps
    return bool((ours - theirs).abs().max() <= limit * theirs.abs().max())
