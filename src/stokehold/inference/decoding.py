"""Token-level passes over a causal language model: greedy decoding of a left-padded batch, likelihood of given tails.

Lists of token ids in, lists of token ids and natural-log probabilities out; no text, no samples. The caller holds the
model in eval mode without autograd (`inference.borrow`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from stokehold.inference.cache import growing_cache

Penalty = Callable[[torch.Tensor, Sequence[int], Sequence[Sequence[int]]], torch.Tensor]
"""(logits [rows, vocabulary], the rows' prompt numbers, the tokens each has so far) -> logits to choose from."""

COMPACT_SHARE = 0.75
"""Finished rows leave the batch when the live share falls below this: each compaction copies the cache once."""

LOGITS_BUDGET = 2**26
"""Elements of one [rows, positions, vocabulary] tensor in a likelihood pass: 256 MB of float32."""


@dataclass(slots=True)
class Decoded:
    """What greedy decoding gave for one prompt; `stopped` when its last token is a stop token."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both int64 [rows, longest]; padding on the left, where mask is 0."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    stop_ids: frozenset[int],
    pad_id: int,
    penalty: Penalty | None = None,
) -> list[Decoded]:
    """Arg-max decoding of all prompts together with one KV cache; `budgets` are new tokens per prompt, each >= 1.

    A row ends at a stop token (kept in its ids) or at its budget. Finished rows are dropped from the batch and the
    cache once enough of them have gathered, so that a few long rows do not pay for the rest. A `penalty` changes what
    is chosen; the log-probabilities are the model's own.
    """
    results = [Decoded() for _ in prompts]
    ids, mask = left_pad(prompts, pad_id, model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = growing_cache(model.config)
    rows = list(range(len(prompts)))
    live = [True] * len(rows)
    while True:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1].float()
        allowed = penalty(logits, rows, [results[row].token_ids for row in rows]) if penalty else logits
        ids = allowed.max(-1, keepdim=True).indices
        logprobs = (logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)).squeeze(-1).tolist()
        for slot, (token, logprob) in enumerate(zip(ids.squeeze(-1).tolist(), logprobs, strict=True)):
            if live[slot]:
                live[slot] = _take(results[rows[slot]], token, logprob, budgets[rows[slot]], stop_ids)
        if not any(live):
            return results
        positions = positions[:, -1:] + 1
        if sum(live) < COMPACT_SHARE * len(live):
            keep = torch.tensor([slot for slot, alive in enumerate(live) if alive], device=model.device)
            cache.batch_select_indices(keep)
            ids, mask, positions = ids[keep], mask[keep], positions[keep]
            rows = [row for row, alive in zip(rows, live, strict=True) if alive]
            live = [True] * len(rows)
        else:
            # A finished row that rides along may have used up its positions; its output is ignored.
            positions = torch.where(torch.tensor(live, device=model.device)[:, None], positions, 0)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)


def _take(result: Decoded, token: int, logprob: float, budget: int, stop_ids: frozenset[int]) -> bool:
    """Adds one token; whether the row goes on."""
    result.token_ids.append(token)
    result.logprobs.append(logprob)
    result.stopped = token in stop_ids
    return not result.stopped and len(result.token_ids) < budget


def tail_logprobs(
    model: PreTrainedModel,
    heads: Sequence[Sequence[int]],
    tails: Sequence[Sequence[int]],
    pad_id: int,
) -> list[list[float]]:
    """Natural-log probability of every token of each tail after its head, by one pass without a cache.

    Heads and tails are not empty. Rows go through in slices that keep the logits within `LOGITS_BUDGET`; padding is
    on the left, so all tails end together and only their positions reach the vocabulary matrix.
    """
    widest = max(len(tail) for tail in tails)
    vocabulary = model.config.get_text_config().vocab_size
    rows = max(1, LOGITS_BUDGET // ((widest + 1) * vocabulary))
    found: list[list[float]] = []
    for start in range(0, len(heads), rows):
        found += _tail_slice(model, heads[start : start + rows], tails[start : start + rows], pad_id)
    return found


def _tail_slice(
    model: PreTrainedModel, heads: Sequence[Sequence[int]], tails: Sequence[Sequence[int]], pad_id: int
) -> list[list[float]]:
    whole = [[*head, *tail] for head, tail in zip(heads, tails, strict=True)]
    widest = max(len(tail) for tail in tails)
    ids, mask = left_pad(whole, pad_id, model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=widest + 1
    )
    # [rows, widest, vocabulary]: the logits that predict the last `widest` tokens.
    logits = output.logits[:, -(widest + 1) : -1].float()
    targets = ids[:, -widest:]
    logprobs = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
    return [row[-len(tail) :] for row, tail in zip(logprobs.tolist(), tails, strict=True)]
