"""A model folder from outside becomes a version: checked first, copied, and then no different from any other version.

Nothing in the folder is run, and no link in it is followed. Its weights must have the names and shapes of this home's
base, its tokenizer the same tokens: a version that this home could not go on with does not get in.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stokehold.core.config import Config
from stokehold.core.errors import InputError, IntegrityError
from stokehold.core.records import Version
from stokehold.store.db import events
from stokehold.store.db.database import Database
from stokehold.store.files import REPEAT, hash_file, publish, refusals, staging
from stokehold.store.home import Home
from stokehold.store.models import versions
from stokehold.store.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, QUANTISATION, index_into, reference
from stokehold.store.models.bases import WANTED
from stokehold.store.models.exports import read_provenance
from stokehold.store.models.weights import INDEX, TIED_HEADS, header, tensor_shapes

CODE = (".py", ".pyc", ".so")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".h5", ".msgpack")
WITHOUT_EFFECT = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "_name_or_path"}
"""Keys of config.json that change nothing of what the weights compute, or are compared elsewhere."""

LOCKED_ADAPTER = {"r": "rank", "lora_alpha": "alpha", "use_dora": "dora", "use_rslora": "rslora"}
"""What PEFT calls the keys that a lineage of adapters may not change."""


def import_folder(home: Home, db: Database, folder: Path, note: str = "") -> Version:
    """The folder's weights as the next version. Where it has a `stokehold.json`, its files must be those named there.

    Raises InputError for a folder that is refused, IntegrityError for files that are damaged.
    """
    config, told = home.config(), read_provenance(folder)
    files = check_folder(folder)
    _check_hashes(folder, files, told)
    adapters = ADAPTER_CONFIG in files
    base = check_adapters(home, config, folder, told) if adapters else None
    if base is None:
        check_weights(home, config, folder)
    check_tokenizer(home, config, folder)

    def write(stage: Path) -> None:
        for name in files:
            if name != ADAPTER_CONFIG:
                _copy(home, folder / name, stage / name)
        if base is not None:
            _write_adapter_config(home, base, folder, stage)

    with refusals(home.versions, REPEAT), staging(home.versions / "import", home.disk) as stage:
        copy = stage / folder.name
        kind = {"kind": "import", "base": f"base/{(base or home.root / config.model.base).name}"}
        publish(copy, write, kind, disk=home.disk)
        made = versions.create(
            home, db, copy, datasets=_known(home, told), note=note or f"imported from {folder.absolute()}"
        )
    events.record(db, "imported", f"{made.name} from {folder.absolute()}", version=made.name)
    return made


def check_folder(folder: Path) -> list[str]:
    """Names of the files to take; InputError for links, code, pickles, and where weights or tokenizer are missing."""
    if not folder.is_dir() or folder.is_symlink():
        raise InputError("not a folder", str(folder), "give the folder that an export, or save_pretrained, wrote")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise InputError(
                "a symbolic link", str(path), "copy the folder with its files (`cp -rL`), and look at them"
            )
        if path.suffix.lower() in CODE:
            raise InputError("code; a version holds none", str(path), "remove it, if the model loads without it")
        if path.suffix.lower() in PICKLES:
            raise InputError("weights are read from safetensors only", str(path), "remove it, or convert it")
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if "config.json" not in names:
        raise InputError("not a model folder: no config.json", str(folder), "give a folder that save_pretrained wrote")
    if "auto_map" in _read(folder / "config.json"):
        raise InputError("its config.json asks for code", str(folder / "config.json"), "take a model without code")
    if ADAPTER_CONFIG in names:
        return sorted(_taken(names, (*WANTED, ADAPTER_CONFIG, ADAPTER_WEIGHTS, QUANTISATION)) - {INDEX})
    return sorted(_taken(names, WANTED))


def check_weights(home: Home, config: Config, folder: Path) -> None:
    """Raises InputError where these are not weights of the home's architecture, vocabulary and shapes."""
    tree = _read(folder / "config.json")
    shards = set(_read(folder / INDEX).get("weight_map", {}).values()) if (folder / INDEX).is_file() else set()
    if outside := sorted(name for name in shards if not isinstance(name, str) or Path(name).name != name):
        raise InputError("its index names a file outside the folder", f"{folder}: {outside[0]!r}", "do not trust it")
    found = tensor_shapes(folder)
    if not found:
        raise InputError("no safetensors weights", str(folder), "save the model with safetensors; pickles are not read")
    architecture = (tree.get("architectures") or ["unknown"])[0]
    _same("model.architecture", config.model.architecture, architecture, folder)
    _same("model.vocabulary", config.model.vocabulary, tree.get("text_config", tree).get("vocab_size"), folder)
    wanted = tensor_shapes(home.root / config.model.base)
    if not any(TIED_HEADS.fullmatch(name) for name in wanted):
        found = {name: shape for name, shape in found.items() if not TIED_HEADS.fullmatch(name)}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        name = differing[0]
        what = f"{name} is {found.get(name, 'missing')}, here it is {wanted.get(name, 'unknown')}"
        raise InputError(what, str(folder), "import it into a home whose base has this shape")
    base = _read(home.root / config.model.base / "config.json")
    for key in sorted(base.keys() & tree.keys() - WITHOUT_EFFECT):
        _same(f"config.json: {key}", base[key], tree[key], folder)


