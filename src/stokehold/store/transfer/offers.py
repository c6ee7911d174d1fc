"""What a server tells of a version that it offers: one JSON document, built there and checked where it arrives.

It holds the version's manifest as it is, that of the base under adapters, and the few settings without which the
weights would answer differently.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from stokehold.core.config import Config, parse_config
from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.store import files
from stokehold.store.db.database import Database
from stokehold.store.files import MANIFEST, check_manifest, read_manifest
from stokehold.store.home import Home
from stokehold.store.housekeeping import compaction
from stokehold.store.models import bases, versions
from stokehold.store.models.adapters import ADAPTER_CONFIG, base_of
from stokehold.store.models.checkpoints import weights_hash

FORMAT = 1
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "model": ("architecture", "vocabulary", "licence", "method", "dtype"),
    "data": ("max_length", "profile"),
}
"""What a node's answers depend on beside the weights, or people want to know."""

BASE_NAME = re.compile(r"\w{1,64}")
HASH = re.compile(rf"[0-9a-f]{{{files.HASH_HEX_CHARS}}}")
MOST_FILES = 10_000
LONGEST_PATH = 255
UNTRUSTED = "it is not taken; see what the server is, and whether both run the same release"


@dataclass(frozen=True, slots=True)
class Folder:
    """A published folder of the server: its name there, and its manifest."""

    name: str
    manifest: Mapping[str, Any]

    @property
    def files(self) -> Sequence[Mapping[str, Any]]:
        """`path`, `bytes` and `blake3` of each file."""
        entries: Sequence[Mapping[str, Any]] = self.manifest["files"]
        return entries


@dataclass(frozen=True, slots=True)
class Offer:
    """A version that may be pulled, the base under its adapters or None, and the settings of its home that matter."""

    version: Folder
    base: Folder | None
    settings: Config

    @property
    def weights_hash(self) -> str:
        return weights_hash(self.version.files)

    @property
    def blobs(self) -> dict[str, int]:
        """Bytes of each blob by its hash."""
        folders = (self.version, self.base) if self.base else (self.version,)
        return {entry["blake3"]: entry["bytes"] for folder in folders for entry in folder.files}


class _Lineage(BaseModel):
    """What every version's manifest says beside its files."""

    name: str
    created: str
    step: int | None
    parent: str | None
    datasets: list[str]
    evaluation: str | None
    note: str


def build(home: Home, db: Database, ref: str) -> bytes:
    """The offer of the version that `ref` names, a name or an alias; NotFoundError where it names none.

    A packed one is made whole first.
    """
    named = ref if versions.NAME.fullmatch(ref) else versions.alias(db, ref)
    if named is None:
        raise NotFoundError("no version goes by this name yet", ref, "promote one, or name one: v0007")
    version = versions.find_version(home, named)
    return orjson.dumps(document(home, version.name, compaction.whole(home, home.versions / version.name)))


def document(home: Home, name: str, folder: Path) -> dict[str, Any]:
    """The offer of a published folder under this name."""
    base = base_of(folder)
    return {
        "format": FORMAT,
        "name": name,
        "manifest": read_manifest(folder),
        "base": {"name": base.name, "manifest": read_manifest(base)} if base else None,
        "settings": settings_of(home.config()),
    }


def settings_of(config: Config) -> dict[str, dict[str, Any]]:
    """The settings that an offer tells."""
    return {table: {key: getattr(getattr(config, table), key) for key in keys} for table, keys in SETTINGS.items()}


def parse(body: bytes, server: str) -> Offer:
    """The offer of a version in this JSON; IntegrityError naming the server where any of it cannot be trusted."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise IntegrityError("the server's answer is no offer of a version", server, UNTRUSTED) from error
    offer = parse_folder(found, server, (versions.KIND,))
    _check_version(offer.version, server)
    return offer


def parse_folder(found: Any, server: str, kinds: Sequence[str]) -> Offer:
    """The offer of a folder of one of these kinds; errors as `parse`."""
    try:
        if found["format"] > FORMAT:
            raise IntegrityError(f"an offer of the newer format {found['format']}", server, "upgrade stokehold")
        weights = _folder(found["name"], found["manifest"], kinds, server)
        base = found["base"]
        under = _folder(base["name"], base["manifest"], (bases.KIND,), server) if base is not None else None
        known = {table: {key: found["settings"][table][key] for key in keys} for table, keys in SETTINGS.items()}
    except (KeyError, TypeError) as error:
        raise IntegrityError("the server's answer is no offer", server, UNTRUSTED) from error
    if not weights_hash(weights.files):
        raise IntegrityError("an offer without weights", server, UNTRUSTED)
    if under is not None and not BASE_NAME.fullmatch(under.name):
        raise IntegrityError("the base has no name that can be used", server, UNTRUSTED)
    if (under is not None) != any(entry["path"] == ADAPTER_CONFIG for entry in weights.files):
        raise IntegrityError("adapters and their base do not come together", server, UNTRUSTED)
    offer = Offer(weights, under, parse_config(known, f"the settings of {server}"))
    sizes = {(entry["blake3"], entry["bytes"]) for folder in (weights, under) if folder for entry in folder.files}
    if len(sizes) != len(offer.blobs):
        raise IntegrityError("one content is said to have two sizes", server, UNTRUSTED)
    return offer


def for_answering(offer: Offer) -> Offer:
    """The offer without what only training needs."""
    files = [entry for entry in offer.version.files if not versions.OPTIMISER.fullmatch(entry["path"])]
    return replace(offer, version=replace(offer.version, manifest={**offer.version.manifest, "files": files}))


def _folder(name: str, manifest: Any, kinds: Sequence[str], server: str) -> Folder:
    checked = check_manifest(manifest, f"{server}: {name}")
    if checked.get("kind") not in kinds:
        raise IntegrityError(f"what it calls a {' or a '.join(kinds)} is none", server, UNTRUSTED)
    entries = checked["files"]
    paths = [entry["path"] for entry in entries]
    if len(paths) > MOST_FILES or len(set(paths)) != len(paths):
        raise IntegrityError("its manifest names too many files, or one of them twice", server, UNTRUSTED)
    for entry in entries:
        named = HASH.fullmatch(str(entry["blake3"])) and len(entry["path"]) <= LONGEST_PATH
        if not named or entry["path"] == MANIFEST or type(entry["bytes"]) is not int or entry["bytes"] < 0:
            raise IntegrityError(f"its manifest cannot be right about {entry['path']!r}", server, UNTRUSTED)
    return Folder(str(name), checked)


def _check_version(version: Folder, server: str) -> None:
    try:
        lineage = _Lineage.model_validate(version.manifest, strict=True)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise IntegrityError(f"its manifest does not fit at {place}", server, UNTRUSTED) from error
    if versions.full_name(version.name) != version.name or lineage.name != version.name:
        raise IntegrityError("the version has no name that can be used", server, UNTRUSTED)
