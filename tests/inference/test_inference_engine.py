"""The engine against plain transformers, and the model it borrowed against what it was."""

import copy
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stokehold.core.records import Completion, Message, Sample
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.inference import drafting
from stokehold.inference.borrow import borrowed
from stokehold.inference.drafting import tail_logprobs
from stokehold.inference.engine import Engine

NEW_TOKENS = 24
MIN_GAP = 1e-4
"""Logits nearer than this count as a tie; rounding of another batch shape is 20 times smaller."""

MakeModel = Callable[..., PreTrainedModel]


def plain_logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([list(ids)])).logits[0].float()


@pytest.fixture(scope="module", params=["qwen", "gpt2", "gemma"])
def engine(request: pytest.FixtureRequest, make_model: MakeModel, tokenizer: ChatTokenizer) -> Engine:
    return Engine(make_model(request.param, seed=6), tokenizer)


@pytest.fixture(scope="module")
def completions(engine: Engine, samples: list[Sample]) -> list[Completion]:
    return engine.complete(samples, NEW_TOKENS, batch_size=8)


def test_completions_answer_in_order_and_end_for_both_reasons(
    completions: list[Completion], samples: list[Sample], tokenizer: ChatTokenizer
) -> None:
    assert [done.sample_id for done in completions] == [sample.id for sample in samples]
    assert {done.finish_reason for done in completions} == {"stop", "length"}
    for done in completions:
        assert len(done.token_ids) == len(done.token_logprobs)
        assert (done.token_ids[-1] in tokenizer.stop_ids) == (done.finish_reason == "stop")
        assert done.finish_reason == "stop" or len(done.token_ids) == NEW_TOKENS
        assert not set(done.token_ids[:-1]) & tokenizer.stop_ids
        assert "<|" not in done.text


def test_no_choice_was_a_tie(engine: Engine, completions: list[Completion], samples: list[Sample]) -> None:
    """The premise of the tests of batch size and order; the log-probabilities are checked on the way."""
    for sample, done in zip(samples, completions, strict=True):
        prompt = engine.tokenizer.prompt_ids(sample.question)
        logits = plain_logits(engine.model, [*prompt, *done.token_ids])[len(prompt) - 1 : -1]
        best = logits.topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > MIN_GAP
        expected = logits.log_softmax(-1)[torch.arange(len(done.token_ids)), list(done.token_ids)]
        assert torch.allclose(torch.tensor(done.token_logprobs), expected, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_and_order_change_no_completion(
    engine: Engine, completions: list[Completion], samples: list[Sample], batch_size: int
) -> None:
    shuffled = random.Random(batch_size).sample(samples, len(samples))
    again = {done.sample_id: done for done in engine.complete(shuffled, NEW_TOKENS, batch_size)}
    for done in completions:
        other = again[done.sample_id]
        assert (other.token_ids, other.text, other.finish_reason) == (done.token_ids, done.text, done.finish_reason)
        assert other.gold_nll == pytest.approx(done.gold_nll, rel=1e-4)


def test_completions_are_those_of_greedy_generate(
    engine: Engine, completions: list[Completion], samples: list[Sample]
) -> None:
    model, tokenizer = engine.model.eval(), engine.tokenizer
    for sample, done in zip(samples, completions, strict=True):
        prompt = torch.tensor([tokenizer.prompt_ids(sample.question)])
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(tokenizer.stop_ids),
        )
        assert ids[0, prompt.shape[1] :].tolist() == list(done.token_ids)


def test_gold_likelihood_is_that_of_plain_transformers(
    engine: Engine, completions: list[Completion], samples: list[Sample]
) -> None:
    for sample, done in zip(samples, completions, strict=True):
        head, tail = engine.tokenizer.answer_ids(sample.messages)
        labels = torch.tensor([[-100] * len(head) + tail])
        with torch.no_grad():
            loss = engine.model.eval()(input_ids=torch.tensor([head + tail]), labels=labels).loss
        assert done.gold_tokens == len(tail)
        assert tail[-1] in engine.tokenizer.stop_ids
        assert done.gold_nll == pytest.approx(float(loss), rel=1e-5, abs=1e-5)


