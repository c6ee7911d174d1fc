"""Model folders out of the home: plain Hugging Face folders, written whole or not at all, every file read back.

Such a folder has no manifest of ours: a card, the model's own files, and `stokehold.json`, which nobody has to read. It
is staged beside its place, compared with what it should hold, and appears there in one step. Where a folder with
content stands already nothing is written.
"""

import fnmatch
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from blake3 import blake3

from stokehold.core.errors import IntegrityError, StokeholdError, UsageError
from stokehold.store.disk import DISK, Disk
from stokehold.store.files import UNCONFIRMED, hash_file, read_manifest, refusals, staging, sweep
from stokehold.store.home import Home
from stokehold.store.models import cards
from stokehold.store.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, QUANTISATION, base_of
from stokehold.store.models.bases import CARD, WANTED
from stokehold.store.models.weights import INDEX

OF_ADAPTERS = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, QUANTISATION)
WEIGHTS = ("model*.safetensors", INDEX, *OF_ADAPTERS)

Files = dict[str, str]
"""What was written: BLAKE3 by the name in the folder."""


def publish_plain(target: Path, write: Callable[[Path], Files], disk: Disk = DISK) -> None:
    """Makes `target` from what `write(stage)` puts into the empty staging folder beside it.

    What `write` returns is compared with the disk before the folder has its name. Raises IntegrityError where a file is
    another; StokeholdError where something with content is there, and where the disk refuses; DiskFullError.
    """
    check_free(target)
    with refusals(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent, disk, f"{target.name}-")
        with staging(target, disk) as stage:
            written = write(stage)
            for path in sorted(stage.rglob("*")):
                disk.sync(path)
            disk.sync(stage)
            _check(stage, written)
            disk.rename(stage, target)  # over an empty folder, which this replaces in one step
    with refusals(target, UNCONFIRMED):
        disk.sync(target.parent)


def check_free(target: Path) -> None:
    """Raises StokeholdError where `target` is a file, a link, or a folder with content."""
    if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise StokeholdError("there is something here already", str(target), "name a folder that is not there yet")


def copy_model(folder: Path, stage: Path, disk: Disk) -> Files:
    """Copies a published folder's model as it is, adapters left out; what was read is compared with the manifest."""
    return _copy(folder, stage, WANTED, disk)


def copy_tokenizer(folder: Path, stage: Path, disk: Disk) -> Files:
    """Copies what is beside the weights: tokenizer, template, licence; what is in `stage` already stays."""
    there = {path.name for path in stage.iterdir()}
    beside = [pattern for pattern in WANTED if pattern not in (*WEIGHTS, "config.json", "generation_config.json")]
    return _copy(folder, stage, beside, disk, there)


def copy_adapters(home: Home, folder: Path, stage: Path, disk: Disk) -> Files:
    """Copies adapters as PEFT reads them; their configuration names the base by what is valid outside the home.

    That is the hub's id and commit where the base came from a hub as it is, else the base's folder on this machine.
    """
    base = base_of(folder)
    if base is None:
        raise UsageError("these weights are whole, there are no adapters to export", str(folder), "leave out --adapter")
    beside = [pattern for pattern in WANTED if pattern not in WEIGHTS]
    found = _copy(folder, stage, [*beside, ADAPTER_WEIGHTS, QUANTISATION], disk)
    tree = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
    content = json.dumps(tree | outside_name(home, base), indent=1, sort_keys=True).encode()
    return found | {ADAPTER_CONFIG: _write(stage / ADAPTER_CONFIG, content, disk)}


def outside_name(home: Home, base: Path) -> dict[str, Any]:
    """How adapters outside the home name this base."""
    model = home.config().model
    if model.revision and base.name == Path(model.base).name:
        return {"base_model_name_or_path": model.source, "revision": model.revision}
    return {"base_model_name_or_path": str(base)}


def describe(told: dict[str, Any], form: str, files: Files, stage: Path, disk: Disk) -> Files:
    """Writes the card, and the facts with the hashes of all files; returns those of every file."""
    whole = files | {CARD: _write(stage / CARD, cards.card(told, form), disk)}
    content = cards.provenance({**told, "form": form}, whole)
    return whole | {cards.PROVENANCE: _write(stage / cards.PROVENANCE, content, disk)}


def _write(path: Path, content: bytes, disk: Disk) -> str:
    """Writes a file; the BLAKE3 that it should have."""
    disk.write(path, content)
    return blake3(content).hexdigest()


def _check(stage: Path, written: Files) -> None:
    for name, digest in written.items():
        if hash_file(stage / name) != digest:
            fix = "check the disk; nothing was written"
            raise IntegrityError("the disk gave back something else than was written", str(stage / name), fix)


def _copy(
    folder: Path, stage: Path, patterns: tuple[str, ...] | list[str], disk: Disk, there: set[str] | None = None
) -> Files:
    copied: Files = {}
    for entry in read_manifest(folder)["files"]:
        name = entry["path"]
        if name in (there or ()) or not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if (folder / name).is_symlink():
            raise IntegrityError("a symbolic link in a published folder", str(folder / name), "`stoke versions verify`")
        copied[name] = disk.copy(folder / name, stage / name)
        if copied[name] != entry["blake3"]:
            fix = "`stoke versions verify` tells more; nothing was written"
            raise IntegrityError("not what the manifest says", str(folder / name), fix)
    return copied


def read_provenance(folder: Path) -> dict[str, Any]:
    """The facts of an exported folder; empty where it has none, or none that can be read."""
    path = folder / cards.PROVENANCE
    if not path.is_file() or path.is_symlink():
        return {}
    try:
        tree = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return {}
    return tree if isinstance(tree, dict) and tree.get("format") == cards.FORMAT else {}
