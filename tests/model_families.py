"""Tiny random models of many families, their weights filled from raw Philox bits: no library's sampler is in them.

Windows, caps and scales are set so small that leaving one out changes every logit.
"""

from typing import Any

import numpy as np
import torch
from blake3 import blake3
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WINDOW = 6
"""Tokens that a sliding layer sees."""

VOCABULARY = 96

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ALTERNATING = ["sliding_attention", "full_attention"]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
}
LONG = {"rope_parameters": LONGROPE, "max_position_embeddings": 64, "original_max_position_embeddings": 32}
"""Changes to Phi-3: frequencies stretch in texts of more than 32 tokens."""

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "llama": {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True},
    "gemma": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ALTERNATING,
        "query_pre_attn_scalar": 5,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 2.0,
    },
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ALTERNATING,
        "query_pre_attn_scalar": 5,
    },
    "gpt_neox": {"rotary_pct": 0.25, "use_parallel_residual": True},
    "gpt_neox_sequential": {"model_type": "gpt_neox", "use_parallel_residual": False, "tie_word_embeddings": True},
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "phimoe": {"sliding_window": WINDOW, **EXPERTS},
    "olmo2": {},
    "granite": {"attention_multiplier": 0.7, "logits_scaling": 3.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_oss": {"head_dim": 8, "sliding_window": WINDOW, "layer_types": ALTERNATING, **EXPERTS},
}
"""Changes to `SHAPE` by family; the name is the model type unless one is given."""

CAUSAL = sorted(FAMILIES)


def family_config(name: str, **changes: Any) -> PreTrainedConfig:
    given = {**FAMILIES[name], **changes}
    model_type = given.pop("model_type", name)
    shape = {} if model_type == "gpt2" else SHAPE
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return CONFIG_MAPPING[model_type](**{"vocab_size": VOCABULARY, **shape, **special, **given})


def family_model(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """In eval mode, float32, attending as its authors wrote it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        family_config(name, **changes), attn_implementation="eager", dtype=torch.float32
    )
    fill(model, seed)
    return model.eval()


def fill(model: PreTrainedModel, seed: int) -> None:
    """Every weight from its name and `seed`: matrices keep the size of what goes through, vectors vary a little."""
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = uniform(f"{seed}:{name}", tuple(weight.shape))
            if weight.dim() > 1:
                # Uniform noise on (-1, 1) has variance 1/3.
                weight.copy_(noise * (3 / weight.shape[-1]) ** 0.5)
            else:
                # A norm's weights start at one, or at nought where the model adds the one itself; so do biases.
                weight.copy_(float((weight == 1).all()) + 0.2 * noise)


def uniform(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers on (-1, 1), the same for ever: from the bits of the generator, not from a distribution's algorithm."""
    generator = np.random.Philox(key=np.frombuffer(blake3(key.encode()).digest(length=16), dtype="<u8"))
    bits = generator.random_raw(int(np.prod(shape)))
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - 1).reshape(shape)
