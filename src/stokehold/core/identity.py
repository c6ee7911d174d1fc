"""What makes two pieces of content the same: hashes of text, prompts and problems.

All hashes are BLAKE3, written in hex. The held-out share of task families is decided here, so that a generator,
the firewall at ingest and an evaluation suite can never disagree.
"""

from collections.abc import Iterable, Sequence

from blake3 import blake3

from stokehold.core.records import Message

ID_HEX_CHARS = 16
"""Characters of a short id: 64 bits, a collision in 10 million rows has a chance of 3e-6."""

HOLDOUT_MODULUS = 16
"""One identity in 16 is held out."""


def content_hash(*parts: str) -> str:
    """64 hex characters over the parts, each length-prefixed so that ("ab","c") differs from ("a","bc")."""
    return blake3(framed(*parts)).hexdigest()


def framed(*parts: str) -> bytes:
    """The parts as one sequence of bytes, each behind its length: what `content_hash` hashes."""
    encoded = [part.encode() for part in parts]
    return b"".join([piece for part in encoded for piece in (len(part).to_bytes(8, "little"), part)])


def short_id(*parts: str) -> str:
    """The first `ID_HEX_CHARS` of `content_hash`."""
    return content_hash(*parts)[:ID_HEX_CHARS]


def short_id_of(content: bytes) -> str:
    """As `short_id` of one part that is UTF-8 already."""
    return blake3(len(content).to_bytes(8, "little") + content).hexdigest(length=ID_HEX_CHARS // 2)


def is_holdout(identity: str) -> bool:
    """Whether the problem with this identity string belongs to the held-out split, for ever."""
    return int(content_hash(identity)[:16], 16) % HOLDOUT_MODULUS == 0


def normalise(text: str) -> str:
    """Case and white space folded, so that a reformatted copy of a prompt is still that prompt."""
    return " ".join(text.split()).casefold()


def prompt_hash(messages: Sequence[Message]) -> str:
    """Identity of a conversation's question: every message before the last assistant turn, normalised."""
    last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=len(messages))
    return content_hash(*_flat((m.role, normalise(m.content)) for m in messages[:last]))


def _flat(pairs: Iterable[tuple[str, str]]) -> Iterable[str]:
    for pair in pairs:
        yield from pair
