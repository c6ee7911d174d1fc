"""Which weights answer: a reference resolved to a folder, loaded once, and swapped when the reference moves.

Every answer carries the hash of the weights that gave it. A name that is not the one being served is an error, never
another model.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from stokehold.core.errors import InputError, IntegrityError, NotFoundError
from stokehold.data.tokenizer import load_tokenizer
from stokehold.inference.borrow import ATTENTION
from stokehold.inference.engine import Engine
from stokehold.store.checkpoints import WEIGHTS, weights_hash
from stokehold.store.database import Database
from stokehold.store.files import MANIFEST, hash_file, read_manifest
from stokehold.store.home import Home
from stokehold.store.versions import resolve

CHAMPION = "champion"
"""The alias that a server follows when no reference was given."""


@dataclass(frozen=True, slots=True)
class Served:
    """Weights ready to answer. `name` is the folder's, such as v0007; `weights_hash` is BLAKE3, hex."""

    name: str
    folder: Path
    weights_hash: str
    engine: Engine


class Registry:
    """The one model of a server. `current` is for the thread that runs the model; the rest may be asked by any."""

    def __init__(self, home: Home, db: Database, ref: str | None = None, device: str = "cpu") -> None:
        self._home, self._db, self._device = home, db, device
        self.ref = ref or CHAMPION
        self._served: Served | None = None

    def names(self) -> list[str]:
        """What a request may call the model: the reference and the folder it names now; empty before there is one."""
        try:
            name = self._folder().name
        except NotFoundError:
            return []
        return list(dict.fromkeys([self.ref, name]))

    def current(self, name: str) -> Served:
        """The weights for a request that asks for `name`, loaded anew where the reference has moved.

        Raises `NotFoundError` when `name` is not served here, or when the reference names nothing (yet).
        """
        folder = self._folder()
        if name not in (self.ref, folder.name):
            raise NotFoundError(f"the model {name!r} is not served here", self.ref, f"ask for {self.ref}")
        if self._served is None or self._served.folder != folder:
            # The old weights go first: on a device that is nearly full both would not fit.
            self._served = None
            try:
                self._served = load(folder, self._home.config().model.dtype, self._device)
            except InputError as error:
                # The folder is at fault and not the request, which an InputError would blame.
                raise IntegrityError(error.what, error.where, error.fix) from error
        return self._served

    def _folder(self) -> Path:
        return resolve(self._home, self._db, self.ref)


def load(folder: Path, dtype: str, device: str) -> Served:
    """The model in `folder`, in eval mode, with the hash of its weights."""
    if not (folder / "config.json").is_file():
        raise InputError("not a model folder: no config.json", str(folder), "name a version, a step or a model folder")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation=ATTENTION,
    )
    for module in model.modules():
        module.training = False
    return Served(folder.name, folder, hash_of(folder), Engine(model, load_tokenizer(folder), device))


def hash_of(folder: Path) -> str:
    """The hash of the weights in a folder: as its manifest has it, else of the files."""
    if (folder / MANIFEST).is_file():
        return weights_hash(read_manifest(folder)["files"])
    files = sorted(path for path in folder.iterdir() if WEIGHTS.fullmatch(path.name))
    return weights_hash([{"path": path.name, "blake3": hash_file(path)} for path in files])
