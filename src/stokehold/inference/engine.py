"""Answers and likelihoods of one model: greedy batches for evaluation, single streams for serving.

The engine borrows the model for each batch and hands it back as it was (weights, RNG, modes, attention, config), so a
trainer may call it between two steps on its live weights. Neither batch size nor order changes a completion, exact
ties of logits aside.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from stokehold.core.errors import InputError
from stokehold.core.records import Completion, Message, Sample
from stokehold.core.rope import steady_context
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.inference.borrow import borrowed
from stokehold.inference.cache import growing_cache
from stokehold.inference.decoding import Decoded, greedy, tail_logprobs
from stokehold.inference.penalties import StopMarkPenalty
from stokehold.inference.streaming import Generation

PLAIN_TEXT = "plain text asks nothing: only its likelihood is measured"


class ContextError(InputError):
    """A conversation leaves no room for an answer in the model's context."""


GOLD_SLACK = 16
"""Tokens beyond the multiple of the gold answer, so that short answers may be worded otherwise."""


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
        """Completions by index into `samples`, batch after batch; the model is handed back between batches.

        With `gold_multiple` an answer also ends at that multiple of its gold answer's tokens, plus `GOLD_SLACK`: one
        that runs on is wrong already, and an untrained model always runs on.

        A prompt that leaves no room in the context ends with `finish_reason` error and its reason; so does plain text,
        which asks nothing, but its likelihood is measured. `error` beside another reason is about the gold answer.
        """
        items = [self._item(number, sample) for number, sample in enumerate(samples)]
        items.sort(key=lambda item: len(item.prompt), reverse=True)
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            with borrowed(self.model):
                done = self._batch(batch, max_new_tokens, gold_multiple)
            yield done

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

    def _batch(self, batch: list[_Item], max_new_tokens: int, gold_multiple: float) -> dict[int, Completion]:
        answerable = [item for item in batch if item.fault is None]
        budgets = [self._budget(item, max_new_tokens, gold_multiple) for item in answerable]
        prompts = [item.prompt for item in answerable]
        stop_ids, pad_id = self.tokenizer.stop_ids, self.tokenizer.pad_id
        penalty = self._penalty([item.sample.question for item in answerable])
        decoded = greedy(self.model, prompts, budgets, stop_ids, pad_id, penalty) if answerable else []
        by_number = {item.number: result for item, result in zip(answerable, decoded, strict=True)}
        likely = self._likelihoods(batch)
        return {
            item.number: self._completion(item, by_number.get(item.number), likely.get(item.number)) for item in batch
        }

    def _penalty(self, asked: Sequence[Sequence[Message]]) -> StopMarkPenalty | None:
        """What the tokenizer's profile asks of the answers to these conversations."""
        profile = self.tokenizer.profile
        if profile is None:
            return None
        marks = [profile.marks(messages) for messages in asked]
        return StopMarkPenalty(self.tokenizer, [None if one is None else one.stop for one in marks])

    def _budget(self, item: _Item, max_new_tokens: int, gold_multiple: float) -> int:
        """New tokens this item may have, at least one."""
        budget = min(max_new_tokens, self.context_tokens - len(item.prompt))
        if gold_multiple and item.tail:
            budget = min(budget, int(gold_multiple * len(item.tail)) + GOLD_SLACK)
        return budget

    def _likelihoods(self, batch: list[_Item]) -> dict[int, float]:
        """Mean negative log-likelihood in nats per gold token, of the items whose gold fits the context."""
        fitting = [item for item in batch if item.tail and self._gold_fault(item) is None]
        if not fitting:
            return {}
        # Neighbours of like length keep padding, and with it the widest slice of logits, small.
        fitting.sort(key=lambda item: len(item.tail), reverse=True)
        rows = tail_logprobs(
            self.model, [item.head for item in fitting], [item.tail for item in fitting], self.tokenizer.pad_id
        )
        return {item.number: -sum(row) / len(row) for item, row in zip(fitting, rows, strict=True)}

    def _gold_fault(self, item: _Item) -> str | None:
        whole = len(item.head) + len(item.tail)
        if whole > self.context_tokens:
            return f"prompt and gold answer of {whole} tokens do not fit {self._context}"
        return None

    def _completion(self, item: _Item, decoded: Decoded | None, nll: float | None) -> Completion:
        fault = item.fault or self._gold_fault(item)
        result = decoded or Decoded()
        text_ids = result.token_ids[:-1] if result.stopped else result.token_ids
        ended = "stop" if result.stopped else "length"
        return Completion(
            sample_id=item.sample.id,
            text=self.tokenizer.answer_text(text_ids),
            token_ids=tuple(result.token_ids),
            token_logprobs=tuple(result.logprobs),
            finish_reason=ended if decoded is not None else "error",
            gold_nll=nll,
            gold_tokens=len(item.tail) or None,
            error=fault,
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
