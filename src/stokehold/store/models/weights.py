"""What safetensors files say of themselves in their first bytes: names and shapes, without reading a weight."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stokehold.core.errors import IntegrityError
from stokehold.core.memory import Matrix, ModelShape

INDEX = "model.safetensors.index.json"
GOLDEN = "golden.safetensors"
"""What the weights of a folder answered when they were written. It is no weight: no hash of weights covers it."""

LENGTH_BYTES = 8
LARGEST_HEADER_BYTES = 100 * 1024**2
"""Longer headers are damage: the format's own readers refuse them."""

BLOCK = re.compile(r"\.\d+\.(?:.*\.)?(\w+)\.weight$")
"""A weight inside a numbered block; the group is its layer's own name, as adapters target it."""

EXPERTS = ".experts."

TIED_HEADS = re.compile(r"(.*\.)?(lm_head|embed_out)\.weight")

Shape = tuple[int, ...]


def tensor_shapes(folder: Path) -> dict[str, Shape]:
    """Every tensor of the folder's model files by name.

    Raises IntegrityError for a file that ends early or is none, and for a shard that the index names and is not there.
    """
    found: dict[str, Shape] = {}
    for path in weight_files(folder):
        found |= header(path)
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the model: the shards that the index names, or the one file."""
    if not (folder / INDEX).is_file():
        return sorted(folder.glob("model*.safetensors"))
    index = json.loads((folder / INDEX).read_text("utf-8"))
    names = sorted(set(index["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise IntegrityError(f"{len(missing)} of {len(names)} shards are missing", str(folder / missing[0]), "bring it")
    return [folder / name for name in names]


def check_headers(folder: Path) -> None:
    """IntegrityError where a safetensors file directly in the folder is not as long as its own header says."""
    for path in sorted(folder.glob("*.safetensors")):
        header(path)


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model in `folder`, from its config.json and the headers of its weights."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    text: Mapping[str, Any] = config.get("text_config", config)
    shapes = tensor_shapes(folder)
    if text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)):
        shapes = {name: shape for name, shape in shapes.items() if not TIED_HEADS.fullmatch(name)}
    hidden = int(_first(text, "hidden_size", "n_embd", "d_model"))
    heads = int(_first(text, "num_attention_heads", "n_head", "num_heads")) or 1
    head_size = int(text.get("head_dim") or hidden // heads)
    return ModelShape(
        parameters=sum(_size(shape) for shape in shapes.values()),
        matrices=tuple(_matrices(shapes)),
        layers=int(_first(text, "num_hidden_layers", "n_layer", "num_layers")),
        hidden=hidden,
        vocabulary=int(text.get("vocab_size", 0)),
        key_value_width=int(text.get("num_key_value_heads") or heads) * head_size,
        context_tokens=_first(text, "max_position_embeddings", "n_positions") or None,
    )


def _matrices(shapes: Mapping[str, Shape]) -> list[Matrix]:
    """Those of layers; experts become one array in memory, which takes no adapter and is not quantised."""
    found = []
    for name, shape in shapes.items():
        if (block := BLOCK.search(name)) and len(shape) == 2 and EXPERTS not in name:
            found.append(Matrix(block[1], *shape))
    return found


def header(path: Path) -> dict[str, Shape]:
    """Every tensor of one file by name; IntegrityError where it ends early or is no safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or not 0 < length <= LARGEST_HEADER_BYTES:
            raise IntegrityError("not a safetensors file, or cut short", str(path), "bring the file again")
        if length > size - LENGTH_BYTES:
            what = f"its header is said to have {length} bytes, and the file has {size}: cut short"
            raise IntegrityError(what, str(path), "bring the file again")
        written = stream.read(length)
    try:
        header = json.loads(written)
    except ValueError as error:
        raise IntegrityError("its header cannot be read", str(path), "bring the file again") from error
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != LENGTH_BYTES + length + end:
        wanted = LENGTH_BYTES + length + end
        raise IntegrityError(f"{size} bytes instead of {wanted}", str(path), "bring the file again")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _first(config: Mapping[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), 0)


def _size(shape: Shape) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
