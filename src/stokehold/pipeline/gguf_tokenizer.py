"""The tokenizer of a model folder as GGUF holds one: byte-level BPE, with the cutting of text that llama.cpp knows.

llama.cpp cuts text by patterns that it knows by name. A tokenizer with a pattern of its own is written under the name
of the nearest one and marked as not exact: some texts then become other tokens there than here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Regex, Tokenizer, pre_tokenizers

from stokehold.core.errors import InputError
from stokehold.data.bytelevel import is_byte_level

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "qwen2": rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}|{REST}",
    "llama-bpe": rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}{{1,3}}|{REST}",
}
"""What llama.cpp's names cut by."""

GPT2 = "gpt-2"
"""llama.cpp's name for what a byte-level step cuts by when it is alone."""

NEAREST = "qwen2"

GENERATION = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")
"""Marks around what is trained, which only some readers of templates know."""

ROLES = {"bos": "bos_token", "eos": "eos_token", "pad": "pad_token"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id, with llama.cpp's type of each; `begins` and `ends` tell whether a text gets a token put there."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    exact: bool
    special: Mapping[str, int]
    begins: bool
    ends: bool
    template: str


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The folder's tokenizer for an embedding of `rows` rows; rows beyond the last token are unused tokens.

    Raises InputError where it is not byte-level BPE, or has more tokens than the model has rows.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError("GGUF needs a tokenizer.json", str(folder), "save the tokenizer in that form")
    tree = json.loads(path.read_text("utf-8"))
    if not is_byte_level(tree):
        raise InputError("GGUF is written for byte-level BPE tokenizers", str(path), "export without --gguf")
    ids = {**tree["model"]["vocab"], **{token["content"]: token["id"] for token in tree["added_tokens"]}}
    if max(ids.values()) >= rows:
        raise InputError(f"{max(ids.values()) + 1} tokens for {rows} rows of the model", str(path), "check the folder")
    config = _read(folder / "tokenizer_config.json")
    special = {role: ids[name] for role, key in ROLES.items() if (name := _content(config.get(key))) in ids}
    names, types = _tokens(ids, tree["added_tokens"], rows)
    pre, exact = pre_tokenizer(tree)
    around = Tokenizer.from_file(str(path)).encode("a").ids
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in tree["model"]["merges"])
    return Vocabulary(
        tokens=names,
        types=types,
        merges=tuple(merges),
        pre=pre,
        exact=exact,
        special=special,
        begins=around[0] == special.get("bos"),
        ends=around[-1] == special.get("eos"),
        template=_template(folder, config),
    )


def pre_tokenizer(tree: Mapping[str, Any]) -> tuple[str, bool]:
    """llama.cpp's name for how a tokenizer cuts text, and whether it cuts the same."""
    first = tree.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers", [first])
    if len(steps) == 1 and steps[0].get("use_regex"):
        return GPT2, True
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    found = next((name for name, pattern in PATTERNS.items() if patterns == [pattern]), None)
    return (found, True) if found else (NEAREST, False)


def cut_alike(folder: Path, pre: str, texts: Sequence[str]) -> int:
    """How many of the texts become the same tokens when they are cut as `pre` cuts."""
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    other = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cut = pre_tokenizers.Split(Regex(PATTERNS[pre]), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    pairs = zip(own.encode_batch_fast(list(texts)), other.encode_batch_fast(list(texts)), strict=True)
    return sum(a.ids == b.ids for a, b in pairs)


def _tokens(
    ids: Mapping[str, int], added: Sequence[Mapping[str, Any]], rows: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    names = [f"[PAD{number}]" for number in range(rows)]
    types = [int(gguf.TokenType.UNUSED)] * rows
    for name, number in ids.items():
        names[number], types[number] = name, int(gguf.TokenType.NORMAL)
    for token in added:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        types[token["id"]] = int(kind)
    return tuple(names), tuple(types)


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    found = path.read_text("utf-8") if path.is_file() else config.get("chat_template")
    return GENERATION.sub(r"{#\1 \2#}", found) if isinstance(found, str) else ""


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
