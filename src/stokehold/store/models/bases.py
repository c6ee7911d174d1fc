"""Base models: imported once into the home, found by hash, never changed afterwards.

Only configuration, tokenizer and safetensors come along: no code, no pickles.
"""

import fnmatch
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stokehold.core.errors import InputError
from stokehold.core.identity import ID_HEX_CHARS, content_hash
from stokehold.store.disk import Disk
from stokehold.store.files import hash_file, publish
from stokehold.store.home import Home
from stokehold.store.models.adapters import ADAPTER_CONFIG
from stokehold.store.models.weights import GOLDEN, tensor_shapes

KIND = "base"
WANTED = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE*",
)
CARD = "README.md"
"""The model's card; its first lines name the licence."""

FRONT_MATTER = re.compile(r"\A---\n(.*?)^---$", re.MULTILINE | re.DOTALL)
LICENCE = re.compile(r"^(license|license_name): *[\"']?([\w .+-]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Base:
    """An imported base: `path` relative to the home, and the facts that the config locks."""

    path: str
    architecture: str
    vocabulary: int
    context_tokens: int | None


def import_base(
    home: Home, folder: Path, source: str = "", revision: str = "", lineage: Mapping[str, Any] | None = None
) -> Base:
    """Copies a model folder into `base/<hash>/`; the same content again is the same folder.

    `source` and `revision` say in its manifest where it came from, beside the licence that its card names. `lineage`
    are more facts for one that was made in this home: its golden logits come along, and are no part of the hash. Raises
    InputError for a folder without configuration, safetensors weights or tokenizer, IntegrityError for weights that
    end early or lack a shard.
    """
    files = _wanted(folder)
    tensor_shapes(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    hashes = {path.name: hash_file(path) for path in files}
    name = content_hash(*(part for pair in hashes.items() for part in pair))[:ID_HEX_CHARS]
    if lineage is not None and (folder / GOLDEN).is_file():
        files.append(folder / GOLDEN)
        hashes[GOLDEN] = hash_file(folder / GOLDEN)
    target = home.base / name
    if not target.exists():
        facts = {"kind": KIND, "source": source or folder.name, "revision": revision, "licence": licence(folder)}
        facts |= lineage or {}
        publish(target, lambda staging: _copy(files, hashes, staging, home.disk), facts, hashes, disk=home.disk)
    return _facts(f"base/{name}", config)


def licence(folder: Path) -> str:
    """The licence that the model's card names; empty where there is no card or it names none."""
    card = folder / CARD
    front = FRONT_MATTER.match(card.read_text("utf-8", errors="replace")) if card.is_file() else None
    named: dict[str, str] = {key: value.strip() for key, value in LICENCE.findall(front[1])} if front else {}
    return named.get("license_name") or named.get("license", "")


def _wanted(folder: Path) -> list[Path]:
    if not (folder / "config.json").is_file():
        raise InputError("not a model folder: no config.json", str(folder), "give a folder that save_pretrained wrote")
    if (folder / ADAPTER_CONFIG).is_file():
        raise InputError("adapters, and no model", str(folder), "merge them into their base model first")
    files = sorted(p for p in folder.iterdir() if any(fnmatch.fnmatch(p.name, pattern) for pattern in WANTED))
    names = {path.name for path in files}
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError("no safetensors weights", str(folder), "save the model with safetensors; pickles are not read")
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise InputError("a model folder without a tokenizer", str(folder), "put its tokenizer.json beside config.json")
    return files


def _copy(files: list[Path], hashes: Mapping[str, str], staging: Path, disk: Disk) -> None:
    for path in files:
        if disk.copy(path, staging / path.name) != hashes[path.name]:
            raise InputError("changed while it was copied", str(path), "import it again")


def _facts(path: str, config: Mapping[str, Any]) -> Base:
    text = config.get("text_config", config)
    architectures = config.get("architectures") or ["unknown"]
    return Base(path, architectures[0], int(text.get("vocab_size", 0)), text.get("max_position_embeddings"))
