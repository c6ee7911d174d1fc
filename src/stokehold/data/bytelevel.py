"""Byte-level tokenizers, encoded faster than by asking for offsets, with the same ids.

Two facts make it possible. Added tokens (`<|im_start|>`, …) always cut a text, and what lies between two of them is
encoded by itself; so the pieces are encoded alone, by a tokenizer that looks for no added token, and pieces that come
again and again (`assistant` and a line end) once. And the tokens, one after another, are the bytes of the text, so that
their places follow from their ids. Whether both hold is read from the tokenizer's own description; the sum of the bytes
is checked for every text. Wherever something does not hold, there is no answer here, and offsets are asked for.
"""

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers

COMPOSING = {"NFC"}
"""Normalisers that leave ASCII as it is; under them other texts have no answer here."""

STEPS = {"ByteLevel", "Split", "Digits"}
"""Pre-tokenisers that only cut, and the one that makes bytes of characters."""

SHORT_CHARS = 32
"""Pieces up to this long are remembered: what templates write between two turns."""

REMEMBERED = 4096


class ByteLevel:
    """The pieces and the bytes of one tokenizer; `read` makes one. Safe to share between threads."""

    def __init__(
        self, plain: Tokenizer, added: dict[str, int], lengths: NDArray[np.int64], ascii_only: bool = False
    ) -> None:
        """`plain` knows no added token, `added` are those with their ids, `lengths` the bytes of each token by id."""
        self._plain, self._added, self._lengths, self._ascii_only = plain, added, lengths, ascii_only
        longest_first = sorted(added, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._known: dict[str, list[int]] = {token: [number] for token, number in added.items()}

    @classmethod
    def read(cls, tokenizer: Tokenizer, plain: Tokenizer) -> "ByteLevel | None":
        """None where this is no byte-level tokenizer, or one that adds or drops characters; `plain` is the same
        tokenizer without its added tokens."""
        tree = json.loads(tokenizer.to_str())
        normalizer = tree.get("normalizer")
        normalizers = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
        added = tree["added_tokens"]
        if not is_byte_level(tree) or any(one["type"] not in COMPOSING for one in normalizers):
            return None
        if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added):
            return None
        lengths = np.zeros(1 + max(tokenizer.get_vocab(with_added_tokens=True).values()), dtype=np.int64)
        alphabet = set(pre_tokenizers.ByteLevel.alphabet())
        for token, number in tree["model"]["vocab"].items():
            lengths[number] = len(token) if alphabet.issuperset(token) else 0
        for token in added:
            lengths[token["id"]] = len(token["content"].encode())
        return cls(plain, {token["content"]: token["id"] for token in added}, lengths, bool(normalizers))

    def takes(self, text: str) -> bool:
        """Whether `text` can be encoded here."""
        return not self._ascii_only or text.isascii()

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The ids of each text, all of which `takes` took. The encoding itself leaves the interpreter's lock alone."""
        pieces = [[piece for piece in self._cut.split(text) if piece] for text in texts]
        new = list(dict.fromkeys(piece for piece in chain.from_iterable(pieces) if piece not in self._known))
        encoded = self._plain.encode_batch_fast(new, add_special_tokens=False)
        ids = dict(zip(new, (encoding.ids for encoding in encoded), strict=True))
        if len(self._known) < REMEMBERED:
            self._known |= {piece: found for piece, found in ids.items() if len(piece) <= SHORT_CHARS}
        ids = self._known | ids
        return [np.fromiter(chain.from_iterable(ids[piece] for piece in parts), dtype=np.int32) for parts in pieces]

    def ends(self, text: str, ids: NDArray[np.int32]) -> NDArray[np.int64] | None:
        """Per token the byte at which it ends, ascending; None where these tokens are not the bytes of `text`."""
        ends: NDArray[np.int64] = self._lengths[ids].cumsum()
        return ends if len(ids) and ends[-1] == byte_of(text, len(text)) else None


def byte_of(text: str, place: int) -> int:
    """The byte at which character `place` of `text` begins."""
    return place if text.isascii() else len(text[:place].encode())


def is_byte_level(tree: dict[str, Any]) -> bool:
    """Whether text becomes bytes and nothing is put before, taken from or left to chance in it."""
    model, decoder, first = tree["model"], tree.get("decoder") or {}, tree.get("pre_tokenizer") or {}
    odd = ("dropout", "byte_fallback", "end_of_word_suffix", "continuing_subword_prefix")
    if model["type"] != "BPE" or any(model.get(key) for key in odd) or decoder.get("type") != "ByteLevel":
        return False
    steps = first.get("pretokenizers", [first])
    if any(step.get("behavior") == "Removed" or step.get("add_prefix_space") for step in steps):
        return False
    kinds = [step.get("type") for step in steps]
    return kinds.count("ByteLevel") == 1 and STEPS.issuperset(kinds)
