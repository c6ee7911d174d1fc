"""What lies between two published folders: their weights by layer, their settings, their data, their evaluations.

Weights are read in pieces, without torch and without holding a tensor; files of equal hash are not read at all.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.store import datasets
from stokehold.store.db.database import Database
from stokehold.store.files import read_manifest
from stokehold.store.home import Home
from stokehold.store.housekeeping.compaction import entries
from stokehold.store.judged import evaluations
from stokehold.store.models.adapters import base_of
from stokehold.store.models.checkpoints import weights_hash
from stokehold.store.models.tensors import Place, layout
from stokehold.store.models.versions import TRAINING_ONLY

PIECE_BYTES = 4 * 1024 * 1024
"""Read of each of the two at a time; what is computed with it takes up to eight times as much."""

NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
BFLOAT16 = "BF16"
ADAPTER_PREFIX = "base_model.model."
NUMBERED = re.compile(r"(?:.*\.)?(layers?|h|blocks?)\.(\d+)\.")
SETTINGS = re.compile(r"(?:generation_|adapter_|tokenizer_|base_)?(?:config|quantization)\.json")


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of one layer: `relative` is ||b - a|| / ||a||, None where that cannot be told; `largest` the largest
    change of one number; `changed` of `tensors` differ."""

    name: str
    tensors: int
    changed: int
    relative: float | None
    largest: float | None


