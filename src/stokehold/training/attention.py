"""Causal attention over documents packed in one row: each document sees itself alone.

Cost grows with the sum of the documents' squared lengths, or with length times window where a layer's window slides;
no mask of the whole row is ever built. Lengths travel as `cu_seq_lens_q`, the name transformers gives them. What a
model asks of its attention is done (scale, dropout, window, soft cap, sinks) or refused, never left out.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from stokehold.core.errors import InputError

NAME = "stokehold_documents"

BLOCK = 256
"""Queries taken together where a mask is needed: bounds a mask to BLOCK × (window + BLOCK) elements."""

SHORT = 24_000
"""Tokens × head size up to which a CPU takes the backward pass of half-precision attention faster in float32."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "cu_seq_lens_k",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_router_logits",
        "past_key_values",
        "position_ids",
    }
)
"""What models pass on to their attention that changes nothing here: no cache is used, positions are rotated before."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a layer's mask would show, handed on in its place: so many tokens back, itself included, or all (None)."""

    window: int | None


@dataclass(frozen=True, slots=True)
class Rule:
    """How one layer attends. `window` counts the tokens a query sees, itself included; `sinks` are [heads] logits."""

    scaling: float
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether scores go into the softmax as they are, so that a fused kernel can do it."""
        return self.softcap is None and self.sinks is None


def documents_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, tokens, head_dim]
    key: torch.Tensor,  # [1, kv_heads, tokens, head_dim]
    value: torch.Tensor,
    attention_mask: Sight | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,  # [documents + 1], int32, from 0 to tokens; on the CPU
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output [1, tokens, heads, head_dim]; no weights are returned. InputError for what cannot be done."""
    place = type(module).__name__
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unknown = sorted(name for name, given in asked.items() if name not in WITHOUT_EFFECT and _asks(given))
    if not causal:
        raise refusal("attention that sees later tokens cannot be packed", place)
    if unknown:
        raise refusal(f"attention with {', '.join(unknown)} cannot be packed", place)
    if cu_seq_lens_q is None:
        raise refusal("the model does not hand the documents' lengths to its attention", place)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    rule = Rule(scaling, dropout, _window(attention_mask, sliding_window, place), softcap, s_aux)
    attend = _varlen if _varlen_can(query, value, rule) else _one_by_one
    return attend(query, key, value, cu_seq_lens_q, rule), None


def register() -> None:
    """Makes `NAME` known to transformers; registering twice is harmless."""
    AttentionInterface.register(NAME, documents_attention)
    AttentionMaskInterface.register(NAME, _sight)


def _sight(
    *_: Any,
    local_size: int | None = None,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    **more: Any,
) -> Sight:
    """In the place of a mask. `use_vmap` says that the model lays a pattern of its own over the causal one."""
    if use_vmap or attention_mask is not None or "allow_is_bidirectional_skip" in more:
        raise refusal("attention with a mask pattern of its own cannot be packed", "the model's masks")
    return Sight(local_size)


def _window(mask: object, asked: int | None, place: str) -> int | None:
    """The window of a layer: that of its mask, which all kernels but FlashAttention follow, where there is one."""
    if mask is None:
        return asked
    if not isinstance(mask, Sight):
        raise refusal("attention with a mask of its own cannot be packed", place)
    if asked is not None and asked != mask.window:
        raise refusal(f"its mask shows {mask.window or 'all'} tokens and its attention {asked}", place)
    return mask.window


def refusal(what: str, where: str) -> InputError:
    """The error that says why a model is not trained."""
    return InputError(what, where, "train a model of another family; docs/models.md names those that are tested")


def _asks(given: Any) -> bool:
    return given is not None and given is not False


def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, edges: torch.Tensor, rule: Rule
) -> torch.Tensor:
    """[1, tokens, heads, head_dim]; every document by itself, on any device."""
    sizes = (edges[1:] - edges[:-1]).tolist()
    if _halves(query, value, sizes, rule):
        return _Documents.apply(query, key, value, sizes, rule.scaling)  # type: ignore[no-any-return, no-untyped-call]
    documents = zip(*(torch.split(whole, sizes, 2) for whole in (query, key, value)), strict=True)
    return torch.cat([_document(q, k, v, rule).transpose(1, 2) for q, k, v in documents], 1)


