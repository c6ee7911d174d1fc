"""Drawing next tokens so that every draw of every item is the same in any batch, in any order, on any device.

Each draw has a generator of its own, seeded by (seed, sample id, draw number), and takes one uniform number per token
from it, on the CPU (Mersenne Twister, 53 bits). The number is looked up in the cumulative distribution of the allowed
tokens in the order of the vocabulary, in float64. What is left to chance is rounding of the logits: a draw whose number
is nearer to an edge than that may come out otherwise in another batch, and is listed as a tie.
"""

import random
from collections.abc import Sequence

import torch

from stokehold.core.errors import InputError
from stokehold.core.identity import short_id
from stokehold.inference.decoding import TIE_GAP, Answer, Penalty, allowed

EDGE = 2e-6
"""Probability by which rounding may move an edge of the distribution at temperature 1: a quarter of what it may move a
logit by, at most."""


class Sampler:
    """Draws tokens for the samples with these ids; `top_p` keeps the likeliest tokens of that mass.

    InputError unless temperature > 0 and 0 < top_p <= 1.
    """

    def __init__(
        self, ids: Sequence[str], temperature: float, top_p: float, seed: int, penalty: Penalty | None = None
    ) -> None:
        if not temperature > 0:
            raise InputError("drawing needs a temperature above 0", str(temperature), "complete greedily instead")
        if not 0 < top_p <= 1:
            raise InputError("the mass to draw from must be above 0 and at most 1", str(top_p), "use 1 for all tokens")
        self._ids, self._temperature, self._top_p, self._seed = ids, temperature, top_p, seed
        self._penalty = penalty
        self._random: dict[tuple[int, int], random.Random] = {}

    def __call__(self, logits: torch.Tensor, answers: Sequence[Answer]) -> tuple[torch.Tensor, torch.Tensor]:
        """Next tokens [rows] for `logits` [rows, vocabulary], and which are ties [rows]."""
        scores = allowed(self._penalty, logits, answers)
        # float64, which the GPUs of Apple lack.
        exact = (scores.cpu() if scores.device.type == "mps" else scores).double() / self._temperature
        shares, edge_near = nucleus(exact, self._top_p, TIE_GAP / self._temperature)
        mass = shares.cumsum(-1)
        whole = mass[:, -1:]
        numbers = [[self._generator(answer).random()] for answer in answers]
        points = torch.tensor(numbers, dtype=torch.float64).to(mass.device) * whole
        points = torch.minimum(points, torch.nextafter(whole, torch.zeros_like(whole)))
        ids = torch.searchsorted(mass, points, right=True)
        above = mass.gather(-1, ids) - points
        below = shares.gather(-1, ids) - above
        near = torch.minimum(above, below) < EDGE * max(1.0, 1 / self._temperature) * whole
        return ids.squeeze(-1), near.squeeze(-1) | edge_near

    def _generator(self, answer: Answer) -> random.Random:
        key = (answer.number, answer.draw)
        if key not in self._random:
            name = short_id(str(self._seed), self._ids[answer.number], str(answer.draw))
            # Not for secrets: what is wanted is the same numbers on every machine.
            self._random[key] = random.Random(int(name, 16))
        return self._random[key]


def nucleus(scores: torch.Tensor, top_p: float, gap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of `scores` [rows, vocabulary], 0 outside the likeliest tokens of mass `top_p`; and whether it is
    rounding what is inside [rows]: a token's mass within `EDGE`, or its score within `gap`, of the border."""
    shares = scores.softmax(-1)
    if top_p >= 1:
        return shares, torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    ranked, order = shares.sort(descending=True, stable=True)
    before = ranked.cumsum(-1) - ranked
    inside = before < top_p
    last = inside.sum(-1, keepdim=True) - 1
    after = (last + 1).clamp(max=scores.shape[-1] - 1)
    at_border = (before - top_p).abs().gather(-1, torch.cat([last, after], -1)).amin(-1) < EDGE
    ranked_scores = scores.gather(-1, order)
    alike = (ranked_scores.gather(-1, last) - ranked_scores.gather(-1, after)).squeeze(-1) < gap
    kept = torch.zeros_like(shares).scatter(-1, order, torch.where(inside, ranked, 0))
    return kept, at_border | (alike & (after > last).squeeze(-1))
