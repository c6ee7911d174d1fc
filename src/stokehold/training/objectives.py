"""What is minimised: named functions with weights. A step's loss is the sum of weight × component, nothing else.

Each component returns the SUM over trained positions; the loop divides by the trained tokens of the whole step, so
that accumulated micro-batches give the gradient of one big batch. Plain cross-entropy is the only one on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from stokehold.core.config import ObjectivesConfig


@dataclass(frozen=True)
class Predictions:
    """What a component may look at: logits [trained, vocabulary] and the token each must predict [trained]."""

    logits: torch.Tensor
    targets: torch.Tensor


def next_token(predictions: Predictions) -> torch.Tensor:
    """Cross-entropy in nats, summed over trained positions."""
    return cross_entropy(predictions.logits.float(), predictions.targets, reduction="sum")


OBJECTIVES: Mapping[str, Callable[[Predictions], torch.Tensor]] = {"cross_entropy": next_token}


def weighted(predictions: Predictions, config: ObjectivesConfig) -> dict[str, torch.Tensor]:
    """Weight × component sum, by name, for every component that is on."""
    weights = config.model_dump()
    return {name: weights[name] * OBJECTIVES[name](predictions) for name in OBJECTIVES if weights[name] > 0}


def entropy_sum(logits: torch.Tensor) -> torch.Tensor:
    """Sum over positions of -sum p log p, in nats; carries no gradient."""
    with torch.no_grad():
        logs = torch.log_softmax(logits.detach().float(), -1)
        return -(logs.exp() * logs).sum()
