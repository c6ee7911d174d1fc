"""One thing looked at before a long run, and what came of it."""

from dataclasses import dataclass
from enum import StrEnum


class Mark(StrEnum):
    """How it stands: as it should be, worth a look, or in the way of a long run."""

    GOOD = "✓"
    LOOK = "⚠"
    BAD = "✗"


@dataclass(frozen=True, slots=True)
class Check:
    """`found` is what there is; `fix` what to do about it, empty where the mark is ✓."""

    mark: Mark
    what: str
    found: str
    fix: str = ""


def good(what: str, found: str) -> Check:
    return Check(Mark.GOOD, what, found)


def look(what: str, found: str, fix: str) -> Check:
    return Check(Mark.LOOK, what, found, fix)


def bad(what: str, found: str, fix: str) -> Check:
    return Check(Mark.BAD, what, found, fix)


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
