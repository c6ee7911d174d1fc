"""Models from folders of this home; never from a hub, never with code of their own.

The tiny model that the demo and the tests learn on is made here, from config, with random weights.
"""

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from stokehold.core.config import Config
from stokehold.core.errors import ConfigError, InputError, IntegrityError
from stokehold.data.tokenizer import load_tokenizer
from stokehold.store.models.adapters import base_of
from stokehold.store.models.checkpoints import verify_checkpoint
from stokehold.training import attention, support
from stokehold.training.layers import speed_up

if TYPE_CHECKING:
    from stokehold.training.adapters import Adapters

transformers_logging.disable_progress_bar()

TINY = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""Shape of the embedded Qwen3: about 2 M parameters with a vocabulary of about 1,500."""


def load_model(folder: Path, dtype: str, device: str, quantisation: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """The causal LM in `folder`, weights in `dtype`, on `device`, attending document by document.

    `quantisation` are the settings of a BitsAndBytesConfig, for weights in 4 bits.
    """
    if not (folder / "config.json").is_file():
        raise InputError("not a model folder: no config.json", str(folder), "give a folder that save_pretrained wrote")
    attention.register()
    options: dict[str, Any] = {}
    if quantisation is not None:
        options = {"quantization_config": BitsAndBytesConfig(**quantisation), "device_map": {"": device}}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        **options,
    )
    model.set_attn_implementation(attention.NAME)
    if quantisation is None:
        torch.nn.Module.to(model, device)
    speed_up(model)
    return model


def open_model(folder: Path, config: Config, step: int = 0) -> "tuple[PreTrainedModel, Adapters | None]":
    """The model to train, in training mode, as `model.method` says: all of it, or adapters beside frozen weights.

    `folder` is a base model or a checkpoint. Fresh adapters are drawn from seed and step.
    """
    adapters: Adapters | None = None
    if config.model.method == "full":
        model = load_model(folder, config.model.dtype, config.devices.trainer)
        support.admit(model, config.data.max_length)
        _freeze(model, config.model.freeze)
    else:
        if config.model.freeze:
            fix = "leave it empty: every weight under the adapters is frozen"
            raise ConfigError(f"the method {config.model.method} freezes by itself", "model.freeze", fix)
        adapters = _open_adapters(folder, config, step)
        model = adapters.model
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    return model, adapters


def _freeze(model: PreTrainedModel, patterns: Sequence[str]) -> None:
    """Takes the weights that the patterns name out of training; ConfigError where one names none, or all are named."""
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        named = fnmatch.filter(parameters, pattern)
        if not named:
            fix = f"weights have names such as {next(iter(parameters))}; a tied head goes by the embedding's"
            raise ConfigError("no weight has such a name", f"model.freeze: {pattern!r}", fix)
        for name in named:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("nothing is left to train", f"model.freeze = {list(patterns)}", "name fewer weights")


def _open_adapters(folder: Path, config: Config, step: int) -> "Adapters":
    # peft imports bitsandbytes where it is, which warns of CPU kernels that nothing here uses
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from stokehold.training import adapters  # peft costs seconds, and training every weight needs none of it

    quantisation = _nf4(config) if config.model.method == "qlora" else None
    base = base_of(folder)
    if base is not None and (bad := verify_checkpoint(base)):
        raise IntegrityError(f"the base model is damaged: {bad[0].reason}", str(base / bad[0].path), "restore it")
    model = load_model(base or folder, config.model.dtype, config.devices.trainer, quantisation)
    support.admit(model, config.data.max_length)
    if base is not None:
        return adapters.load_adapters(model, base, folder, quantisation)
    seed = config.training.seed + step
    return adapters.fresh_adapters(model, folder, config.adapter, seed, quantisation)


def _nf4(config: Config) -> dict[str, Any]:
    """4 bits a weight in blocks of NF4, with their scales in 8 bits."""
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": config.model.dtype,
    }


def create_tiny(folder: Path, seed: int, **shape: Any) -> int:
    """Writes a random Qwen3 beside the tokenizer that already lies in `folder`; returns its parameter count."""
    tokenizer = load_tokenizer(folder)
    config = Qwen3Config(
        vocab_size=tokenizer.size,
        eos_token_id=min(tokenizer.stop_ids),
        pad_token_id=tokenizer.pad_id,
        bos_token_id=None,
        **{**TINY, **shape},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())
