"""One pass over prompts with drafts of their answers: how likely each draft is, and what the model would say itself.

A draft is an answer somebody proposes, here the gold answer. The pass gives every draft token's log-probability and, at
every place, the token that greedy decoding would choose after the draft so far. Where those agree with the draft the
answer is known without decoding; from the first that differs, decoding goes on with the cache of this very pass.

Memory is bounded by `LOGITS_BUDGET` and `TOKENS_BUDGET`: rows go through in groups of like length that keep within
both, and a row that is too long alone goes through in pieces, each on the cache of those before it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from stokehold.inference.cache import Prefix, cut_prefix, recording_cache
from stokehold.inference.decoding import Answer, Penalty, left_pad, likeliest

LOGITS_BUDGET = 2**26
"""Elements of one [rows, positions, vocabulary] tensor: 256 MB of float32."""

TOKENS_BUDGET = 2**15
"""Tokens in one forward pass, padding included: it bounds activations and attention masks."""

CORE_TOKENS = 2**10
"""On a CPU, tokens in one forward pass for each thread: activations that stay in a core's cache are quicker than few
passes."""

Look = Callable[[torch.Tensor, int], tuple[torch.Tensor, ...]]
"""(float32 logits [rows, places, vocabulary], number of the first place) -> what to keep of them, [rows, places, …]."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Rows that went through the model together.

    `rows` are their numbers, `starts` the columns where each begins, `looked` what was kept of the logits, [rows,
    places, …]; places are aligned at the end, so that a row's own are its last ones.
    """

    rows: list[int]
    starts: list[int]
    looked: tuple[torch.Tensor, ...]
    cache: DynamicCache

    def prefix(self, slot: int, tokens: int) -> Prefix:
        """What the model keeps of the first `tokens` tokens of the row in this slot."""
        return cut_prefix(self.cache, slot, self.starts[slot], tokens)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the pass told of one draft: log-probabilities of its tokens, and the leading ones that the model would have
    chosen itself."""

    logprobs: list[float]
    matched: int


def read_drafts(
    model: PreTrainedModel,
    answers: Sequence[Answer],
    prompts: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[int]],
    stop_ids: frozenset[int],
    pad_id: int,
    penalty: Penalty | None = None,
) -> list[Reading]:
    """Gives each answer the draft's tokens that greedy decoding would choose too and the one it chooses then.

    A draft goes on from what its answer has so far; an answer that has not ended gets its prefix, to be decoded on.
    Prompts are not empty; drafts may be, and may reach beyond the answer's budget.
    """
    fed = [[*prompt, *answer.token_ids] for prompt, answer in zip(prompts, answers, strict=True)]
    readings: dict[int, Reading] = {}
    for rows in _grouped(model, fed, drafts):
        look = _Choices([answers[row] for row in rows], [drafts[row] for row in rows], pad_id, penalty)
        group = _read(model, rows, fed, drafts, pad_id, look)
        columns = [kept.tolist() for kept in group.looked]
        for slot, row in enumerate(rows):
            own = [column[slot][-max(1, len(drafts[row])) :] for column in columns]
            readings[row] = _take(answers[row], drafts[row], own, stop_ids)
            if not answers[row].ended:
                answers[row].prefix = group.prefix(slot, len(prompts[row]) + len(answers[row].token_ids) - 1)
    return [readings[row] for row in range(len(answers))]


def read_prompts(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int) -> Iterator[Group]:
    """Groups of prompts; `looked` holds the logits after each, [rows, 1, vocabulary]."""
    empty: list[list[int]] = [[] for _ in prompts]
    for rows in _grouped(model, prompts, empty):
        yield _read(model, rows, prompts, empty, pad_id, lambda logits, _first: (logits,))


def tail_logprobs(
    model: PreTrainedModel, heads: Sequence[Sequence[int]], tails: Sequence[Sequence[int]], pad_id: int
) -> list[list[float]]:
    """Natural-log probability of every token of each tail after its head; neither is empty."""
    found: dict[int, list[float]] = {}
    for rows in _grouped(model, heads, tails):
        targets, _ = left_pad([tails[row] for row in rows], pad_id, model.device)

        def look(logits: torch.Tensor, first: int, targets: torch.Tensor = targets) -> tuple[torch.Tensor, ...]:
            return (_logprobs(logits, targets[:, first : first + logits.shape[1]]),)

        (logprobs,) = _read(model, rows, heads, tails, pad_id, look).looked
        for row, kept in zip(rows, logprobs.tolist(), strict=True):
            found[row] = kept[-len(tails[row]) :]
    return [found[row] for row in range(len(heads))]


