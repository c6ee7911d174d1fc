"""The gold answer as a draft: one pass where the model agrees, decoding from the first token where it does not.

The oracle is plain transformers: `generate` and a forward pass without a cache, one item at a time.
"""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from model_families import WINDOW, family_model
from reciting import reciter
from stokehold.core.records import Message, Sample
from stokehold.data.profile import STOP, EmojiThink
from stokehold.data.tokenizer import CHATML, ChatTokenizer, load_tokenizer, train_tokenizer
from stokehold.inference import drafting
from stokehold.inference.borrow import borrowed
from stokehold.inference.decoding import TIE_GAP, Answer, Greedy, decode
from stokehold.inference.drafting import read_drafts
from stokehold.inference.engine import Engine

FAMILIES = ("qwen3", "llama", "gemma", "gemma3_text", "gpt_neox", "mistral", "gpt_oss")
NEW_TOKENS = 16
ANSWER = "quick,fox.jumps;over:lazy!dog"
"""No token of it comes twice: a model that knows only the last token can recite it."""


def family(name: str, tokenizer: ChatTokenizer, context: int = 192) -> PreTrainedModel:
    """A random model that chooses many different tokens."""
    special = {"pad_token_id": tokenizer.pad_id, "eos_token_id": min(tokenizer.stop_ids)}
    sizes = {"vocab_size": tokenizer.size, "max_position_embeddings": context}
    model = family_model(name, tie_word_embeddings=False, **sizes, **special)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            weight.mul_(2 if weight.dim() > 1 and "embed" not in weight_name else 1)
    return model


def asked(count: int) -> list[Sample]:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "says", "it", "again"]
    questions = (" ".join(words[n % 5 : 2 + n * 7 % 12]) for n in range(count))
    return [Sample(f"s{n}", (Message("user", f"{n} {question}"),)) for n, question in enumerate(questions)]


def generated(model: PreTrainedModel, prompt: Sequence[int], budget: int, stop_ids: frozenset[int]) -> list[int]:
    ids = torch.tensor([list(prompt)])
    mask = torch.ones_like(ids)
    limits = {"max_new_tokens": budget, "do_sample": False, "eos_token_id": sorted(stop_ids)}
    whole: list[int] = model.generate(ids, attention_mask=mask, **limits)[0].tolist()
    return whole[len(prompt) :]