def _document(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule) -> torch.Tensor:
    """[1, heads, tokens, head_dim] of one document."""
    tokens = query.shape[2]
    window = tokens if rule.window is None else rule.window
    if rule.plain and tokens <= window:
        return _fused(query, key, value, None, rule)
    attend = _fused if rule.plain else _scored
    parts = []
    for start in range(0, tokens, BLOCK):
        end = min(start + BLOCK, tokens)
        first = max(0, start - window + 1)
        behind = torch.arange(start, end)[:, None] - torch.arange(first, end)
        seen = ((behind >= 0) & (behind < window)).to(query.device)
        parts.append(attend(query[:, :, start:end], key[:, :, first:end], value[:, :, first:end], seen, rule))
    return torch.cat(parts, 2)


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor | None, rule: Rule
) -> torch.Tensor:
    """`seen` is [queries, keys], True where a query sees a key; None is causal."""
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=seen,
        dropout_p=rule.dropout,
        is_causal=seen is None,
        scale=rule.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _halves(query: torch.Tensor, value: torch.Tensor, sizes: list[int], rule: Rule) -> bool:
    """Whether `_Documents` takes it: half precision on a CPU, under autograd, and nothing but causal."""
    half = query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16)
    whole = rule.window is None or max(sizes) <= rule.window
    plain = rule.plain and not rule.dropout and query.shape[-1] == value.shape[-1]
    return half and whole and plain and torch.is_grad_enabled()


class _Documents(torch.autograd.Function):
    """Causal attention of every document in half precision on a CPU: forward in the kernel that
    `scaled_dot_product_attention` takes; backward, of short documents, in its float32 form, up to four times as fast.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sizes: list[int], scaling: float
    ) -> torch.Tensor:
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        documents = zip(*(torch.split(whole, sizes, 2) for whole in (query, key, value)), strict=True)
        found = [_flash(*document, 0.0, True, scale=scaling) for document in documents]
        output = torch.cat([one.transpose(1, 2) for one, _ in found], 1)
        ctx.save_for_backward(query, key, value, output, *(sums for _, sums in found))
        ctx.sizes, ctx.scaling, ctx.shared = sizes, scaling, shared
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        query, key, value, output, *sums = ctx.saved_tensors
        narrow = (grad.transpose(1, 2), query, key, value, output.transpose(1, 2))
        wide = tuple(one.float() for one in narrow)
        parts, start = [], 0
        for size, logs in zip(ctx.sizes, sums, strict=True):
            given = wide if size * query.shape[-1] <= SHORT else narrow
            one = (whole[:, :, start : start + size] for whole in given)
            parts.append(_flash_backward(*one, logs, 0.0, True, scale=ctx.scaling))
            start += size
        d_query, d_key, d_value = (torch.cat(of_all, 2) for of_all in zip(*parts, strict=True))
        if ctx.shared > 1:
            d_key, d_value = (one.unflatten(1, (-1, ctx.shared)).sum(2) for one in (d_key, d_value))
        return d_query.to(query.dtype), d_key.to(query.dtype), d_value.to(query.dtype), None, None


def _scored(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, rule: Rule
) -> torch.Tensor:
    """As `_fused`, with the scores in hand: soft-capped, and with a sink that takes its share of the softmax."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(2, 3) * rule.scaling
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    scores = scores.masked_fill(~seen, float("-inf"))
    if rule.sinks is not None:
        sinks = rule.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return drop(weights[..., : key.shape[2]], rule.dropout) @ value


def _varlen_can(query: torch.Tensor, value: torch.Tensor, rule: Rule) -> bool:
    """Whether FlashAttention over variable lengths takes it: half precision on an Ampere GPU or newer."""
    size = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and rule.plain
        and not rule.dropout
        and size == value.shape[-1]
        and size % 8 == 0
        and size <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, edges: torch.Tensor, rule: Rule
) -> torch.Tensor:
    """[1, tokens, heads, head_dim]; all documents in one kernel."""
    # Deferred: it defines CUDA operators.
    from torch.nn.attention.varlen import varlen_attn

    longest = int((edges[1:] - edges[:-1]).max())
    starts = edges.to(query.device, non_blocking=True)
    q, k, v = (whole[0].transpose(0, 1) for whole in (query, key, value))
    window = (-1 if rule.window is None else rule.window - 1, 0)
    grouped = query.shape[1] != key.shape[1]
    output = varlen_attn(
        q, k, v, starts, starts, longest, longest, scale=rule.scaling, window_size=window, enable_gqa=grouped
    )
    assert isinstance(output, torch.Tensor)
    return output[None]
