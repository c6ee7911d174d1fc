"""Old versions written small, and made whole again bit for bit.

A packed version keeps its name, its lineage and its small files. In place of each safetensors file stands its header
and, for each tensor, nothing where the parent's is the same, else its difference from the parent's or itself, whichever
is smaller; a content that comes twice is stored once. `whole` rebuilds the files, checks them against the hashes that
the version was published with, and puts them back in one step. Nothing is replaced before it was read back and found
equal.
"""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import zstandard
from blake3 import blake3

from stokehold.core.errors import IntegrityError, StokeholdError
from stokehold.store.files import MANIFEST, SEAL, hash_file, publish, read_manifest
from stokehold.store.home import Home
from stokehold.store.housekeeping import delta, trash
from stokehold.store.models.tensors import Place, layout

PACKED = "packed"
"""Key of a packed version's manifest: the files as they are when it is whole, and what it is packed against."""

OWN_KEYS = ("format", "files", SEAL)
"""Keys of a manifest that publishing sets."""

DESCRIPTION = "tensors.index"
"""A hash, then JSON over which it goes."""

HASH_BYTES = 32
CONTENT = "tensors.pack"
PACK_FORMAT = 1
SMALLEST_BYTES = 64 * 1024
"""Smaller safetensors files stay as they are."""

LONGEST_CHAIN = 4
"""Packed versions that must be read to rebuild one; then the next stands by itself."""

LEAST_SAVING = 0.05
"""Share of its bytes that packing must save to be worth rebuilding later."""

FRESH_S = 3600.0
"""A version that was asked for within this time is in use."""


Stored = dict[tuple[str, int], dict[str, Any]]
"""Where a content is already: by hash and bytes of one number."""


@dataclass(frozen=True, slots=True)
class Saving:
    """What packing one version did: bytes of its weights before and after, and the version or base it is packed
    against."""

    name: str
    before: int
    after: int
    against: str | None


def is_packed(manifest: Mapping[str, Any]) -> bool:
    return PACKED in manifest


