"""A packed batch through a model: logits, or hidden states and the way from them to logits, where loss is.

The model may be wrapped by PEFT, its head tied or not; scale and soft cap of the logits are the model's own.
"""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stokehold.data.batches import Batch


def trained_logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Logits [trained, vocabulary] that predict the trained tokens, in their order; the head runs on nothing else."""
    before = torch.from_numpy(np.flatnonzero(batch.trained) - 1).to(model.device)
    logits: torch.Tensor = model(**_packed(batch, model.device), logits_to_keep=before).logits[0]
    return logits


def trained_states(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Hidden states [trained, hidden] behind `trained_logits`, for a loss that takes the head in pieces: `project`."""
    before = torch.from_numpy(np.flatnonzero(batch.trained) - 1).to(model.device)
    states: torch.Tensor = bare(model).get_decoder()(**_packed(batch, model.device)).last_hidden_state[0]
    return states[before]


def project(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """Logits [n, vocabulary] of hidden states [n, hidden], scaled and capped as the model's config says.

    Right for every model of which `support.projects` is True.
    """
    causal = bare(model)
    logits: torch.Tensor = causal.get_output_embeddings()(states)
    config = causal.config.get_text_config()
    multiplier, divisor = getattr(causal, "logit_scale", None), getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    if multiplier is not None:
        logits = logits * multiplier
    if divisor is not None:
        logits = logits / divisor
    return logits if cap is None else torch.tanh(logits / cap) * cap


def bare(model: PreTrainedModel) -> PreTrainedModel:
    """The causal LM itself; inside a PEFT wrapper it has the adapters already."""
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def _packed(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of a forward pass over all documents in one row."""
    edges = np.concatenate([[0], np.cumsum(batch.lengths)]).astype(np.int32)
    return {
        "input_ids": torch.from_numpy(batch.ids).to(device)[None],
        "position_ids": torch.from_numpy(batch.positions).to(device)[None],
        # Stays on the host: documents are cut there, and reading it back from a GPU would wait for the GPU.
        "cu_seq_lens_q": torch.from_numpy(edges),
        "use_cache": False,
    }
