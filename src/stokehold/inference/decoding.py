"""Token-level decoding with a causal language model: answers under way go on together until each has ended.

Token ids and natural-log probabilities, no text, no samples. The caller holds the model in eval mode without autograd
(`inference.borrow`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from transformers import PreTrainedModel

from stokehold.inference.cache import Prefix, stacked

COMPACT_SHARE = 0.75
"""Finished rows leave the batch when the live share falls below this: each compaction copies the cache once."""

TIE_GAP = 1e-4
"""Two best logits nearer than this are a tie: another batch shape moves logits by a twentieth of it in float32."""


class Penalty(Protocol):
    """What changes the logits that are chosen from; the log-probabilities stay the model's own."""

    def __call__(self, logits: torch.Tensor, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> torch.Tensor:
        """(logits [rows, vocabulary], the rows' prompt numbers, the tokens each has so far) -> what to choose from."""
        ...

    def places(self, row: int, answer: Sequence[int]) -> list[int]:
        """After how many of `answer`'s tokens, itself left out, it would change the logits of prompt `row`."""
        ...


@dataclass(slots=True, eq=False)
class Answer:
    """An answer under way: to prompt `number`, of at most `budget` >= 1 tokens, draw `draw` of several.

    `stopped` when its last token is a stop token. `prefix` is what the model keeps of everything before the last token.
    """

    number: int
    budget: int
    draw: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tie: bool = False
    stopped: bool = False
    prefix: Prefix | None = None

    @property
    def ended(self) -> bool:
        return self.stopped or len(self.token_ids) >= self.budget

    def take(self, token: int, logprob: float, tie: bool, stop_ids: frozenset[int]) -> None:
        """Adds one token; `tie` says whether its choice was one."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.tie = self.tie or tie
        self.stopped = token in stop_ids


Choose = Callable[[torch.Tensor, Sequence[Answer]], tuple[torch.Tensor, torch.Tensor]]
"""(float32 logits [rows, vocabulary], the rows' answers) -> next tokens [rows], and which of them were ties [rows]."""


@dataclass(frozen=True, slots=True)
class Greedy:
    """Chooses the likeliest token that the penalty allows."""

    penalty: Penalty | None = None

    def __call__(self, logits: torch.Tensor, answers: Sequence[Answer]) -> tuple[torch.Tensor, torch.Tensor]:
        return likeliest(allowed(self.penalty, logits, answers))


def allowed(penalty: Penalty | None, logits: torch.Tensor, answers: Sequence[Answer]) -> torch.Tensor:
    """The logits that the next tokens of these answers are chosen from."""
    if penalty is None:
        return logits
    return penalty(logits, [answer.number for answer in answers], [answer.token_ids for answer in answers])


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best tokens [rows] of `logits` [rows, vocabulary], and whether the next best is within `TIE_GAP` [rows]."""
    best, ids = logits.max(-1)
    return ids, (logits >= (best - TIE_GAP)[:, None]).sum(-1) > 1


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both int64 [rows, longest]; padding on the left, where mask is 0."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    return ids, left_mask([len(row) for row in rows], device)


def left_mask(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """int64 [rows, longest], 1 in the last `lengths` columns of each row."""
    width = max(lengths)
    columns = torch.arange(width, device=device)
    return (columns >= width - torch.tensor(lengths, device=device)[:, None]).long()


def decode(model: PreTrainedModel, answers: Sequence[Answer], stop_ids: frozenset[int], choose: Choose) -> None:
    """Goes on with answers that have a first token and have not ended, all together with one KV cache.

    An answer ends at a stop token (kept in its ids) or at its budget. Finished rows are dropped from the batch and the
    cache once enough of them have gathered, so that a few long rows do not pay for the rest.
    """
    rows, device = list(answers), model.device
    prefixes = [answer.prefix for answer in rows if answer.prefix is not None]
    cache = stacked(model.config, prefixes)
    lengths = [prefix.tokens for prefix in prefixes]
    del prefixes
    for answer in rows:
        answer.prefix = None
    mask = left_mask([length + 1 for length in lengths], device)
    positions = torch.tensor(lengths, device=device)[:, None]
    ids = torch.tensor([answer.token_ids[-1:] for answer in rows], device=device)
    while True:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        ids = step(output.logits[:, -1].float(), rows, stop_ids, choose)
        live = [not answer.ended for answer in rows]
        if not any(live):
            return
        positions = positions + 1
        if sum(live) < COMPACT_SHARE * len(live):
            keep = torch.tensor([slot for slot, alive in enumerate(live) if alive], device=device)
            cache.batch_select_indices(keep)
            ids, mask, positions = ids[keep], mask[keep], positions[keep]
            rows = [answer for answer in rows if not answer.ended]
        elif not all(live):
            # A finished row that rides along may have used up its positions; its output is ignored.
            positions = torch.where(torch.tensor(live, device=device)[:, None], positions, 0)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)


def step(logits: torch.Tensor, rows: Sequence[Answer], stop_ids: frozenset[int], choose: Choose) -> torch.Tensor:
    """The next tokens [rows, 1] by float32 `logits` [rows, vocabulary]; answers that have not ended take theirs."""
    chosen, ties = choose(logits, rows)
    ids = chosen[:, None].to(logits.device)
    logprobs = (logits.gather(-1, ids).squeeze(-1) - logits.logsumexp(-1)).tolist()
    for answer, token, logprob, tie in zip(rows, chosen.tolist(), logprobs, ties.tolist(), strict=True):
        if not answer.ended:
            answer.take(token, logprob, tie, stop_ids)
    return ids
