"""A KV cache that grows by reserving room: adding a token writes one column instead of copying the whole cache.

Transformers' own dynamic layer concatenates at every token; on a CPU that was 88 % of the decoding time of a batch of
64. Only full-attention layers are replaced: a sliding window's is short. States of other kinds are refused, because
rows that leave a batch could not be taken out of them.
"""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from stokehold.core.errors import InputError

GROWTH = 1.5
"""Room reserved, in multiples of what is needed: copies stay linear in the length, at most a third is waste."""

KINDS = frozenset({DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__})
"""Cache layers that can lose rows of their batch."""


class GrowingLayer(DynamicLayer):
    """Keys and values as views [batch, heads, tokens, size] into a larger reserve."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._key_reserve: torch.Tensor | None = None
        self._value_reserve: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends along the token axis; the whole of keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        self._key_reserve = _room(self._key_reserve, key_states, start, end)
        self._value_reserve = _room(self._value_reserve, value_states, start, end)
        self._key_reserve[:, :, start:end] = key_states
        self._value_reserve[:, :, start:end] = value_states
        self.keys, self.values = self._key_reserve[:, :, :end], self._value_reserve[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows of the batch."""
        if self._key_reserve is None or self._value_reserve is None:
            return
        end = self.get_seq_length()
        self._key_reserve, self._value_reserve = self._key_reserve[indices], self._value_reserve[indices]
        self.keys, self.values = self._key_reserve[:, :, :end], self._value_reserve[:, :, :end]


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for one batch of a model with this config; InputError for one that keeps more than keys and
    values."""
    cache = DynamicCache(config=config)
    strange = sorted({type(layer).__name__ for layer in cache.layers} - KINDS)
    if strange:
        raise InputError(
            f"its cache has layers of kind {', '.join(strange)}",
            config.model_type,
            "use a model whose layers attend, fully or through a sliding window; see docs/models.md",
        )
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _room(reserve: torch.Tensor | None, states: torch.Tensor, used: int, needed: int) -> torch.Tensor:
    """A reserve of at least `needed` tokens that begins with the `used` tokens of the old one."""
    if reserve is not None and reserve.shape[-2] >= needed:
        return reserve
    batch, heads, _, size = states.shape
    larger = states.new_empty(batch, heads, int(needed * GROWTH), size)
    if reserve is not None:
        larger[:, :, :used] = reserve[:, :, :used]
    return larger
