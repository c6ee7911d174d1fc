"""Folders of adapters, and the base model that they stand on.

Such a folder is a checkpoint or a version, two levels below the home. It names its base by a relative path with the
hash in it, so that a home may be moved; transformers finds the base's weights through an index of shards.
"""

import json
from pathlib import Path

from stokehold.core.errors import IntegrityError
from stokehold.store.files import MANIFEST
from stokehold.store.home import Home
from stokehold.store.models.weights import INDEX, tensor_shapes, weight_files

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
QUANTISATION = "base_quantization.json"
"""How the weights under the adapters are quantised, where they are: without it the adapters fit other weights."""


def base_of(folder: Path) -> Path | None:
    """The base model that a folder of adapters stands on, None for a folder with weights of its own.

    Raises IntegrityError where it is not there.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    named = _named(folder)
    base = (folder / named).resolve()
    if not named or not (base / "config.json").is_file():
        raise IntegrityError("the base model of these adapters is missing", f"{folder}: {named!r}", "restore it there")
    return base


def unused_bases(home: Home) -> list[Path]:
    """Bases that nothing stands on: no checkpoint and no version, those in the trash included, and not the config."""
    shelves = (home.checkpoints, home.versions, home.trash)
    folders = (folder for shelf in shelves if shelf.is_dir() for folder in shelf.iterdir())
    named = {Path(_named(folder)).name for folder in folders if (folder / ADAPTER_CONFIG).is_file()}
    kept = {Path(home.config().model.base).name, *named}
    return sorted(path for path in home.base.iterdir() if (path / MANIFEST).is_file() and path.name not in kept)


def reference(base: Path) -> str:
    """How a checkpoint or a version of the same home names the base."""
    return f"../../base/{base.name}"


def index_into(base: Path) -> str:
    """An index of shards that lie in the base, as JSON."""
    if (base / INDEX).is_file():
        shards: dict[str, str] = json.loads((base / INDEX).read_text("utf-8"))["weight_map"]
    else:
        (only,) = weight_files(base)
        shards = dict.fromkeys(tensor_shapes(base), only.name)
    size = sum((base / name).stat().st_size for name in set(shards.values()))
    placed = {tensor: f"{reference(base)}/{name}" for tensor, name in sorted(shards.items())}
    return json.dumps({"metadata": {"total_size": size}, "weight_map": placed}, indent=1)


def _named(folder: Path) -> str:
    return str(json.loads((folder / ADAPTER_CONFIG).read_text("utf-8")).get("base_model_name_or_path") or "")
