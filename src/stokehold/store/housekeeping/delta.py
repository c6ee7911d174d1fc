"""Tensors written small: the difference from another tensor, byte plane by byte plane, compressed.

Weights that were trained a little differ from their parent's in the low bytes; XOR leaves zeros where nothing changed,
and bytes of the same place of each number compress better side by side. A tensor is written in slices, so that memory
stays bounded; decoding gives back every bit.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import zstandard

LEVEL = 6
"""Of zstd; higher ones cost much time here and save little."""

SLICE_BYTES = 8 * 1024 * 1024
"""A multiple of every element size: planes are cut out of slices of this size."""

Bytes = npt.NDArray[np.uint8]


class Source:
    """Bytes `start` to `start + size` of a file, read slice by slice."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self.path, self.start, self.size = path, start, size

    def slices(self) -> Iterator[Bytes]:
        """The content in order, SLICE_BYTES at a time."""
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            for at in range(0, self.size, SLICE_BYTES):
                wanted = min(SLICE_BYTES, self.size - at)
                content = stream.read(wanted)
                if len(content) != wanted:
                    raise EOFError(f"{self.path} ends early")
                yield np.frombuffer(content, np.uint8)


def encode(content: Iterator[Bytes], base: Iterator[Bytes] | None, item_bytes: int, out: BinaryIO) -> int:
    """Writes `content` as a difference from `base` (of equal size), or by itself, to `out`; returns bytes written."""
    before = out.tell()
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    with compressor.stream_writer(out, closefd=False) as writer:
        for own in content:
            plain = own if base is None else np.bitwise_xor(own, next(base))
            writer.write(_planes(plain, item_bytes).tobytes())
    return out.tell() - before


def packed_bytes(content: Bytes, base: Bytes | None, item_bytes: int) -> int:
    """How many bytes `encode` makes of one slice."""
    out = io.BytesIO()
    return encode(iter([content]), None if base is None else iter([base]), item_bytes, out)


def decode(packed: BinaryIO, base: Iterator[Bytes] | None, item_bytes: int, size: int) -> Iterator[Bytes]:
    """The slices that `encode` was given, from where `packed` stands; `size` is their total in bytes.

    Raises `zstandard.ZstdError` or EOFError for damaged input.
    """
    with zstandard.ZstdDecompressor().stream_reader(packed, closefd=False) as reader:
        for at in range(0, size, SLICE_BYTES):
            wanted = min(SLICE_BYTES, size - at)
            content = _read(reader, wanted)
            plain = _items(np.frombuffer(content, np.uint8), item_bytes)
            yield plain if base is None else np.bitwise_xor(plain, next(base))


def _read(reader: zstandard.ZstdDecompressionReader, wanted: int) -> bytes:
    parts, left = [], wanted
    while left:
        part = reader.read(left)
        if not part:
            raise EOFError("packed content ends early")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _planes(content: Bytes, item_bytes: int) -> Bytes:
    """First bytes of all items, then second bytes, …; a rest that is no whole item stands at the end."""
    whole = len(content) - len(content) % item_bytes
    planes = content[:whole].reshape(-1, item_bytes).T.reshape(-1)
    return np.concatenate([planes, content[whole:]])


def _items(content: Bytes, item_bytes: int) -> Bytes:
    """As it was before `_planes`."""
    whole = len(content) - len(content) % item_bytes
    items = content[:whole].reshape(item_bytes, -1).T.reshape(-1)
    return np.concatenate([items, content[whole:]])
