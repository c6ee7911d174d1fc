"""Borrow a live model for inference and hand it back exactly as it was.

A trainer lends its model between two steps. While it is lent every module is in eval mode and attention is one that
knows caches; afterwards each module has its own mode again and the trainer's attention is back. Nothing else is
touched: no weight, no gradient, no global RNG, no field of the config.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


def inference_attention(model: PreTrainedModel) -> str:
    """SDPA, or the model's own where SDPA cannot do what it asks (soft caps, sinks); a trainer's packed attention
    knows neither padding masks nor KV caches."""
    return "sdpa" if model._supports_sdpa else "eager"


@contextmanager
def borrowed(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode, `inference_attention` and no autograd inside the block; all three as before after it, errors included.

    `no_grad` and not `inference_mode`: buffers that a model caches in forward (rotary tables) must stay usable in
    the next training step.
    """
    modes = [(module, module.training) for module in model.modules()]
    attention, wanted = model.config._attn_implementation, inference_attention(model)
    try:
        if attention != wanted:
            model.set_attn_implementation(wanted)
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        if attention != wanted:
            model.set_attn_implementation(attention)
        for module, training in modes:
            module.training = training
