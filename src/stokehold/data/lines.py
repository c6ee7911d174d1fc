"""Physical lines of a file, one at a time: memory is bounded by the longest line allowed, whatever the file holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stokehold.core.records import Rejection

EXCERPT_CHARS = 80
"""What a user sees of a bad line."""

EXCERPT_BYTES = 4 * EXCERPT_CHARS
"""No UTF-8 character is longer than four bytes."""

SKIP_BYTES = 1 << 20
"""The rest of a line too long is passed over in pieces of this size."""

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """Line `number` (from 1) of a file: valid UTF-8, not blank, without its line end and without a byte order mark."""

    number: int
    raw: bytes


def read_lines(path: Path, max_line_bytes: int) -> Iterator[Line | Rejection]:
    """The lines of `path`, LF or CRLF, in order; blank ones are skipped but counted.

    A line of more than `max_line_bytes` bytes, or one that is not UTF-8, comes as a Rejection. OSError passes through.
    """
    with path.open("rb") as file:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        number = 0
        # Two more bytes than allowed, so that a line of exactly the limit is seen with its CRLF.
        while piece := file.readline(max_line_bytes + 2):
            number += 1
            raw = piece.removesuffix(b"\n").removesuffix(b"\r")
            if len(raw) > max_line_bytes:
                _skip_rest(file, piece)
                yield Rejection(number, f"longer than {max_line_bytes} bytes", excerpt(raw))
            elif raw.strip():
                yield _checked(number, raw)


def excerpt(raw: bytes) -> str:
    """The first characters of a line, bad bytes made visible."""
    return raw[:EXCERPT_BYTES].decode(errors="replace")[:EXCERPT_CHARS]


def _checked(number: int, raw: bytes) -> Line | Rejection:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return Rejection(number, f"not UTF-8 at byte {error.start + 1}", excerpt(raw))
    return Line(number, raw)


def _skip_rest(file: BinaryIO, piece: bytes) -> None:
    """Reads to the end of the line that `piece` begins, holding no more of it than SKIP_BYTES."""
    while piece and not piece.endswith(b"\n"):
        piece = file.readline(SKIP_BYTES)