@dataclass(frozen=True, slots=True)
class Weights:
    """Groups in the order of the model, and the tensors that only one has, or that have another shape or type."""

    same: bool
    groups: tuple[Group, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    reshaped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """A key with two values; None where it is missing."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Reading:
    """A suite's readings for both; None where it was not judged."""

    suite: str
    exact_a: float | None
    exact_b: float | None
    nll_a: float | None
    nll_b: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """From A to B. `datasets` are those that only one of them was trained on; `comparable` says whether the two
    evaluations were made alike, None where one is missing."""

    a: str
    b: str
    steps: tuple[int | None, int | None]
    weights: Weights
    settings: tuple[Setting, ...]
    datasets: Mapping[str, list[dict[str, Any]]]
    evaluation: tuple[Reading, ...]
    comparable: bool | None


def diff(home: Home, db: Database, a: Path, b: Path) -> Difference:
    """What lies between two published folders, both whole; raises `IntegrityError` where weights are damaged."""
    first, second = read_manifest(a), read_manifest(b)
    readings, comparable = _evaluations(home, db, entries(first), entries(second))
    return Difference(
        a.name,
        b.name,
        (first.get("step"), second.get("step")),
        _weights(a, b),
        tuple(_settings(a, b, first, second)),
        _datasets(home, first.get("datasets", []), second.get("datasets", [])),
        readings,
        comparable,
    )


@dataclass(slots=True)
class _Sums:
    """Of one group so far."""

    tensors: int = 0
    changed: int = 0
    before: float = 0.0
    change: float = 0.0
    largest: float = 0.0
    numbers: bool = True

    def group(self, name: str) -> Group:
        relative = math.sqrt(self.change) / math.sqrt(self.before) if self.before > 0 and self.numbers else None
        if self.changed == 0:
            relative = 0.0
        known = relative is not None and math.isfinite(relative)
        return Group(name, self.tensors, self.changed, relative if known else None, self.largest if known else None)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor: the file it is in, the file's hash where that is known, and where it lies."""

    path: Path
    digest: str | None
    place: Place


def _weights(a: Path, b: Path) -> Weights:
    ours, theirs = _tensors(a), _tensors(b)
    pairs: dict[str, list[tuple[_Stored, _Stored]]] = {}
    reshaped = []
    for name, old in ours.items():
        if (new := theirs.get(name)) is None:
            continue
        if old.place.meaning != new.place.meaning:
            reshaped.append(f"{name}: {old.place.meaning} -> {new.place.meaning}")
            continue
        pairs.setdefault(_group(name), []).append((old, new))
    groups = tuple(_compared(name, pairs[name]) for name in sorted(pairs, key=_order))
    only_a, only_b = tuple(sorted(ours.keys() - theirs.keys())), tuple(sorted(theirs.keys() - ours.keys()))
    same = not (only_a or only_b or reshaped) and not any(group.changed for group in groups)
    return Weights(same, groups, only_a, only_b, tuple(reshaped))


def _tensors(folder: Path) -> dict[str, _Stored]:
    """By name; of adapters those of their base too."""
    base = base_of(folder)
    found = _tensors(base) if base else {}
    known = {entry["path"]: entry["blake3"] for entry in read_manifest(folder)["files"]}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith(("model", "adapter_model")) and not TRAINING_ONLY.fullmatch(path.name):
            for place in layout(path).tensors:
                found[place.name.removeprefix(ADAPTER_PREFIX)] = _Stored(path, known.get(path.name), place)
    return found


def _compared(name: str, pairs: list[tuple[_Stored, _Stored]]) -> Group:
    if all(old.digest is not None and (old.digest, old.place) == (new.digest, new.place) for old, new in pairs):
        return Group(name, len(pairs), 0, 0.0, 0.0)
    sums = _Sums()
    for old, new in pairs:
        _compare(old, new, sums)
    return sums.group(name)


def _compare(old: _Stored, new: _Stored, sums: _Sums) -> None:
    sums.tensors += 1
    kind = old.place.meaning.partition(" ")[0]
    sums.numbers &= kind in NUMBERS or kind == BFLOAT16
    different = False
    for before, after in zip(_pieces(old), _pieces(new), strict=True):
        if before != after:
            different = True
        if sums.numbers:
            values = _numbers(before, kind)
            sums.before += float(np.dot(values, values))
            if before != after:
                change = _numbers(after, kind) - values
                sums.change += float(np.dot(change, change))
                sums.largest = max(sums.largest, float(np.abs(change).max(initial=0.0)))
    sums.changed += different


def _pieces(tensor: _Stored) -> Iterator[bytes]:
    left = tensor.place.size
    with tensor.path.open("rb") as stream:
        stream.seek(tensor.place.start)
        while left:
            piece = stream.read(min(left, PIECE_BYTES))
            if not piece:
                raise IntegrityError("it ends early", str(tensor.path), "`stoke versions verify` tells more")
            left -= len(piece)
            yield piece


def _numbers(piece: bytes, kind: str) -> NDArray[np.float64]:
    if kind == BFLOAT16:
        wide = np.frombuffer(piece, "<u2").astype("<u4") << 16
        return wide.view("<f4").astype(np.float64)
    return np.frombuffer(piece, NUMBERS[kind]).astype(np.float64)


def _group(name: str) -> str:
    if match := NUMBERED.match(name):
        return f"{match[1].removesuffix('s')}.{match[2]}"
    return name.removesuffix(".weight").removeprefix("model.")


def _order(group: str) -> tuple[int, int, str]:
    """Embeddings, layers by their number, and what comes after them."""
    _, _, number = group.rpartition(".")
    if number.isdigit():
        return 1, int(number), group
    return (0 if "embed" in group or group in ("transformer.wte", "transformer.wpe") else 2), 0, group


def _settings(a: Path, b: Path, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Setting]:
    one, other = _flat_settings(a, first), _flat_settings(b, second)
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            yield Setting(key, one.get(key), other.get(key))


def _flat_settings(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    found = {"base": manifest.get("base"), "settings (hash)": manifest.get("config_hash")}
    for path in sorted(folder.glob("*.json")):
        if SETTINGS.fullmatch(path.name):
            found |= _flat(json.loads(path.read_text("utf-8")), path.name)
    return found


def _flat(tree: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {name: value for key in tree for name, value in _flat(tree[key], f"{prefix}: {key}").items()}


def _datasets(home: Home, a: list[str], b: list[str]) -> dict[str, list[dict[str, Any]]]:
    return {
        "only_a": [_dataset(home, name) for name in a if name not in b],
        "only_b": [_dataset(home, name) for name in b if name not in a],
    }


def _dataset(home: Home, name: str) -> dict[str, Any]:
    """Its file and rows; unknown where it is not in this home."""
    try:
        record = datasets.load_dataset(home, name)
    except NotFoundError:
        return {"dataset": name, "file": None, "rows": None}
    return {"dataset": name, "file": record.file, "rows": record.accepted - record.held_out}


def _evaluations(
    home: Home, db: Database, a: list[dict[str, Any]], b: list[dict[str, Any]]
) -> tuple[tuple[Reading, ...], bool | None]:
    """By suite, of the newest evaluation of B and the one of A that was made most like it."""
    last = evaluations.latest_for(home, db, weights_hash(b))
    before = evaluations.list_evaluations(home, db, weights_hash(a))
    like = max(before, key=lambda one: last is not None and one.how == last.how, default=None)
    ours, theirs = like.suites if like else {}, last.suites if last else {}
    found = []
    for suite in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(suite), theirs.get(suite)
        exact = [result.exact if result else None for result in (one, other)]
        nll = [result.nll_per_token if result else None for result in (one, other)]
        found.append(Reading(suite, exact[0], exact[1], nll[0], nll[1]))
    return tuple(found), like.how == last.how if like and last else None
