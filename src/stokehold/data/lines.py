"""Physical lines of a file, one at a time: memory is bounded by the longest line allowed, whatever the file holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from stokehold.core.records import Rejection

EXCERPT_CHARS = 80
"""What a user sees of a bad line."""

EXCERPT_BYTES = 4 * EXCERPT_CHARS
"""No UTF-8 character is longer than four bytes."""

SKIP_BYTES = 1 << 20
"""The rest of a line too long is passed over in pieces of this size."""

BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """Line `number` (from 1) of a file: valid UTF-8, not blank, without its line end and without a byte order mark."""

    number: int
    raw: bytes


class Part(NamedTuple):
    """Whole lines of a file: its bytes from `start` to `end`, behind `before` lines."""

    start: int
    end: int
    before: int


def read_lines(path: Path, max_line_bytes: int) -> Iterator[Line | Rejection]:
    """The lines of `path`, LF or CRLF, in order; blank ones are skipped but counted.

    A line of more than `max_line_bytes` bytes, or one that is not UTF-8, comes as a Rejection. OSError passes through.
    """
    with path.open("rb") as file:
        yield from read_part(file, Part(0, path.stat().st_size, 0), max_line_bytes)


def read_part(file: BinaryIO, part: Part, max_line_bytes: int) -> Iterator[Line | Rejection]:
    """As `read_lines`, the lines of one part."""
    file.seek(part.start)
    if part.start == 0 and file.read(len(BOM)) != BOM:
        file.seek(0)
    place, number = file.tell(), part.before
    # Two more bytes than allowed, so that a line of exactly the limit is seen with its CRLF.
    while place < part.end and (piece := file.readline(max_line_bytes + 2)):
        number += 1
        place += len(piece)
        raw = piece.removesuffix(b"\n").removesuffix(b"\r")
        if len(raw) > max_line_bytes:
            place += _skip_rest(file, piece)
            yield Rejection(number, f"longer than {max_line_bytes} bytes", excerpt(raw))
        elif raw.strip():
            yield _checked(number, raw)


def cut(path: Path, count: int) -> list[Part]:
    """The file in at most `count` parts of about one size, cut where lines end; each has a byte or more."""
    size = path.stat().st_size
    parts: list[Part] = []
    start = before = lines = 0
    with path.open("rb") as file:
        while block := file.read(SKIP_BYTES):
            place = file.tell() - len(block)
            wanted = size * (len(parts) + 1) // count
            # Of a block, the first line that ends where the next part should begin, or behind it.
            while len(parts) < count - 1 and (found := block.find(b"\n", max(0, wanted - 1 - place))) >= 0:
                end = place + found + 1
                if end == size:
                    break
                ended = lines + block.count(b"\n", 0, found + 1)
                parts.append(Part(start, end, before))
                start, before = end, ended
                wanted = max(size * (len(parts) + 1) // count, end + 1)
            lines += block.count(b"\n")
    return [*parts, Part(start, size, before)]


def excerpt(raw: bytes) -> str:
    """The first characters of a line, bad bytes made visible."""
    return raw[:EXCERPT_BYTES].decode(errors="replace")[:EXCERPT_CHARS]


def _checked(number: int, raw: bytes) -> Line | Rejection:
    try:
        if not raw.isascii():
            raw.decode()
    except UnicodeDecodeError as error:
        return Rejection(number, f"not UTF-8 at byte {error.start + 1}", excerpt(raw))
    return Line(number, raw)


def _skip_rest(file: BinaryIO, piece: bytes) -> int:
    """Reads to the end of the line that `piece` begins, holding no more of it than SKIP_BYTES; returns the bytes."""
    skipped = 0
    while piece and not piece.endswith(b"\n"):
        piece = file.readline(SKIP_BYTES)
        skipped += len(piece)
    return skipped
