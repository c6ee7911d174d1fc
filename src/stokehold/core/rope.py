"""How far a model's rotary embedding is the same for every text.

Some embeddings stretch their frequencies once a text is longer than what the model was first trained on. A document
would then depend on what is packed or batched beside it, and a KV cache would hold keys of both kinds.
"""

from collections.abc import Mapping
from typing import Any

STRETCHED = frozenset({"dynamic", "longrope"})
"""Kinds of embedding whose frequencies follow the longest text in sight."""


def extrapolates(rope: Mapping[str, Any] | None) -> bool:
    """Whether texts longer than the model's context are read with the same frequencies; False without a rotary
    embedding, where positions are looked up and end with the table."""
    return bool(rope) and not any(table.get("rope_type") in STRETCHED for table in _tables(rope))


def steady_context(rope: Mapping[str, Any] | None, positions: int) -> int:
    """Tokens, at most `positions`, up to which the frequencies do not change with length.

    `rope` is the config's `rope_parameters`, plain or by kind of layer; `positions` its `max_position_embeddings`.
    """
    early = [table for table in _tables(rope) if table.get("rope_type") == "longrope"]
    return min([positions, *(int(table["original_max_position_embeddings"]) for table in early)])


def _tables(rope: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    whole = rope or {}
    return [whole, *(table for table in whole.values() if isinstance(table, Mapping))]