def check_adapters(home: Home, config: Config, folder: Path, told: Mapping[str, Any]) -> Path:
    """The base of this home that the adapters stand on; InputError where it is not here or a locked key differs."""
    tree, model = _read(folder / ADAPTER_CONFIG), config.model
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError("no safetensors adapters", str(folder), "save them with safetensors; pickles are not read")
    header(folder / ADAPTER_WEIGHTS)
    if model.method == "full":
        raise InputError("adapters, and this home trains every weight", str(folder), "export them --merged first")
    named = str(tree.get("base_model_name_or_path") or "")
    base = home.base / Path(named).name
    if model.source and named == model.source and tree.get("revision") in (model.revision, None):
        base = home.root / model.base
    if not (base / "config.json").is_file():
        raise InputError("adapters on a base that is not in this home", f"{folder}: {named!r}", "export them --merged")
    stood_on = (told.get("base") or {}).get("name", base.name)
    _same("the base", base.name, stood_on, folder)
    for theirs, ours in LOCKED_ADAPTER.items():
        _same(f"adapter.{ours}", getattr(config.adapter, ours), tree.get(theirs, False), folder)
    return base


def check_tokenizer(home: Home, config: Config, folder: Path) -> None:
    """Raises InputError where a token is missing, added, or has another number than in this home."""
    if not (folder / "tokenizer.json").is_file():
        raise InputError("a model folder without a tokenizer.json", str(folder), "put it beside config.json")
    here = home.root / config.model.base / "tokenizer.json"
    if here.is_file() and _tokens(here) != _tokens(folder / "tokenizer.json"):
        raise InputError("its tokenizer has other tokens than this home's", str(folder), "import it into another home")


def _check_hashes(folder: Path, files: list[str], told: Mapping[str, Any]) -> None:
    for entry in told.get("files", []):
        name, digest = entry.get("path"), entry.get("blake3")
        if name in files and hash_file(folder / name) != digest:
            raise IntegrityError("changed since it was exported", str(folder / name), "export it again")


def _copy(home: Home, source: Path, target: Path) -> None:
    """Copied, and read back: what is published is what was checked."""
    read = home.disk.copy(source, target)
    if hash_file(target) != read:
        raise IntegrityError("the disk gave back something else than was written", str(target), "check the disk")


def _write_adapter_config(home: Home, base: Path, folder: Path, stage: Path) -> None:
    """As a checkpoint of this home has it: the base by its place in the home, and an index of its shards."""
    tree = _read(folder / ADAPTER_CONFIG) | {"base_model_name_or_path": reference(base), "revision": None}
    home.disk.write(stage / ADAPTER_CONFIG, json.dumps(tree, indent=1, sort_keys=True).encode())
    home.disk.write(stage / INDEX, index_into(base).encode())


def _known(home: Home, told: Mapping[str, Any]) -> list[str]:
    """Of the training data that the folder tells of, what this home has too."""
    ids = (entry.get("id") for entry in told.get("datasets", []))
    return [
        name for name in ids if isinstance(name, str) and Path(name).name == name and (home.datasets / name).is_dir()
    ]


def _same(key: str, here: Any, there: Any, folder: Path) -> None:
    if here != there:
        raise InputError(f"{key} is {there!r}, here it is {here!r}", str(folder), "import it into a home like its own")


def _taken(names: set[str], patterns: tuple[str, ...]) -> set[str]:
    return {name for name in names if any(Path(name).match(pattern) for pattern in patterns)}


def _tokens(path: Path) -> dict[str, int]:
    tree = _read(path)
    vocabulary = tree.get("model", {}).get("vocab", {})
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((t[0], n) for n, t in enumerate(vocabulary))
    return {**dict(pairs), **{token["content"]: token["id"] for token in tree.get("added_tokens", [])}}


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"not JSON: {error}", str(path), "take the file from the model again") from error
    if not isinstance(tree, dict):
        raise InputError("not a JSON object", str(path), "take the file from the model again")
    return tree