def plain_logprobs(model: PreTrainedModel, head: Sequence[int], tail: Sequence[int]) -> torch.Tensor:
    """[tail, vocabulary]: what the model thinks at each place of the tail."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*head, *tail]]), use_cache=False).logits[0]
    return logits[len(head) - 1 : -1].float().log_softmax(-1)


@contextmanager
def forwards(model: torch.nn.Module) -> Iterator[list[tuple[int, int]]]:
    """(rows, tokens) of every forward pass meanwhile."""
    seen: list[tuple[int, int]] = []

    def note(_module: torch.nn.Module, _given: Any, named: dict[str, Any]) -> None:
        seen.append(tuple(named["input_ids"].shape))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.fixture(scope="module", params=FAMILIES)
def family_engine(request: pytest.FixtureRequest, tokenizer: ChatTokenizer) -> Engine:
    return Engine(family(request.param, tokenizer), tokenizer)


@pytest.fixture(scope="module")
def own(family_engine: Engine) -> list[tuple[list[int], list[int]]]:
    """Prompts and what `generate` answers."""
    tokenizer = family_engine.tokenizer
    prompts = [tokenizer.prompt_ids(sample.messages) for sample in asked(11)]
    assert min(map(len, prompts)) > WINDOW
    answers = [generated(family_engine.model, prompt, NEW_TOKENS, tokenizer.stop_ids) for prompt in prompts]
    whole = [pair for pair in zip(prompts, answers, strict=True) if len(pair[1]) == NEW_TOKENS]
    assert len(whole) >= 7
    return whole[:7]


def test_whatever_the_draft_the_answer_is_that_of_generate(
    family_engine: Engine, own: list[tuple[list[int], list[int]]]
) -> None:
    """Drafts that agree to their end, in part and not at all; longer than the budget, short, and none."""
    model, stop_ids, pad_id = family_engine.model, family_engine.tokenizer.stop_ids, family_engine.tokenizer.pad_id
    prompts, answers = [prompt for prompt, _ in own], [answer for _, answer in own]
    other = [next(token for token in range(9, 99) if token not in (a, *stop_ids)) for a in (x[5] for x in answers)]
    drafts = [
        answers[0],
        [*answers[1][:5], other[1], *answers[1][6:]],
        [other[2], *answers[2]],
        answers[3] + [7, 8, 9] * 4,
        answers[4][:3],
        [],
        [*answers[6][:9], other[6]],
    ]
    begun = [Answer(row, NEW_TOKENS) for row in range(len(own))]
    with borrowed(model):
        readings = read_drafts(model, begun, prompts, drafts, stop_ids, pad_id)
        known = [len(answer.token_ids) for answer in begun]
        decode(model, [answer for answer in begun if not answer.ended], stop_ids, Greedy())
    assert [answer.token_ids for answer in begun] == answers
    for reading, draft, (prompt, answer) in zip(readings, drafts, own, strict=True):
        chosen = plain_logprobs(model, prompt, [*draft, 0]).argmax(-1).tolist()
        assert reading.matched == next((n for n, token in enumerate(draft) if chosen[n] != token), len(draft))
        told = plain_logprobs(model, prompt, draft)[range(len(draft)), draft] if draft else torch.tensor([])
        assert reading.logprobs == pytest.approx(told.tolist(), abs=1e-4)
        assert reading.matched >= next((n for n, token in enumerate(draft[:NEW_TOKENS]) if answer[n] != token), 0)
    assert known[0] == NEW_TOKENS
    assert known[1] == 6
    assert known[5] == 1
    for answer, (prompt, _) in zip(begun, own, strict=True):
        told = plain_logprobs(model, prompt, answer.token_ids)[range(NEW_TOKENS), answer.token_ids]
        assert answer.logprobs == pytest.approx(told.tolist(), abs=1e-4)


def with_gold(engine: Engine, samples: Sequence[Sample], cuts: Sequence[int]) -> list[Sample]:
    """The samples with gold answers that begin with so many words of what the engine answers, and go on otherwise."""
    plain = engine.complete(samples, NEW_TOKENS, batch_size=len(samples))
    texts = [
        done.text[: done.token_ends[min(cut, len(done.token_ids)) - 1]] if cut else ""
        for done, cut in zip(plain, cuts, strict=True)
    ]
    return [
        replace(sample, messages=(*sample.messages, Message("assistant", f"{text} fox")))
        for sample, text in zip(samples, texts, strict=True)
    ]


@pytest.fixture(scope="module")
def law_engine(tokenizer: ChatTokenizer) -> Engine:
    return Engine(family("mistral", tokenizer), tokenizer)


@settings(deadline=None, max_examples=7, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, NEW_TOKENS), min_size=9, max_size=9),
    batch_size=st.integers(1, 12),
    order=st.permutations(range(9)),
)
def test_batch_size_and_order_change_nothing_but_listed_ties(
    law_engine: Engine, cuts: list[int], batch_size: int, order: list[int]
) -> None:
    samples = with_gold(law_engine, asked(9), cuts)
    expected = law_engine.complete(samples, NEW_TOKENS, batch_size=1)
    again = law_engine.complete([samples[place] for place in order], NEW_TOKENS, batch_size)
    bare = law_engine.complete(asked(9), NEW_TOKENS, batch_size=4)
    for place, other in zip(order, again, strict=True):
        one = expected[place]
        assert other.gold_nll == pytest.approx(one.gold_nll, abs=1e-5)
        assert other.tie == one.tie
        if not one.tie:
            same = ("sample_id", "text", "token_ids", "finish_reason", "gold_matched", "gold_tokens", "token_ends")
            assert [getattr(other, name) for name in same] == [getattr(one, name) for name in same]
            assert one.token_ids == bare[place].token_ids, "a gold answer changes no completion"
    assert sum(done.tie for done in expected) < 3


def test_items_are_those_of_plain_transformers(family_engine: Engine) -> None:
    """Completion, likelihood and agreement of each item, through the engine."""
    model, tokenizer = family_engine.model, family_engine.tokenizer
    samples = with_gold(family_engine, asked(6), [0, 1, 4, 8, 12, 16])
    for sample, done in zip(samples, family_engine.complete(samples, NEW_TOKENS, batch_size=4), strict=True):
        prompt = tokenizer.prompt_ids(sample.question)
        head, tail = tokenizer.answer_ids(sample.messages)
        assert head == prompt
        logprobs = plain_logprobs(model, head, tail)
        assert done.gold_nll == pytest.approx(-float(logprobs[range(len(tail)), tail].mean()), abs=1e-5)
        assert list(done.token_ids) == generated(model, prompt, NEW_TOKENS, tokenizer.stop_ids)
        chosen = logprobs.argmax(-1).tolist()
        assert done.gold_matched == next(n for n, token in enumerate(tail) if token != chosen[n])


@pytest.fixture(scope="module")
def gold_ids(tokenizer: ChatTokenizer) -> list[int]:
    _, tail = tokenizer.answer_ids([Message("user", "?"), Message("assistant", ANSWER)])
    assert len(set(tail)) == len(tail)
    return tail


@pytest.fixture(scope="module")
def reciting(tokenizer: ChatTokenizer, gold_ids: list[int]) -> Engine:
    last = tokenizer.prompt_ids([Message("user", "?")])[-1]
    return Engine(reciter(tokenizer, dict(itertools.pairwise([last, *gold_ids]))), tokenizer)


def answering(texts: Sequence[str]) -> list[Sample]:
    return [
        Sample(f"s{n}", (Message("user", "2 and " * (n % 4)), Message("assistant", text)))
        for n, text in enumerate(texts)
    ]


def test_right_answers_cost_one_pass_and_no_decoding(reciting: Engine, gold_ids: list[int]) -> None:
    samples = answering([ANSWER] * 12)
    with forwards(reciting.model) as seen:
        found = reciting.complete(samples, 64, batch_size=12)
    prompts = [reciting.tokenizer.prompt_ids(sample.question) for sample in samples]
    longest = max(map(len, prompts)) + len(gold_ids) - 1
    assert seen == [(12, longest)]
    for done in found:
        assert (done.text, done.finish_reason, done.error) == (ANSWER, "stop", None)
        assert done.gold_matched == done.gold_tokens == len(done.token_ids) == len(gold_ids)
        assert done.gold_nll == pytest.approx(-sum(done.token_logprobs) / len(gold_ids), abs=1e-6)
        assert not done.tie


def test_a_few_wrong_answers_go_on_by_drafts_and_many_are_decoded(reciting: Engine, gold_ids: list[int]) -> None:
    wrong = ANSWER.replace("fox", "a")
    with forwards(reciting.model) as seen:
        found = reciting.complete(answering([ANSWER] * 11 + [wrong]), 64, batch_size=12)
    assert {done.text for done in found} == {ANSWER}
    assert found[-1].gold_matched == 2
    assert len(seen) == 2, "behind the wrong word the gold answer is a good draft again"
    assert all(tokens > 1 for _, tokens in seen)
    with forwards(reciting.model) as seen:
        found = reciting.complete(answering([wrong] * 12), 64, batch_size=12)
    assert {done.text for done in found} == {ANSWER}
    assert [tokens for _, tokens in seen[1:]] == [1] * (len(gold_ids) - 3)


def test_what_stays_open_is_decoded_together_and_the_rest_is_told_at_once(
    reciting: Engine, gold_ids: list[int]
) -> None:
    wrong = "dog over"
    samples = answering(([ANSWER] * 2 + [wrong] * 2) * 3)
    with forwards(reciting.model) as seen:
        parts = list(reciting.complete_batches(samples, 64, batch_size=4))
    assert {done.text for part in parts for done in part.values()} == {ANSWER}
    assert sum(map(len, parts)) == len(samples)
    stepped = [rows for rows, tokens in seen if tokens == 1]
    assert stepped == [4] * (len(gold_ids) - 1) + [2] * (len(gold_ids) - 1)


@pytest.mark.parametrize("budget", [1, 3, 9, 10, 11, 64])
def test_a_budget_may_end_inside_the_draft(reciting: Engine, gold_ids: list[int], budget: int) -> None:
    (done,) = reciting.complete(answering([ANSWER]), budget, batch_size=1)
    assert list(done.token_ids) == gold_ids[:budget]
    assert done.finish_reason == ("stop" if budget >= len(gold_ids) else "length")
    assert done.gold_matched == len(gold_ids), "agreement is measured to the end of the gold answer"
    assert done.gold_nll is not None
    (short,) = reciting.complete(answering([ANSWER]), budget, batch_size=1, gold_multiple=0.1)
    assert len(short.token_ids) == min(budget, len(gold_ids))


def test_a_choice_between_equals_is_a_tie(tokenizer: ChatTokenizer, gold_ids: list[int]) -> None:
    last = tokenizer.prompt_ids([Message("user", "?")])[-1]
    model = reciter(tokenizer, dict(itertools.pairwise([last, *gold_ids])))
    rival = next(token for token in range(tokenizer.size) if token not in gold_ids)
    for gap, tie in ((0.5 * TIE_GAP, True), (3 * TIE_GAP, False)):
        with torch.no_grad():
            model.lm_head.weight[rival] = model.lm_head.weight[gold_ids[4]] * (1 - gap)
        size = float(model(input_ids=torch.tensor([gold_ids[3:4]])).logits.max())
        assert (size * gap < TIE_GAP) == tie or size > 2
        with torch.no_grad():
            model.lm_head.weight[rival] = model.lm_head.weight[gold_ids[4]] * (1 - gap / size)
        engine = Engine(model, tokenizer)
        assert engine.complete(answering([ANSWER]), 64, 1)[0].tie == tie
        assert engine.complete(answering(["dog"]), 64, 1)[0].tie == tie
        assert not engine.complete(answering([ANSWER]), 3, 1)[0].tie, "a place beyond the answer is none of its choices"


def test_another_prompt_at_inference_drafts_there_and_is_scored_as_trained(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    """A template that writes more into the prompt than training shows: two passes, each with its own tokens."""
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    told = CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\nfox '")
    (tmp_path / "chat_template.jinja").write_text(told)
    tokenizer = load_tokenizer(tmp_path)
    engine = Engine(family("qwen3", tokenizer), tokenizer)
    samples = answering(["a lazy dog", "the quick"])
    for sample, done in zip(samples, engine.complete(samples, 8, batch_size=2), strict=True):
        prompt = tokenizer.prompt_ids(sample.question)
        head, tail = tokenizer.answer_ids(sample.messages)
        assert head != prompt
        trained = plain_logprobs(engine.model, head, tail)[range(len(tail)), tail]
        assert done.gold_nll == pytest.approx(-float(trained.mean()), abs=1e-5)
        assert list(done.token_ids) == generated(engine.model, prompt, 8, tokenizer.stop_ids)
        chosen = plain_logprobs(engine.model, prompt, tail).argmax(-1).tolist()
        assert done.gold_matched == next(n for n, token in enumerate(tail) if token != chosen[n])


def test_a_gold_answer_of_any_length_keeps_to_the_budgets(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit the context is an item with a reason; what does goes through in pieces."""
    engine = Engine(family("gemma3_text", tokenizer, context=1024), tokenizer)
    fitting = answering([" ".join(["fox jumps"] * 150), "fox", "a lazy"])
    whole = engine.complete(fitting, 6, batch_size=3)
    monkeypatch.setattr(drafting, "LOGITS_BUDGET", 40 * tokenizer.size)
    monkeypatch.setattr(drafting, "TOKENS_BUDGET", 64)
    sizes: list[int] = []
    head = engine.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, _given, logits: sizes.append(logits.numel()))
    with forwards(engine.model) as seen:
        long, *rest = engine.complete([*answering(["9" * 100_000]), *fitting], 6, batch_size=4)
    handle.remove()
    assert max(sizes) <= 40 * tokenizer.size
    assert max(rows * tokens for rows, tokens in seen) <= 64
    assert (long.gold_nll, long.gold_matched) == (None, None)
    assert "do not fit a context of 1024" in str(long.error)
    assert len(long.token_ids) == 6
    for one, other in zip(rest, whole, strict=True):
        assert one.gold_nll == pytest.approx(other.gold_nll, abs=1e-5)
        assert (one.token_ids, one.gold_matched) == (other.token_ids, other.gold_matched)