def entries(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The manifest's files as they are when the folder is whole."""
    found: list[dict[str, Any]] = manifest[PACKED]["files"] if is_packed(manifest) else manifest["files"]
    return found


def touch(folder: Path) -> None:
    """Notes that a version is used now: the time of its folder, which no content depends on."""
    os.utime(folder)


def used_s(folder: Path) -> float:
    """Seconds since the version was made, moved or last asked for."""
    return time.time() - folder.stat().st_mtime


def whole(home: Home, folder: Path) -> Path:
    """The folder with the files that it was published with, rebuilt where it is packed; any other as it is.

    A version is marked as used. Raises `IntegrityError` where what is packed, or what it stands on, is damaged; then
    nothing was changed.
    """
    if folder.parent != home.versions or not (folder / MANIFEST).is_file():
        return folder
    touch(folder)
    manifest = read_manifest(folder)
    if not is_packed(manifest):
        return folder
    old = trash.reserve(home, folder, trash.PRUNED)
    lineage = {key: value for key, value in manifest.items() if key not in (PACKED, *OWN_KEYS)}
    publish(folder, lambda stage: _rebuild(home, folder, manifest, stage), lineage, replaced=old, disk=home.disk)
    return folder


def pack(home: Home, folder: Path, against: Path | None) -> Saving | None:
    """Packs a version against another one, or a base; None where that saves too little, and nothing was changed.

    Raises `IntegrityError` where the version does not come back as its manifest says, for then it was damaged before,
    and `StokeholdError` where it is used meanwhile, or too many others are packed one against the other upon it.
    """
    if height(home, folder.name) >= LONGEST_CHAIN:
        raise StokeholdError("too many versions are packed upon it", str(folder), "nothing was changed; it stays whole")
    manifest = read_manifest(folder)
    place = against.relative_to(home.root).as_posix() if against else None
    chosen = [entry for entry in manifest["files"] if _packs(folder, entry)]
    before, after = sum(entry["bytes"] for entry in chosen), 0
    if not chosen:
        return None

    def write(stage: Path) -> None:
        nonlocal after
        after = _write(home, folder, against, [entry["path"] for entry in chosen], stage)
        if after > (1 - LEAST_SAVING) * before:
            raise _TooLittle
        for entry in manifest["files"]:
            if entry not in chosen:
                (stage / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
                home.disk.copy(folder / entry["path"], stage / entry["path"])
        _check(home, stage, place, chosen)
        if used_s(folder) < FRESH_S:
            raise StokeholdError("it is in use again", str(folder), "nothing was changed; pack it another time")

    facts = {key: value for key, value in manifest.items() if key not in OWN_KEYS}
    facts[PACKED] = {"files": manifest["files"], "against": place}
    known = {entry["path"]: entry["blake3"] for entry in manifest["files"] if entry not in chosen}
    old = trash.reserve(home, folder, trash.PRUNED)
    used = folder.stat()
    try:
        publish(folder, write, facts, known, old, home.disk)
    except _TooLittle:
        return None
    os.utime(folder, ns=(used.st_atime_ns, used.st_mtime_ns))
    return Saving(folder.name, before, after, place)


def against(home: Home, folder: Path) -> Path | None:
    """What a version would be packed against: its parent, or the base model; None for neither, or a long chain."""
    manifest = read_manifest(folder)
    parent, base = manifest.get("parent"), manifest.get("base") or home.config().model.base
    for found in (home.versions / parent if parent else None, home.root / base if base else None):
        if found is not None and (found / MANIFEST).is_file() and found != folder:
            fits = depth(home, found) + 1 + height(home, folder.name) <= LONGEST_CHAIN
            return found if fits and folder not in _chain(home, found) else None
    return None


def dependants(home: Home) -> dict[str, list[str]]:
    """Versions, those in the trash included, that are packed against another, by the other's name."""
    found: dict[str, list[str]] = {}
    for folder in _versions(home):
        manifest = manifest_of(folder)
        packed = manifest.get(PACKED)
        if packed and packed["against"]:
            found.setdefault(Path(packed["against"]).name, []).append(manifest["name"])
    return found


def depth(home: Home, folder: Path) -> int:
    """Packed versions that are read to rebuild this one, itself included; 0 for a whole one."""
    return sum(is_packed(manifest_of(one)) for one in _chain(home, folder))


def height(home: Home, name: str) -> int:
    """The longest row of versions, packed one against the other, that ends at this one."""
    there = dependants(home)

    def above(one: str, seen: frozenset[str]) -> int:
        others = (other for other in there.get(one, ()) if other not in seen)
        return max((1 + above(other, seen | {other}) for other in others), default=0)

    return above(name, frozenset({name}))


class _TooLittle(Exception):
    """Packing saves less than it is worth."""


def _chain(home: Home, folder: Path) -> list[Path]:
    found: list[Path] = []
    step: Path | None = folder
    while step is not None and step not in found:
        found.append(step)
        packed = manifest_of(step).get(PACKED)
        step = home.root / packed["against"] if packed and packed["against"] else None
    return found


def _versions(home: Home) -> Iterator[Path]:
    for shelf in (home.versions, home.trash):
        yield from (path for path in shelf.iterdir() if path.is_dir() and not path.name.startswith("."))


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest, empty where there is none."""
    return read_manifest(folder) if (folder / MANIFEST).is_file() else {}


def _packs(folder: Path, entry: Mapping[str, Any]) -> bool:
    if not entry["path"].endswith(".safetensors") or entry["bytes"] < SMALLEST_BYTES:
        return False
    try:
        layout(folder / entry["path"])
    except IntegrityError:
        return False  # not as the format demands: it stays a file
    return True


class _Base:
    """The tensors of what a version is packed against, whole or packed itself."""

    def __init__(self, home: Home, folder: Path | None) -> None:
        self._home, self._folder = home, folder
        self._whole: dict[str, tuple[Path, Place]] = {}
        self._packed: dict[str, dict[str, Any]] = {}
        self._below: _Base | None = None
        if folder is None:
            return
        for path in sorted(folder.glob("*.safetensors")):
            self._whole |= {place.name: (path, place) for place in layout(path).tensors}
        if is_packed(manifest := manifest_of(folder)):
            described = _described(folder)
            self._packed = {tensor["name"]: tensor for file in described for tensor in file["tensors"]}
            named = manifest[PACKED]["against"]
            self._below = _Base(home, home.root / named if named else None)

    def slices(self, name: str, meaning: str) -> Iterator[delta.Bytes] | None:
        """The content of the tensor of this name, type and shape; None where there is none."""
        if self._folder is None:
            return None
        if name in self._whole:
            path, place = self._whole[name]
            return delta.Source(path, place.start, place.size).slices() if place.meaning == meaning else None
        tensor = self._packed.get(name)
        if tensor is None or tensor["meaning"] != meaning:
            return None
        return _unpacked(self._folder, tensor, self._below)


def _write(home: Home, folder: Path, base_folder: Path | None, names: list[str], stage: Path) -> int:
    """Writes description and content into the stage; returns their bytes."""
    base, described = _Base(home, base_folder), []
    stored: Stored = {}
    with (stage / CONTENT).open("xb") as out:
        for name in names:
            path, found = folder / name, layout(folder / name)
            header = Place("", "header", 1, 0, found.header_bytes)
            tensors = [_pack_tensor(path, place, base, stored, out) for place in found.tensors]
            described.append({"path": name, "header": _pack_tensor(path, header, base, {}, out), "tensors": tensors})
    content = orjson.dumps({"format": PACK_FORMAT, "files": described})
    home.disk.write(stage / DESCRIPTION, blake3(content).digest() + content)
    return (stage / CONTENT).stat().st_size + (stage / DESCRIPTION).stat().st_size


def _pack_tensor(path: Path, place: Place, base: _Base, stored: Stored, out: BinaryIO) -> dict[str, Any]:
    """Where the tensor's content is: `from` is same (the base's), xor (with the base's) or plain."""
    source = delta.Source(path, place.start, place.size)
    facts = {"name": place.name, "meaning": place.meaning, "size": place.size, "item_bytes": place.item_bytes}
    digest = _digest(source.slices())
    under = base.slices(place.name, place.meaning)
    if under is not None and _digest(under) == digest:
        return {**facts, "from": "same"}
    if (digest, place.item_bytes) in stored:
        return {**facts, **stored[digest, place.item_bytes]}
    way = _better_way(source, base, place)
    under = base.slices(place.name, place.meaning) if way == "xor" else None
    begin = out.tell()
    length = delta.encode(source.slices(), under, place.item_bytes, out)
    packed = {"from": way, "offset": begin, "length": length}
    if way == "plain":
        stored[digest, place.item_bytes] = packed
    return {**facts, **packed}


def _better_way(source: delta.Source, base: _Base, place: Place) -> str:
    """Tried on the first slice: whether the difference from the base is smaller than the tensor itself."""
    own, under = next(source.slices(), None), base.slices(place.name, place.meaning)
    first = next(under, None) if under is not None else None
    if own is None or first is None:
        return "plain"
    itself = delta.packed_bytes(own, None, place.item_bytes)
    return "xor" if delta.packed_bytes(own, first, place.item_bytes) < itself else "plain"


def _digest(slices: Iterator[delta.Bytes]) -> str:
    hasher = blake3()
    for part in slices:
        hasher.update(part.data)
    return hasher.hexdigest()


def _described(folder: Path) -> list[dict[str, Any]]:
    """Where everything in the pack is; read only when it is what was written."""
    path = folder / DESCRIPTION
    if not path.is_file() or len(content := path.read_bytes()) < HASH_BYTES:
        raise _damaged(folder, DESCRIPTION)
    if blake3(content[HASH_BYTES:]).digest() != content[:HASH_BYTES]:
        raise _damaged(folder, DESCRIPTION)
    found = orjson.loads(content[HASH_BYTES:])
    if found["format"] > PACK_FORMAT:
        raise IntegrityError(f"packed in the newer format {found['format']}", str(path), "upgrade stokehold")
    files: list[dict[str, Any]] = found["files"]
    return files


def _unpacked(folder: Path, tensor: Mapping[str, Any], base: _Base | None) -> Iterator[delta.Bytes]:
    under = None
    if tensor["from"] != "plain":
        under = base.slices(tensor["name"], tensor["meaning"]) if base is not None else None
        if under is None:
            raise IntegrityError(
                f"{tensor['name']} is packed against a tensor that is not there", str(folder), "restore its parent"
            )
    if tensor["from"] == "same":
        assert under is not None
        return under
    return _decoded(folder, tensor, under)


def _decoded(folder: Path, tensor: Mapping[str, Any], under: Iterator[delta.Bytes] | None) -> Iterator[delta.Bytes]:
    try:
        with (folder / CONTENT).open("rb") as packed:
            packed.seek(tensor["offset"])
            yield from delta.decode(packed, under, tensor["item_bytes"], tensor["size"])
    except (zstandard.ZstdError, EOFError, FileNotFoundError) as error:
        raise _damaged(folder, CONTENT) from error


def _damaged(folder: Path, name: str) -> IntegrityError:
    return IntegrityError("what is packed is damaged", str(folder / name), "restore the version from a backup")


def _files(home: Home, folder: Path, place: str | None) -> Iterator[tuple[str, Iterator[delta.Bytes]]]:
    """Path and content of each packed file of the folder."""
    base = _Base(home, home.root / place if place else None)
    for file in _described(folder):
        parts = [file["header"], *file["tensors"]]
        yield file["path"], (part for tensor in parts for part in _unpacked(folder, tensor, base))


def _check(home: Home, stage: Path, place: str | None, wanted: list[dict[str, Any]]) -> None:
    """Reads back what was packed; every file must be what the manifest says it was."""
    hashes = {entry["path"]: entry["blake3"] for entry in wanted}
    for path, content in _files(home, stage, place):
        if _digest(content) != hashes.pop(path):
            raise IntegrityError("changed since it was published", path, "`stoke versions verify` tells more")
    assert not hashes


def _rebuild(home: Home, folder: Path, manifest: Mapping[str, Any], stage: Path) -> None:
    for path, content in _files(home, folder, manifest[PACKED]["against"]):
        target = stage / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            for part in content:
                out.write(part.data)
    for entry in manifest[PACKED]["files"]:
        target = stage / entry["path"]
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            home.disk.copy(folder / entry["path"], target)
        if hash_file(target) != entry["blake3"]:
            raise IntegrityError("does not come back as it was", f"{folder.name}/{entry['path']}", "restore a backup")