class _Choices:
    """Looks at logits for what greedy decoding would choose along the drafts of one group of rows.

    Keeps, per place: the draft token's log-probability, the choice, its log-probability, and whether it was a tie.
    """

    def __init__(
        self, answers: Sequence[Answer], drafts: Sequence[Sequence[int]], pad_id: int, penalty: Penalty | None
    ) -> None:
        self._penalty = penalty
        self._targets, _ = left_pad([draft or [pad_id] for draft in drafts], pad_id, torch.device("cpu"))
        self._changed: list[tuple[int, int, int, list[int]]] = []
        """(slot, place, prompt number, tokens before it) where the penalty has a say."""

        width = self._targets.shape[1]
        for slot, (answer, draft) in enumerate(zip(answers, drafts, strict=True)):
            whole, known = [*answer.token_ids, *draft], len(answer.token_ids)
            for end in penalty.places(answer.number, whole) if penalty else ():
                if end >= known:
                    place = width - len(draft) + end - known
                    self._changed.append((slot, place, answer.number, whole[:end]))

    def __call__(self, logits: torch.Tensor, first: int) -> tuple[torch.Tensor, ...]:
        rows, places, vocabulary = logits.shape
        targets = self._targets[:, first : first + places].to(logits.device)
        flat = logits.reshape(-1, vocabulary)
        chosen, ties = likeliest(flat)
        changed = [one for one in self._changed if first <= one[1] < first + places]
        if self._penalty is not None and changed:
            slots, at_places, numbers, before = zip(*changed, strict=True)
            at = torch.tensor(slots, device=flat.device) * places + torch.tensor(at_places, device=flat.device) - first
            chosen[at], ties[at] = likeliest(self._penalty(flat[at], numbers, before))
        chosen = chosen.view(rows, places)
        both = torch.stack([targets, chosen], dim=-1)
        likely = logits.gather(-1, both) - logits.logsumexp(-1, keepdim=True)
        return likely[..., 0], chosen, likely[..., 1], ties.view(rows, places)


def _take(answer: Answer, draft: Sequence[int], own: list[list[float]], stop_ids: frozenset[int]) -> Reading:
    """Gives the answer what is known of it from one row of what `_Choices` kept."""
    logprobs, chosen, chosen_logprobs, ties = own
    pairs = enumerate(zip(draft, chosen, strict=bool(draft)))
    matched = next((place for place, (token, choice) in pairs if token != choice), len(draft))
    for place in range(min(matched + 1, len(chosen))):
        answer.take(int(chosen[place]), chosen_logprobs[place], bool(ties[place]), stop_ids)
        if answer.ended:
            break
    return Reading(logprobs[: len(draft)], matched)


def _logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)


def _read(
    model: PreTrainedModel,
    rows: list[int],
    prompts: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[int]],
    pad_id: int,
    look: Look,
) -> Group:
    """One group through the model. The last token of a draft predicts nothing that is asked, so it stays out."""
    whole = [[*prompts[row], *drafts[row][:-1]] for row in rows]
    ids, mask = left_pad(whole, pad_id, model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = recording_cache(model.config)
    width, wanted = ids.shape[1], max(1, *(len(drafts[row]) for row in rows))
    kept = []
    budgets = (max(1, budget // len(rows)) for budget in _budgets(model))
    for start, end, places in _pieces(width, wanted, *budgets):
        output = model(
            input_ids=ids[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=max(1, places),
        )
        if places:
            kept.append(look(output.logits.float(), end - places - (width - wanted)))
        del output
    looked = tuple(torch.cat(parts, dim=1) for parts in zip(*kept, strict=True))
    return Group(rows, [width - len(row) for row in whole], looked, cache)


def _pieces(width: int, wanted: int, tokens: int, places: int) -> Iterator[tuple[int, int, int]]:
    """Column ranges of `width` columns, of at most `tokens`, to go through one by one, each with how many of its last
    places are looked at, at most `places`; the last `wanted` columns are, all in all."""
    if width <= tokens and wanted <= places:
        yield 0, width, wanted
        return
    unseen, step = width - wanted, min(tokens, places)
    for start in range(0, unseen, tokens):
        yield start, min(start + tokens, unseen), 0
    for start in range(unseen, width, step):
        end = min(start + step, width)
        yield start, end, end - start


def _grouped(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]]
) -> Iterator[list[int]]:
    """Row numbers in groups within both budgets, the longest first: neighbours of like length keep padding small."""
    tokens, places = _budgets(model)
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]) + len(drafts[row]), row), reverse=True)
    group: list[int] = []
    width = wanted = 0
    for row in order:
        width = max(width, len(prompts[row]) + len(drafts[row]))
        wanted = max(wanted, len(drafts[row]), 1)
        if group and (len(group) + 1) * max(width / tokens, wanted / places) > 1:
            yield group
            group, width, wanted = [], len(prompts[row]) + len(drafts[row]), max(len(drafts[row]), 1)
        group.append(row)
    if group:
        yield group


def _budgets(model: PreTrainedModel) -> tuple[int, int]:
    """Tokens in one pass, and places whose logits may be held at once."""
    cached = CORE_TOKENS * torch.get_num_threads() if model.device.type == "cpu" else TOKENS_BUDGET
    return min(cached, TOKENS_BUDGET), max(1, LOGITS_BUDGET // int(model.config.get_text_config().vocab_size))
