"""Models from folders of this home; never from a hub, never with code of their own.

The tiny model that the demo and the tests learn on is made here, from config, with random weights.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from stokehold.core.errors import InputError
from stokehold.data.tokenizer import load_tokenizer
from stokehold.training import attention

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


def load_model(folder: Path, dtype: str, device: str) -> PreTrainedModel:
    """The causal LM in `folder`, weights in `dtype`, on `device`, attending document by document."""
    if not (folder / "config.json").is_file():
        raise InputError("not a model folder: no config.json", str(folder), "give a folder that save_pretrained wrote")
    attention.register()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    model.set_attn_implementation(attention.NAME)
    torch.nn.Module.to(model, device)
    return model


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
