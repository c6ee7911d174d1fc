"""What is minimised: named functions with weights. A step's loss is the sum of weight × component, nothing else.

Each component returns the SUM over trained positions; the loop divides by the trained tokens of the whole step, so
that accumulated micro-batches give the gradient of one big batch. Plain cross-entropy is the only one on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from stokehold.core.config import ObjectivesConfig
from stokehold.training.crossentropy import Score, score, score_linear, score_through


@dataclass(frozen=True)
class Predictions:
    """What a component may look at: `states` [trained, hidden], the `head` from them to logits [trained, vocabulary],
    and the token that each must predict [trained]. Without a head the states are the logits.
    """

    states: torch.Tensor
    targets: torch.Tensor
    head: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def logits(self) -> torch.Tensor:
        """[trained, vocabulary], whole: for small vocabularies, and for tests."""
        return self.states if self.head is None else self.head(self.states)

    @cached_property
    def score(self) -> Score:
        """Cross-entropy and entropy, from one pass in which logits of all positions never exist at once."""
        if self.head is None:
            return score(self.states, self.targets)
        if isinstance(self.head, torch.nn.Linear):
            return score_linear(self.states, self.head.weight, self.targets)
        return score_through(self.head, self.states, self.targets)


def next_token(predictions: Predictions) -> torch.Tensor:
    """Cross-entropy in nats, summed over trained positions."""
    return predictions.score.loss


OBJECTIVES: Mapping[str, Callable[[Predictions], torch.Tensor]] = {"cross_entropy": next_token}


def weighted(predictions: Predictions, config: ObjectivesConfig) -> dict[str, torch.Tensor]:
    """Weight × component sum, by name, for every component that is on."""
    weights = config.model_dump()
    return {name: weights[name] * OBJECTIVES[name](predictions) for name in OBJECTIVES if weights[name] > 0}


def entropy_sum(predictions: Predictions) -> torch.Tensor:
    """Sum over positions of -sum p log p, in nats; carries no gradient."""
    return predictions.score.entropy