def test_likelihoods_do_not_depend_on_the_slices_that_bound_memory(
    engine: Engine, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [engine.tokenizer.answer_ids(sample.messages) for sample in samples]
    heads, tails = [head for head, _ in pairs], [tail for _, tail in pairs]
    with borrowed(engine.model):
        whole = tail_logprobs(engine.model, heads, tails, engine.tokenizer.pad_id)
        monkeypatch.setattr(drafting, "LOGITS_BUDGET", 1)
        single = tail_logprobs(engine.model, heads, tails, engine.tokenizer.pad_id)
    for one, other, tail in zip(whole, single, tails, strict=True):
        assert len(one) == len(tail)
        assert one == pytest.approx(other, abs=1e-3)


def test_what_cannot_be_answered_says_why(make_model: MakeModel, tokenizer: ChatTokenizer) -> None:
    engine = Engine(make_model(), tokenizer)
    fits = "a " * 60
    asked = [
        Sample("long", (Message("user", "a " * 300), Message("assistant", "b"))),
        Sample("gold", (Message("user", fits), Message("assistant", "日" * 200))),
        Sample("text", text="the quick brown fox"),
        Sample("open", (Message("user", "the"),)),
        Sample("odd", (Message("user", "the"), Message("assistant", "a"), Message("user", "and?"))),
    ]
    long, gold, text, unanswered, odd = engine.complete(asked, 5, batch_size=8)
    assert (long.finish_reason, long.text, long.token_ids) == ("error", "", ())
    assert "160" in str(long.error)
    assert gold.finish_reason != "error"
    assert gold.gold_nll is None
    assert "gold answer" in str(gold.error)
    ids = tokenizer.encode(asked[2])[0].ids.tolist()
    logprobs = plain_logits(engine.model, ids)[:-1].log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
    assert text.finish_reason == "error"
    assert text.gold_nll == pytest.approx(-float(logprobs.mean()), rel=1e-5)
    assert (unanswered.gold_nll, unanswered.gold_tokens, unanswered.error) == (None, None, None)
    assert odd.gold_tokens == len(tokenizer.answer_ids(asked[4].messages[:2])[1])


def test_an_answer_ends_where_the_context_does_and_others_go_on(
    make_model: MakeModel, tokenizer: ChatTokenizer, samples: list[Sample]
) -> None:
    engine = Engine(make_model("gpt2", seed=6), tokenizer)
    full = next(
        Sample("full", (Message("user", "9" * n),))
        for n in range(1, 400)
        if len(tokenizer.prompt_ids([Message("user", "9" * n)])) == engine.context_tokens - 2
    )
    others = engine.complete(samples, NEW_TOKENS, batch_size=64)
    long = [sample for sample, done in zip(samples, others, strict=True) if done.finish_reason == "length"][:5]
    done, *rest = engine.complete([full, *long], NEW_TOKENS, batch_size=6)
    assert (done.finish_reason, len(done.token_ids)) == ("length", 2)
    alone = {other.sample_id: other.token_ids for other in others}
    assert [other.token_ids for other in rest] == [alone[sample.id] for sample in long]


def test_batches_come_one_by_one_and_nothing_in_means_nothing_out(engine: Engine, samples: list[Sample]) -> None:
    parts = list(engine.complete_batches(samples, 2, batch_size=10))
    assert [len(part) for part in parts] == [10, 10, 3]
    assert sorted(number for part in parts for number in part) == list(range(len(samples)))
    assert engine.complete([], 2, batch_size=10) == []


def packed(module: torch.nn.Module, *args: object, **kwargs: object) -> tuple[torch.Tensor, None]:
    assert module.training, "a trainer's attention was used for inference"
    result: tuple[torch.Tensor, None] = sdpa_attention_forward(module, *args, **kwargs)
    return result


def training_step(model: PreTrainedModel) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    torch.manual_seed(7)
    ids = torch.arange(40)[None] % model.config.vocab_size
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_a_lent_model_comes_back_as_it_was(
    make_model: MakeModel, tokenizer: ChatTokenizer, samples: list[Sample]
) -> None:
    AttentionInterface.register("packed-for-test", packed)
    lent = make_model().train()
    lent.set_attn_implementation("packed-for-test")
    twin = copy.deepcopy(lent)
    for model in (lent, twin):
        training_step(model)
        model.model.layers[0].mlp.eval()
    modes = [module.training for module in lent.modules()]
    config, hooks = lent.config.to_dict(), lent.config._attn_implementation
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    engine = Engine(lent, tokenizer)
    engine.complete(samples, 4, batch_size=8)
    "".join(engine.stream(samples[0].question, 4, temperature=1.0, seed=1))

    assert [module.training for module in lent.modules()] == modes
    assert (lent.config.to_dict(), lent.config._attn_implementation) == (config, hooks)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert torch.is_grad_enabled()
    assert training_step(lent) == training_step(twin)
    for ours, theirs in zip(lent.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_a_model_comes_back_after_an_error_too(make_model: MakeModel) -> None:
    model = make_model().train()
    model.set_attn_implementation("eager")

    def misuse() -> None:
        with borrowed(model):
            assert not model.training
            assert model.config._attn_implementation == "sdpa"
            model(input_ids=torch.tensor([[10**6]]))

    with pytest.raises(IndexError):
        misuse()
    assert model.training
    assert model.config._attn_implementation == "eager"
    assert torch.is_grad_enabled()