def test_an_answer_without_content_says_why(reciting: Engine) -> None:
    empty, fine = reciting.complete(answering(["", ANSWER]), 64, batch_size=2)
    assert (empty.finish_reason, empty.gold_nll, empty.gold_matched) == ("error", None, None)
    assert "no assistant turn with content" in str(empty.error)
    assert fine.text == ANSWER


PROFILE = EmojiThink(2)


@pytest.mark.parametrize("marks", [1, 2, 3, 4, 6])
def test_the_penalty_decides_along_the_draft_too(tmp_path: Path, marks: int) -> None:
    """A model that would write stop marks for ever; drafts with too few, as many as asked, and too many of them."""
    train_tokenizer(["ok\n\nok", "assistant\n", "ok ok", *[f"{STOP} "] * 9] * 4, 300, tmp_path)
    tokenizer = load_tokenizer(tmp_path, PROFILE)
    said = [tokenizer._chat.encode(part).ids[0] for part in ("\n", "ok", "\n\n", STOP)]
    model = reciter(tokenizer, dict(itertools.pairwise([*said, said[-1]])))
    question = [Message("user", "ok")]
    asked_for = PROFILE.marks(question)
    assert asked_for is not None
    prompt = tokenizer.prompt_ids(question)
    (bare,) = Engine(model, tokenizer).complete([Sample("s", tuple(question))], 30, batch_size=1)
    assert tokenizer.decode(bare.token_ids).count(STOP) == asked_for.stop
    assert bare.finish_reason == "stop"
    stop = min(tokenizer.stop_ids)
    draft = [*bare.token_ids[: len(bare.token_ids) - 1 - asked_for.stop], *[said[-1]] * marks, stop]
    engine = Engine(model, tokenizer)
    penalty = engine._penalty([question])
    answer = Answer(0, 30)
    with borrowed(model):
        (reading,) = read_drafts(model, [answer], [prompt], [draft], tokenizer.stop_ids, tokenizer.pad_id, penalty)
        if not answer.ended:
            decode(model, [answer], tokenizer.stop_ids, Greedy(penalty))
    assert tuple(answer.token_ids) == bare.token_ids
    assert answer.logprobs == pytest.approx(bare.token_logprobs, abs=1e-5)
    assert (reading.matched == len(draft)) == (marks == asked_for.stop)
