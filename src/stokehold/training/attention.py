"""Causal attention over documents packed in one row: each document sees itself alone.

On a CPU the documents are attended one after the other, so cost grows with the sum of their squared lengths and no
mask of the whole row is ever built. The lengths travel as `cu_seq_lens_q`, the name transformers gives them.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "stokehold_documents"


def documents_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, tokens, head_dim]
    key: torch.Tensor,  # [1, kv_heads, tokens, head_dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    cu_seq_lens_q: torch.Tensor,  # [documents + 1], int32, from 0 to tokens
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output [1, tokens, heads, head_dim]; no weights are returned."""
    sizes = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    grouped = query.shape[1] != key.shape[1]
    documents = zip(*(torch.split(whole, sizes, 2) for whole in (query, key, value)), strict=True)
    parts = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in documents
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


def register() -> None:
    """Makes `NAME` known to transformers; registering twice is harmless."""
    AttentionInterface.register(NAME, documents_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
