"""How much each part of a model moved between two snapshots, and whether its adapters are alive.

Pure functions over tensors in host memory by parameter name, as two snapshots hold them; each reads every element once,
in pieces, so that nothing the size of a weight is allocated. Norms are Euclidean and summed in double precision.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

PIECE = 2**20
"""Elements converted to double precision at a time: 8 MB."""

EMBED, NORMS, HEAD, OTHER = "embed", "norms", "head", "other"
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
NAMED = (
    (HEAD, re.compile(r"(?:^|\.)(?:lm_head|embed_out|output_layer)\.")),
    (EMBED, re.compile(r"(?:^|\.)(?:embed\w*|wte|wpe|\w+_embeddings?)\.")),
    (NORMS, re.compile(r"(?:^|\.)(?:ln_f|\w*norm\w*)\.")),
)
PLACES = {EMBED: 0, NORMS: 2**31, HEAD: 2**31 + 1, OTHER: 2**31 + 2}
"""Order from input to output; layer n has place n + 1."""

ADAPTER = re.compile(r"^(.+)\.lora_(?:embedding_)?[AB](?:\.|$)")


def movement(
    before: Mapping[str, torch.Tensor] | None, after: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """What the status shows of two snapshots, under its keys; None for what cannot be told, as before the first."""
    known = before or {}
    return {
        "layer_activity_summary": layer_activity(known, after) or None,
        "lora_stats": adapter_stats(known, after, gradients) or None,
    }


def layer_activity(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> dict[str, float | None]:
    """Group → ||after - before|| / ||before|| over the group's weights: `embed`, `layer_0`, …, `norms`, `head`.

    Floating-point tensors that both have in one shape count; norms inside a layer are the layer's. None where the
    group was all zero before, or where the quotient is not finite.
    """
    squares: dict[tuple[int, str], list[float]] = {}
    for name, old in before.items():
        new = after.get(name)
        if new is not None and new.shape == old.shape and old.is_floating_point():
            sums = squares.setdefault(_group(name), [0.0, 0.0])
            sums[0] += _square(old, new)
            sums[1] += _square(old)
    return {group: _share(*sums) for (_, group), sums in sorted(squares.items())}


def adapter_stats(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """The low-rank adapters over the interval: {"adapters": {module → readings}, "dead_layers": [module, …]}.

    Readings are `update_norm`, ||after - before|| of an adapter's two matrices, and `gradient_norm` of the gradients
    given, None where there are none. `dead_layers` names the adapters that neither moved nor had a gradient. The
    answer is empty where no name is an adapter's.
    """
    updates: dict[str, float] = {}
    slopes: dict[str, float] = {}
    for name, old in before.items():
        found = ADAPTER.match(name)
        new = after.get(name)
        if found is None or new is None or new.shape != old.shape:
            continue
        module = found[1]
        updates[module] = updates.get(module, 0.0) + _square(old, new)
        if name in gradients:
            slopes[module] = slopes.get(module, 0.0) + _square(gradients[name])
    if not updates:
        return {}
    adapters = {
        module: {"update_norm": math.sqrt(square), "gradient_norm": _root(slopes.get(module))}
        for module, square in updates.items()
    }
    dead = [module for module, square in updates.items() if square == 0 and slopes.get(module) == 0]
    return {"adapters": adapters, "dead_layers": dead}


def _group(name: str) -> tuple[int, str]:
    """Where a parameter belongs, with its place in the order from input to output."""
    if layer := LAYER.search(name):
        return int(layer[1]) + 1, f"layer_{layer[1]}"
    group = next((group for group, pattern in NAMED if pattern.search(name)), OTHER)
    return PLACES[group], group


def _square(tensor: torch.Tensor, other: torch.Tensor | None = None) -> float:
    """Sum of the squared elements of `tensor`, or of its difference from `other`."""
    flat = tensor.reshape(-1)
    flat_other = None if other is None else other.reshape(-1)
    total = 0.0
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE].double()
        if flat_other is not None:
            piece = piece - flat_other[start : start + PIECE].double()
        total += float(piece.dot(piece))
    return total


def _share(difference: float, before: float) -> float | None:
    share = math.sqrt(difference / before) if before > 0 and math.isfinite(difference) else None
    return share if share is not None and math.isfinite(share) else None


def _root(square: float | None) -> float | None:
    return math.sqrt(square) if square is not None and math.isfinite(square) else None
