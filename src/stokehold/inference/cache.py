"""Keys and values: a cache that grows by reserving room, and beginnings of rows that move from one batch to another.

Transformers' own dynamic layer concatenates at every token; on a CPU that was 88 % of the decoding time of a batch of
64. Only full-attention layers are replaced: a sliding window's is short. States of other kinds are refused, because
rows that leave a batch could not be taken out of them.

A `Prefix` is what the model keeps of one row's first tokens. It is cut out of the cache of one pass and put together
with others, left-padded, for the next: rows of different lengths then end at the same column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The first `tokens` tokens of one row: keys and values [heads, tokens, size] by layer, the last ones where a
    window sees no more."""

    tokens: int
    layers: list[tuple[torch.Tensor, torch.Tensor]]


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for one batch of a model with this config; InputError for one that keeps more than keys and
    values."""
    cache = _known_cache(config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def recording_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache that keeps every token, those behind a window too: any beginning of a row can be cut out of it."""
    cache = _known_cache(config)
    cache.activate_past_recording()
    return cache


def cut_prefix(cache: DynamicCache, row: int, start: int, tokens: int) -> Prefix:
    """Copies of one row's columns [start, start + tokens) of a recording cache."""
    end = start + tokens
    layers = []
    for layer in _layers(cache):
        seen = min(tokens, _window(layer) or tokens)
        assert layer.keys is not None, "the pass filled every layer"
        assert layer.values is not None, "the pass filled every layer"
        layers.append((layer.keys[row, :, end - seen : end].clone(), layer.values[row, :, end - seen : end].clone()))
    return Prefix(tokens, layers)


def stacked(config: PreTrainedConfig, prefixes: Sequence[Prefix]) -> DynamicCache:
    """A growing cache with these rows, all ending at its last column, the longest beginning at its first."""
    cache = growing_cache(config)
    width = max(prefix.tokens for prefix in prefixes)
    for number, layer in enumerate(_layers(cache)):
        held = min(width, _window(layer) or width)
        room = int(width * GROWTH) if isinstance(layer, GrowingLayer) else held
        keys = _aligned([prefix.layers[number][0] for prefix in prefixes], held, room)
        values = _aligned([prefix.layers[number][1] for prefix in prefixes], held, room)
        layer.lazy_initialization(keys, values)
        if isinstance(layer, GrowingLayer):
            layer._key_reserve, layer._value_reserve = keys, values
        elif isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = width
        layer.keys, layer.values = keys[:, :, :held], values[:, :, :held]
    return cache


def _known_cache(config: PreTrainedConfig) -> DynamicCache:
    cache = DynamicCache(config=config)
    strange = sorted({type(layer).__name__ for layer in cache.layers} - KINDS)
    if strange:
        raise InputError(
            f"its cache has layers of kind {', '.join(strange)}",
            config.model_type,
            "use a model whose layers attend, fully or through a sliding window; see docs/models.md",
        )
    return cache


def _layers(cache: DynamicCache) -> list[DynamicLayer]:
    """The layers of a cache of known kinds."""
    return [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]


def _window(layer: DynamicLayer) -> int | None:
    """Tokens behind the present one that a sliding layer keeps; None where all are kept."""
    return layer.sliding_window - 1 if isinstance(layer, DynamicSlidingWindowLayer) else None


def _aligned(pieces: Sequence[torch.Tensor], held: int, room: int) -> torch.Tensor:
    """[rows, heads, room, size] with every piece ending at column `held`; zeros elsewhere, because what a mask hides is
    multiplied by nought and must be finite."""
    heads, _, size = pieces[0].shape
    whole = pieces[0].new_zeros(len(pieces), heads, room, size)
    for row, piece in enumerate(pieces):
        whole[row, :, held - piece.shape[1] : held] = piece
    return whole


def _room(reserve: torch.Tensor | None, states: torch.Tensor, used: int, needed: int) -> torch.Tensor:
    """A reserve of at least `needed` tokens that begins with the `used` tokens of the old one."""
    if reserve is not None and reserve.shape[-2] >= needed:
        return reserve
    batch, heads, _, size = states.shape
    larger = states.new_empty(batch, heads, int(needed * GROWTH), size)
    if reserve is not None:
        larger[:, :, :used] = reserve[:, :, :used]
    return larger
