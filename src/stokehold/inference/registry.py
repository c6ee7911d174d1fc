"""Which weights answer: a reference resolved to a folder, loaded once, and swapped when the reference moves.

Every answer carries the hash of the weights that gave it. A name that is not the one being served is an error, never
another model.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from stokehold.core.errors import ConfigError, InputError, IntegrityError, NotFoundError
from stokehold.data.profile import EmojiThink, profile_of
from stokehold.data.tokenizer import load_tokenizer
from stokehold.inference.engine import Engine
from stokehold.store.db.database import Database
from stokehold.store.files import MANIFEST, hash_file, read_manifest
from stokehold.store.home import Home
from stokehold.store.models.adapters import QUANTISATION, base_of
from stokehold.store.models.checkpoints import WEIGHTS, weights_hash
from stokehold.store.models.references import resolve

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
                config = self._home.config()
                self._served = load(folder, config.model.dtype, self._device, profile_of(config.data))
            except InputError as error:
                # The folder is at fault and not the request, which an InputError would blame.
                raise IntegrityError(error.what, error.where, error.fix) from error
        return self._served

    def _folder(self) -> Path:
        return resolve(self._home, self._db, self.ref)


def load(folder: Path, dtype: str, device: str, profile: EmojiThink | None = None) -> Served:
    """The model in `folder`, in eval mode, with the hash of its weights; adapters on the base that they name.

    Whatever answers from a folder comes from here: evaluations outside the trainer, comparisons, the server.
    """
    if not (folder / "config.json").is_file():
        raise InputError("not a model folder: no config.json", str(folder), "name a version, a step or a model folder")
    base = base_of(folder)
    own = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=own):  # those of a live model beside it must not move
        model = _pretrained(base or folder, dtype, device, folder / QUANTISATION)
        if base is not None:
            model = _with_adapters(model, folder)
    for module in model.modules():
        module.training = False
    quantised = (folder / QUANTISATION).is_file()  # such a model cannot be moved, and lies on its device already
    engine = Engine(model, load_tokenizer(folder, profile), None if quantised else device)
    return Served(folder.name, folder, hash_of(folder), engine)


def _pretrained(folder: Path, dtype: str, device: str, quantisation: Path) -> PreTrainedModel:
    options: dict[str, Any] = {}
    if quantisation.is_file():
        settings = BitsAndBytesConfig(**json.loads(quantisation.read_text("utf-8")))
        options = {"quantization_config": settings, "device_map": {"": device}}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except ImportError as error:
        raise ConfigError("4-bit weights need bitsandbytes", str(folder), "pip install 'stokehold[cuda]'") from error
    return cast(PreTrainedModel, model)


def _with_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapters of the folder in it, not merged: its answers are those it had in training."""
    # peft imports bitsandbytes where it is, which warns of CPU kernels that nothing here uses
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peft import PeftModel  # costs seconds, and most folders hold all their weights

    adapted = PeftModel.from_pretrained(model, folder, torch_device=str(model.device))
    return cast(PreTrainedModel, adapted.get_base_model())


def hash_of(folder: Path) -> str:
    """The hash of the weights in a folder: as its manifest has it, else of the files."""
    if (folder / MANIFEST).is_file():
        return weights_hash(read_manifest(folder)["files"])
    files = sorted(path for path in folder.iterdir() if WEIGHTS.fullmatch(path.name))
    return weights_hash([{"path": path.name, "blake3": hash_file(path)} for path in files])
