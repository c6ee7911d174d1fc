"""Cross-entropy over a vocabulary, without its logits ever being in memory whole.

Positions go through the head in chunks. Where the head is one matrix, a chunk's gradient is taken in the same pass
that takes its loss, in the memory of its logits; other heads are run once more in the backward pass. Losses, and
entropies beside them, are computed in float32, or in float64 from float64.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import nll_loss
from torch.utils.checkpoint import checkpoint

LEAST = -87.0
"""Logarithms of chances are taken as no less: float32 has nothing smaller but denormals, of which exp is ten times as
slow, and a chance of 1e-38 changes no sum."""

DEEPEST = 70.0
"""Logits are raised to so much below the highest of their row: no chance is a denormal then, in any vocabulary of less
than e^17 tokens, and what is added to the others is below 1e-30 of them. The token that is asked for keeps its own."""

CHUNK_BYTES = 64 * 1024**2
"""Largest array of logits, in the type losses are computed in."""


class Score(NamedTuple):
    """Sums over positions, in nats, scalars: the cross-entropy, and -sum p log p, which carries no gradient."""

    loss: torch.Tensor
    entropy: torch.Tensor


def score(logits: torch.Tensor, targets: torch.Tensor) -> Score:
    """Of logits [n, vocabulary] that exist, and the tokens [n] they should have named."""
    logs = torch.log_softmax(logits, -1, dtype=_wide(logits.dtype))
    with torch.no_grad():
        entropy = -(logs.clamp(min=LEAST).exp() * logs).sum()
    return Score(nll_loss(logs, targets, reduction="sum"), entropy)


def score_linear(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> Score:
    """As `score` of states [n, hidden] @ weight [vocabulary, hidden] transposed.

    In float32 equal to it but for the order of sums. The gradients are there before `backward` is called, which may
    happen once.
    """
    if not torch.is_grad_enabled():
        states, weight = states.detach(), weight.detach()
    loss, entropy = _Linear.apply(states, weight, targets)  # type: ignore[no-untyped-call]
    return Score(loss, entropy)


def score_through(head: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor, targets: torch.Tensor) -> Score:
    """As `score` of head(states), whatever the head does to each position by itself."""
    with torch.no_grad():
        vocabulary = head(states[:1]).shape[-1]
    parts = list(_chunks(len(states), vocabulary))
    if len(parts) == 1:
        return score(head(states), targets)

    def piece(some: torch.Tensor, wanted: torch.Tensor) -> Score:
        return score(head(some), wanted)

    found = [checkpoint(piece, states[part], targets[part], use_reentrant=False) for part in parts]
    return Score(torch.stack([one.loss for one in found]).sum(), torch.stack([one.entropy for one in found]).sum())


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    rows = max(1, CHUNK_BYTES // (vocabulary * 4))
    for start in range(0, positions, rows):
        yield slice(start, min(start + rows, positions))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide = _wide(states.dtype)
        parts = list(_chunks(len(states), len(weight)))
        to_states, to_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        d_states = torch.empty_like(states) if to_states else None
        # Many chunks are summed in the wide type: in bfloat16 each sum would round what came before.
        d_weight = torch.zeros_like(weight, dtype=wide if len(parts) > 1 else None) if to_weight else None
        loss, entropy = states.new_zeros((), dtype=wide), states.new_zeros((), dtype=wide)
        for part in parts:
            logits = states[part] @ weight.t()
            at = targets[part, None]
            named = logits.gather(1, at)
            torch.maximum(logits, logits.amax(-1, keepdim=True).sub_(DEEPEST), out=logits)
            logs = torch.log_softmax(logits, -1, dtype=wide)
            loss -= logs.gather(1, at).add_(named.sub_(logits.gather(1, at))).sum()
            narrow = logits.dtype != wide
            chances = logs.exp() if narrow else torch.exp(logs, out=logits)
            entropy -= torch.dot(chances.view(-1), logs.view(-1))
            chances.scatter_add_(1, at, chances.new_full((1, 1), -1.0).expand_as(at))
            slope = logits.copy_(chances) if narrow else chances
            if d_states is not None:
                torch.mm(slope, weight, out=d_states[part])
            if d_weight is not None:
                _add_product(d_weight, slope, states[part])
        ctx.save_for_backward(d_states, d_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        d_states, d_weight = ctx.saved_tensors
        return (
            None if d_states is None else d_states.mul_(grad),
            None if d_weight is None else d_weight.mul_(grad).to(ctx.weight_dtype),
            None,
        )


def _add_product(total: torch.Tensor, slope: torch.Tensor, states: torch.Tensor) -> None:
    if total.dtype == slope.dtype:
        total.addmm_(slope.t(), states)
    else:
        total += slope.t() @ states
