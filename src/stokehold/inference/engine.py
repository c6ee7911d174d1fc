"""Answers and likelihoods of one model: evaluation in batches, single streams for serving.

Evaluation takes one pass where it can: the gold answer is the draft, so that its likelihood and the beginning of the
greedy answer come from the same logits. A gold answer that the model would give itself costs no decoding at all;
answers that go another way are decoded on from there, together with those of other batches.

The engine borrows the model for each batch and hands it back as it was (weights, RNG, modes, attention, config), so a
trainer may call it between two steps on its live weights. Neither batch size nor order changes a completion, ties of
logits aside.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from stokehold.core.errors import InputError
from stokehold.core.records import Completion, Message, Sample
from stokehold.core.rope import steady_context
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.inference.borrow import borrowed
from stokehold.inference.cache import growing_cache
from stokehold.inference.decoding import Answer, Choose, Greedy, decode, step
from stokehold.inference.drafting import read_drafts, read_prompts, tail_logprobs
from stokehold.inference.penalties import StopMarkPenalty
from stokehold.inference.sampling import Sampler
from stokehold.inference.streaming import Generation
from stokehold.inference.text_ends import TextEnds

PLAIN_TEXT = "plain text asks nothing: only its likelihood is measured"


class ContextError(InputError):
    """A conversation leaves no room for an answer in the model's context."""


GOLD_SLACK = 16
"""Tokens beyond the multiple of the gold answer, so that short answers may be worded otherwise."""


FEW = 1 / 8
"""Where no larger share of a batch differs from its gold answers, those that do are taken to differ in few tokens."""

GAIN = 4
"""Tokens that a pass over the rest of a gold answer must give for another one to be tried."""


@dataclass(frozen=True, slots=True)
class _Limits:
    """Where answers end: new tokens at most, and at most that multiple of the gold answer's, 0 for no such end."""

    max_new_tokens: int
    gold_multiple: float


@dataclass(frozen=True, slots=True)
class _Item:
    """A sample as token ids; `head` and `tail` are what training would show and train for its gold answer.

    `fault` is why nothing can be generated for it.
    """

    number: int
    sample: Sample
    prompt: list[int]
    head: list[int]
    tail: list[int]
    fault: str | None = None


@dataclass(slots=True)
class _Work:
    """What has become of an item: its answer as far as it is known, its gold answer's likelihood in nats per token."""

    item: _Item
    answer: Answer | None = None
    gold_nll: float | None = None
    gold_matched: int | None = None

    @property
    def open(self) -> bool:
        return self.answer is not None and not self.answer.ended

    @property
    def left(self) -> int:
        """Tokens that the answer may still take, by the length of the gold answer where there is one."""
        answer = self.answer
        if answer is None:
            return 0
        return min(answer.budget, len(self.item.tail) or answer.budget) - len(answer.token_ids)


