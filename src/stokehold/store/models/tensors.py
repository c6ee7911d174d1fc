"""Where each tensor of a safetensors file lies, without reading one: what packing a version goes by."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stokehold.core.errors import IntegrityError
from stokehold.store.models.weights import LARGEST_HEADER_BYTES, LENGTH_BYTES

ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes of one number; 1 for every other type."""


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor: its name, what its bytes mean (type and shape), the bytes of one number, and where it is."""

    name: str
    meaning: str
    item_bytes: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A safetensors file: `header_bytes` of length and header, then the tensors without a gap."""

    header_bytes: int
    tensors: tuple[Place, ...]


def layout(path: Path) -> Layout:
    """Raises `IntegrityError` where it is no safetensors file, or its tensors do not follow one another to its end."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if not 0 < length <= min(LARGEST_HEADER_BYTES, size - LENGTH_BYTES):
            raise IntegrityError("not a safetensors file, or cut short", str(path), "it cannot be packed")
        written = stream.read(length)
    try:
        header = json.loads(written)
        places = _places(header, LENGTH_BYTES + length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError("its header cannot be read", str(path), "it cannot be packed") from error
    end = LENGTH_BYTES + length
    for place in places:
        if place.start != end or place.size < 0:
            raise IntegrityError(f"{place.name} does not follow what is before it", str(path), "it cannot be packed")
        end += place.size
    if end != size:
        raise IntegrityError(f"{size} bytes instead of {end}", str(path), "it cannot be packed")
    return Layout(LENGTH_BYTES + length, tuple(places))


def _places(header: Mapping[str, Any], after: int) -> list[Place]:
    found = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        kind = str(entry["dtype"])
        found.append(Place(name, f"{kind} {entry['shape']}", ITEM_BYTES.get(kind, 1), after + begin, end - begin))
    return sorted(found, key=lambda place: (place.start, place.size))
