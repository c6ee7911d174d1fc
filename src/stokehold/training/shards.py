"""The weights of a checkpoint in files that load as they are: one, or shards of which the frozen ones are written once.

How weights are cut depends on their names and sizes alone, so that two runs cut alike. Weights that training never
changes lie in shards of their own; the next checkpoint links these instead of writing them again.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from stokehold.core.errors import IntegrityError
from stokehold.store.blobs import share
from stokehold.store.disk import DISK, Disk
from stokehold.store.files import read_manifest
from stokehold.store.models.weights import INDEX

ONE = "model.safetensors"
LAYER = re.compile(r"^.*?\.\d+(?=\.)")
"""The numbered block that a weight belongs to: `model.layers.12`."""


def cut(sizes: Mapping[str, int], frozen: Set[str], most_bytes: int) -> dict[str, list[str]]:
    """Names by file, for weights of these bytes: one file where all fit into `most_bytes`, else shards of up to that.

    No shard holds frozen and other weights. A layer is divided only where it is larger than a shard, a weight never.
    """
    names = sorted(sizes, key=_natural)
    if sum(sizes.values()) <= most_bytes:
        return {ONE: names}
    still, moving = [n for n in names if n in frozen], [n for n in names if n not in frozen]
    shards = [*_filled(still, sizes, most_bytes), *_filled(moving, sizes, most_bytes)]
    return {f"model-{n:05d}-of-{len(shards):05d}.safetensors": shard for n, shard in enumerate(shards, 1)}


def write_weights(
    model: PreTrainedModel,
    weights: Mapping[str, torch.Tensor],
    folder: Path,
    most_bytes: int,
    frozen: Set[str] = frozenset(),
    before: Path | None = None,
    disk: Disk = DISK,
) -> dict[str, str]:
    """Writes config and weights into `folder`; returns the files that were linked, with their BLAKE3.

    `model` is read for its config only. Shards of `frozen` weights that lie in the checkpoint `before`, cut alike, are
    taken from there.
    """
    if sum(tensor.nbytes for tensor in weights.values()) <= most_bytes:
        model.save_pretrained(folder, state_dict=dict(weights))
        return {}
    model.save_pretrained(folder, state_dict={})  # config and generation config
    still = {weights[name].data_ptr() for name in frozen}
    stored = revert_weight_conversion(model, remove_tied_weights_from_state_dict(dict(weights), model))
    fixed = {name for name, tensor in stored.items() if tensor.data_ptr() in still}
    sizes = {name: tensor.nbytes for name, tensor in stored.items()}
    files = cut(sizes, fixed, most_bytes)
    linked = _linked(files, fixed, folder, before, disk)
    for file, names in files.items():
        if file not in linked:
            save_file({name: stored[name].contiguous() for name in names}, folder / file, {"format": "pt"})
    if len(files) > 1:
        placed = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(placed.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=1))
    return linked


def _linked(
    files: Mapping[str, Sequence[str]], fixed: Set[str], folder: Path, before: Path | None, disk: Disk
) -> dict[str, str]:
    """Shares what is frozen with the checkpoint before, where that has the same weights in the same file."""
    if before is None or not fixed or not (before / INDEX).is_file():
        return {}
    try:
        hashes = {entry["path"]: str(entry["blake3"]) for entry in read_manifest(before)["files"]}
    except IntegrityError:
        return {}  # retention takes a folder's manifest away first
    placed = json.loads((before / INDEX).read_text())["weight_map"]
    there = {file: {name for name, at in placed.items() if at == file} for file in files}
    same = [file for file, names in files.items() if fixed >= set(names) == there[file]]
    for file in same:
        share(before / file, folder / file, disk)
    return {file: hashes[file] for file in same}


def _filled(names: Iterable[str], sizes: Mapping[str, int], most_bytes: int) -> list[list[str]]:
    """Shards in the order of the names, each as full as it gets."""
    shards: list[list[str]] = []
    room = 0
    for _, layer in itertools.groupby(names, _layer):
        block = list(layer)
        whole = sum(sizes[name] for name in block)
        for part in [block] if whole <= most_bytes else [[name] for name in block]:
            wanted = sum(sizes[name] for name in part)
            if not shards or wanted > room:
                shards.append([])
                room = most_bytes
            shards[-1] += part
            room -= wanted
    return shards


def _layer(name: str) -> str:
    found = LAYER.match(name)
    return found[0] if found else name


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 2 before layer 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