class Engine:
    """One model with its tokenizer. `device` moves the model when given; None leaves it where it is.

    InputError for a model that cannot decode with a KV cache.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: ChatTokenizer, device: torch.device | str | None = None
    ) -> None:
        _refuse_uncached(model)
        self.model = model
        if device is not None:
            torch.nn.Module.to(model, device)
        self.tokenizer = tokenizer
        config = model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None) or 2**31
        self.context_tokens = steady_context(getattr(config, "rope_parameters", None), limit)
        """Positions the model has, prompt and answer together, and treats alike whatever the length."""
        self._context = f"a context of {self.context_tokens}"
        self._text_ends = TextEnds(tokenizer)

    @property
    def template_hash(self) -> str:
        """Of what is written around the turns of a conversation."""
        return self.tokenizer.template_hash

    @property
    def dtype(self) -> str:
        """Of the weights, such as torch.float32."""
        return str(self.model.dtype)

    @property
    def device_type(self) -> str:
        """Where the weights are: cpu or cuda."""
        return self.model.device.type

    @property
    def spent_before_s(self) -> float:
        """Seconds that went into answers before they are asked for: none are made in advance."""
        return 0.0

    def complete(
        self, samples: Sequence[Sample], max_new_tokens: int, batch_size: int, gold_multiple: float = 0.0
    ) -> list[Completion]:
        """One completion per sample, in the order given; see `complete_batches`."""
        found: dict[int, Completion] = {}
        for part in self.complete_batches(samples, max_new_tokens, batch_size, gold_multiple):
            found.update(part)
        return [found[number] for number in range(len(samples))]

    def complete_batches(
        self, samples: Sequence[Sample], max_new_tokens: int, batch_size: int, gold_multiple: float = 0.0
    ) -> Iterator[dict[int, Completion]]:
        """Greedy completions by index into `samples`, as they become known; the model is handed back in between, and
        its weights must stay as they are until the last.

        With `gold_multiple` an answer also ends at that multiple of its gold answer's tokens, plus `GOLD_SLACK`: one
        that runs on is wrong already, and an untrained model always runs on.

        A prompt that leaves no room in the context ends with `finish_reason` error and its reason; so does plain text,
        which asks nothing, but its likelihood is measured. `error` beside another reason is about the gold answer.
        """
        limits = _Limits(max_new_tokens, gold_multiple)
        penalty = self._penalty([sample.question for sample in samples])
        begin = partial(self._draft, limits=limits, penalty=penalty)
        for done in self._run(self._works(samples), batch_size, begin, Greedy(penalty)):
            yield {work.item.number: self._completion(work) for work in done}

    def sample_batches(
        self,
        samples: Sequence[Sample],
        k: int,
        temperature: float,
        seed: int,
        max_new_tokens: int,
        batch_size: int,
        top_p: float = 1.0,
        gold_multiple: float = 0.0,
    ) -> Iterator[dict[tuple[int, int], Completion]]:
        """Drawn completions by (index into `samples`, draw number below `k`), as they become known.

        Every draw has random numbers of its own, one per token, drawn on the CPU by a generator seeded with (`seed`,
        sample id, draw number): batch size, order and `k` change no draw but listed ties. Prompts are read once for
        all draws. Log-probabilities are the model's own, at temperature 1. Gold answers are not scored. InputError for
        a temperature or `top_p` that nothing can be drawn with.
        """
        limits = _Limits(max_new_tokens, gold_multiple)
        penalty = self._penalty([sample.question for sample in samples])
        sampler = Sampler([sample.id for sample in samples], temperature, top_p, seed, penalty)
        begin = partial(self._draws, k=k, limits=limits, sampler=sampler)
        for done in self._run(self._works(samples), batch_size, begin, sampler):
            yield {
                (work.item.number, draw): self._completion(work)
                for work in done
                for draw in ([work.answer.draw] if work.answer else range(k))
            }

    def stream(
        self,
        messages: Sequence[Message],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """The answer to a conversation as an iterator of text pieces; temperature 0 is greedy.

        Raises `ContextError` when the conversation leaves no room in the context, `InputError` when the chat template
        refuses it. The model is borrowed for one token at a time.
        """
        prompt = self.tokenizer.prompt_ids(messages)
        room = self.context_tokens - len(prompt)
        if room < 1:
            raise ContextError(
                "the conversation does not fit the context",
                f"{len(prompt)} tokens, context {self.context_tokens}",
                "send fewer or shorter messages",
            )
        budget = min(max_new_tokens, room)
        penalty = self._penalty([messages])
        return Generation(self.model, self.tokenizer, prompt, budget, temperature, top_p, seed, stop, penalty)

    def _item(self, number: int, sample: Sample) -> _Item:
        if sample.text is not None:
            document = self.tokenizer.encode(sample)[0].ids.tolist()
            return _Item(number, sample, [], document[:1], document[1:], PLAIN_TEXT)
        answered = len(sample.question) < len(sample.messages)
        try:
            prompt = self.tokenizer.prompt_ids(sample.question)
            turns = sample.messages[: len(sample.question) + 1]
            head, tail = self.tokenizer.answer_ids(turns) if answered else ([], [])
        except InputError as error:
            return _Item(number, sample, [], [], [], f"the chat template refuses it: {error}")
        room = self.context_tokens - len(prompt)
        fault = None if room > 0 else f"a prompt of {len(prompt)} tokens leaves no room in {self._context}"
        return _Item(number, sample, prompt, head, tail, fault)

    def _works(self, samples: Sequence[Sample]) -> list[_Work]:
        """Items, the longest first: neighbours of like length keep padding small."""
        items = [self._item(number, sample) for number, sample in enumerate(samples)]
        items.sort(key=lambda item: len(item.prompt or item.head) + len(item.tail), reverse=True)
        return [_Work(item) for item in items]

    def _run(
        self,
        works: list[_Work],
        batch_size: int,
        begin: Callable[[Sequence[_Work]], list[_Work]],
        choose: Choose,
    ) -> Iterator[list[_Work]]:
        """Begins batch after batch; what stays open waits until it fills a batch, and is decoded with its like."""
        waiting: list[_Work] = []
        for start in range(0, len(works), batch_size):
            last = start + batch_size >= len(works)
            with borrowed(self.model):
                begun = begin(works[start : start + batch_size])
                done = [work for work in begun if not work.open]
                waiting += [work for work in begun if work.open]
                while waiting and (last or len(waiting) >= batch_size):
                    waiting.sort(key=lambda work: work.left, reverse=True)
                    together, waiting = waiting[:batch_size], waiting[batch_size:]
                    decode(self.model, [w.answer for w in together if w.answer], self.tokenizer.stop_ids, choose)
                    done += together
            if done:
                yield done

    def _draft(self, batch: Sequence[_Work], limits: _Limits, penalty: StopMarkPenalty | None) -> list[_Work]:
        """Begins the answers with what of their gold answers the model would say itself, and scores those."""
        asked = [work for work in batch if work.item.fault is None]
        answers = [Answer(work.item.number, self._budget(work.item, limits)) for work in asked]
        prompts = [work.item.prompt for work in asked]
        drafts = [work.item.tail if self._fits(work.item.prompt, work.item.tail) else [] for work in asked]
        tokenizer = self.tokenizer
        readings = read_drafts(self.model, answers, prompts, drafts, tokenizer.stop_ids, tokenizer.pad_id, penalty)
        for work, answer, draft, reading in zip(asked, answers, drafts, readings, strict=True):
            work.answer = answer
            if draft:
                work.gold_matched = reading.matched
                if work.item.head == work.item.prompt:
                    work.gold_nll = -sum(reading.logprobs) / len(draft)
        self._score([work for work in batch if work.gold_nll is None])
        unlike = [work for work in asked if work.open]
        if len(unlike) <= FEW * len(asked):
            self._redraft(unlike, penalty)
        return list(batch)

    def _redraft(self, works: Sequence[_Work], penalty: StopMarkPenalty | None) -> None:
        """Goes on with what the gold answers say behind a token that differs, for as long as that gains much."""
        stop_ids, pad_id = self.tokenizer.stop_ids, self.tokenizer.pad_id
        while works:
            answers = [work.answer for work in works if work.answer]
            prompts = [work.item.prompt for work in works]
            drafts = [work.item.tail[len(answer.token_ids) :] for work, answer in zip(works, answers, strict=True)]
            readings = read_drafts(self.model, answers, prompts, drafts, stop_ids, pad_id, penalty)
            gained = zip(works, readings, strict=True)
            works = [work for work, reading in gained if work.open and reading.matched >= GAIN]

    def _score(self, works: Sequence[_Work]) -> None:
        """Likelihoods of gold answers that training shows behind another prompt than inference, and of plain texts."""
        works = [work for work in works if work.item.tail and self._gold_fault(work.item) is None]
        heads, tails = [work.item.head for work in works], [work.item.tail for work in works]
        rows = tail_logprobs(self.model, heads, tails, self.tokenizer.pad_id)
        for work, row in zip(works, rows, strict=True):
            work.gold_nll = -sum(row) / len(row)

    def _draws(self, batch: Sequence[_Work], k: int, limits: _Limits, sampler: Sampler) -> list[_Work]:
        """`k` answers to each item, with their first tokens."""
        asked = [work.item for work in batch if work.item.fault is None]
        begun = [work for work in batch if work.item.fault is not None]
        for group in read_prompts(self.model, [item.prompt for item in asked], self.tokenizer.pad_id):
            for slot, row in enumerate(group.rows):
                item = asked[row]
                budget = self._budget(item, limits)
                answers = [Answer(item.number, budget, draw) for draw in range(k)]
                step(group.looked[0][slot].expand(k, -1), answers, self.tokenizer.stop_ids, sampler)
                prefix = group.prefix(slot, len(item.prompt))
                for answer in answers:
                    answer.prefix = None if answer.ended else prefix
                begun += [_Work(item, answer) for answer in answers]
        return begun

    def _fits(self, head: Sequence[int], tail: Sequence[int]) -> bool:
        return len(head) + len(tail) <= self.context_tokens

    def _penalty(self, asked: Sequence[Sequence[Message]]) -> StopMarkPenalty | None:
        """What the tokenizer's profile asks of the answers to these conversations."""
        profile = self.tokenizer.profile
        if profile is None:
            return None
        marks = [profile.marks(messages) for messages in asked]
        return StopMarkPenalty(self.tokenizer, [None if one is None else one.stop for one in marks])

    def _budget(self, item: _Item, limits: _Limits) -> int:
        """New tokens this item may have, at least one."""
        budget = min(limits.max_new_tokens, self.context_tokens - len(item.prompt))
        if limits.gold_multiple and item.tail:
            budget = min(budget, int(limits.gold_multiple * len(item.tail)) + GOLD_SLACK)
        return budget

    def _gold_fault(self, item: _Item) -> str | None:
        if self._fits(item.head, item.tail):
            return None
        return f"prompt and gold answer of {len(item.head) + len(item.tail)} tokens do not fit {self._context}"

    def _completion(self, work: _Work) -> Completion:
        item, answer = work.item, work.answer or Answer(work.item.number, 0)
        text, ends = self._text_ends(answer.token_ids[:-1] if answer.stopped else answer.token_ids)
        ended = "stop" if answer.stopped else "length"
        return Completion(
            sample_id=item.sample.id,
            text=text,
            token_ids=tuple(answer.token_ids),
            token_logprobs=tuple(answer.logprobs),
            finish_reason=ended if work.answer is not None else "error",
            gold_nll=work.gold_nll,
            gold_tokens=len(item.tail) or None,
            error=item.fault or self._gold_fault(item),
            gold_matched=work.gold_matched,
            tie=answer.tie,
            token_ends=(*ends, len(text)) if answer.stopped else ends,
        )


def _refuse_uncached(model: PreTrainedModel) -> None:
    """InputError unless the model takes the engine's cache and gives logits for chosen positions."""
    unwrap = getattr(model, "get_base_model", None)
    taken = inspect.signature((model if unwrap is None else unwrap()).forward).parameters
    lacking = [name for name in ("past_key_values", "position_ids", "logits_to_keep") if name not in taken]
    if lacking:
        raise InputError(
            f"the model does not take {', '.join(lacking)}",
            type(model).__name__,
            "use a model of a family that docs/models.md names",
        )
    growing_cache(model.config)
