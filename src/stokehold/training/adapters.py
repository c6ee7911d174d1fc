"""Adapters beside frozen weights: made, saved as PEFT saves them, and merged into the weights.

The layers are put into the base model in place, so that whatever takes the model takes it with its adapters. Importing
this module imports peft, which costs seconds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from stokehold.core.config import AdapterConfig
from stokehold.core.errors import ConfigError, IntegrityError
from stokehold.store.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, QUANTISATION, index_into, reference
from stokehold.store.models.weights import INDEX
from stokehold.training.cuda import random_kept

MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class Adapters:
    """The adapters of one model. `files` lie beside their weights in a checkpoint and change only with the base."""

    peft: PeftModel
    base: Path
    files: Mapping[str, bytes]

    @property
    def model(self) -> PreTrainedModel:
        """The base model with the adapters in it."""
        return cast(PreTrainedModel, self.peft.get_base_model())

    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapters' weights by the names they are stored under; views, not copies."""
        named = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        # PEFT reads DoRA's magnitudes with and without the last part of their name, transformers only with it.
        return {f"{name}.weight" if name.endswith(MAGNITUDE) else name: tensor for name, tensor in named.items()}

    def gradients(self) -> dict[str, torch.Tensor]:
        """The last step's clipped gradients by the names of `tensors`; views, not copies."""
        named = ((name.replace(".default", ""), p.grad) for name, p in self.peft.named_parameters())
        return {name: gradient for name, gradient in named if gradient is not None}

    def merge(self) -> PreTrainedModel:
        """The model with the adapters added to its weights and taken out; these adapters are gone afterwards."""
        return cast(PreTrainedModel, self.peft.merge_and_unload(safe_merge=True))


def fresh_adapters(
    model: PreTrainedModel, base: Path, config: AdapterConfig, seed: int, quantisation: Mapping[str, Any] | None
) -> Adapters:
    """New adapters that change nothing yet; drawn from `seed`, whatever the process drew before.

    Raises ConfigError where `adapter.targets` names no layer of the model.
    """
    alpha = int(config.alpha) if config.alpha.is_integer() else config.alpha
    layers = LoraConfig(
        r=config.rank,
        lora_alpha=alpha,  # type: ignore[arg-type] # a fraction is taken too
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
        use_dora=config.dora,
        use_rslora=config.rslora,
        task_type="CAUSAL_LM",
    )
    with random_kept(model.device):
        torch.manual_seed(seed)
        try:
            peft = get_peft_model(model, layers)
        except ValueError as error:
            fix = "name linear layers of the model, or leave it empty for all"
            raise ConfigError(
                str(error).partition("\n")[0], f"adapter.targets = {list(config.targets)}", fix
            ) from error
    return Adapters(peft, base, _files(peft, base, quantisation))


def load_adapters(model: PreTrainedModel, base: Path, folder: Path, quantisation: Mapping[str, Any] | None) -> Adapters:
    """The adapters in a checkpoint, ready to be trained on; IntegrityError where they are not those of the model."""
    with random_kept(model.device):
        peft = PeftModel.from_pretrained(model, folder, is_trainable=True, torch_device=str(model.device))
    adapters = Adapters(peft, base, _files(peft, base, quantisation))
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as stored:
        if set(stored.keys()) != adapters.tensors().keys():
            raise IntegrityError("adapters of another model", str(folder), "use an older checkpoint")
    return adapters


def _files(peft: PeftModel, base: Path, quantisation: Mapping[str, Any] | None) -> dict[str, bytes]:
    config = peft.peft_config["default"].to_dict() | {"inference_mode": True}
    config |= {"base_model_name_or_path": reference(base), "target_modules": sorted(config["target_modules"])}
    files = {ADAPTER_CONFIG: json.dumps(config, indent=1, sort_keys=True), INDEX: index_into(base)}
    files["config.json"] = (base / "config.json").read_text("utf-8")
    files["generation_config.json"] = cast(PreTrainedModel, peft.get_base_model()).generation_config.to_json_string()
    if quantisation is not None:
        files[QUANTISATION] = json.dumps(quantisation, indent=1, sort_keys=True)
    return {name: text.encode() for name, text in files.items()}
