"""Drawn answers: the same in any batch and order, and distributed as the model's own probabilities.

The oracle draws every token again by itself: a plain forward pass, NumPy's cumulative sum, and the numbers that the
documented seed gives.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare
from transformers import PreTrainedModel

from model_families import family_model
from stokehold.core.errors import InputError
from stokehold.core.identity import short_id
from stokehold.core.records import Completion, Message, Sample
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.inference.engine import Engine
from stokehold.inference.sampling import nucleus

NEW_TOKENS = 12
LIMITS = {"temperature": 0.8, "seed": 5, "max_new_tokens": NEW_TOKENS}


@pytest.fixture(scope="module", params=["qwen3", "gemma3_text"])
def engine(request: pytest.FixtureRequest, tokenizer: ChatTokenizer) -> Engine:
    special = {"pad_token_id": tokenizer.pad_id, "eos_token_id": min(tokenizer.stop_ids)}
    return Engine(
        family_model(request.param, vocab_size=tokenizer.size, tie_word_embeddings=False, **special), tokenizer
    )


@pytest.fixture(scope="module")
def asked() -> list[Sample]:
    return [Sample(f"s{n}", (Message("user", "the quick fox " * (n % 4) + str(n)),)) for n in range(6)]


def completions_of(engine: Engine, samples: Sequence[Sample], k: int, **limits: Any) -> list[list[Completion]]:
    """`k` completions of each sample, both in order."""
    found: dict[tuple[int, int], Completion] = {}
    for part in engine.sample_batches(samples, k, **limits):
        found.update(part)
    return [[found[number, place] for place in range(k)] for number in range(len(samples))]


def shares(model: PreTrainedModel, ids: list[int], temperature: float) -> NDArray[np.float64]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy() / temperature
    weights: NDArray[np.float64] = np.exp(logits - logits.max())
    return weights / weights.sum()


def test_each_token_is_the_one_that_its_own_number_points_to(engine: Engine, asked: list[Sample]) -> None:
    drawn = completions_of(engine, asked, 3, batch_size=4, **LIMITS)
    assert [len(draws) for draws in drawn] == [3] * len(asked)
    for sample, draws in zip(asked, drawn, strict=True):
        assert len({done.token_ids for done in draws}) == 3, "draws of one item differ"
        for number, done in enumerate(draws):
            chance = random.Random(int(short_id("5", sample.id, str(number)), 16))
            ids = engine.tokenizer.prompt_ids(sample.messages)
            for token, logprob in zip(done.token_ids, done.token_logprobs, strict=True):
                mass = shares(engine.model, ids, 0.8).cumsum()
                assert token == int(np.searchsorted(mass, chance.random(), side="right")) or done.tie
                assert logprob == pytest.approx(np.log(shares(engine.model, ids, 1.0)[token]), abs=1e-4)
                ids.append(token)
            assert (done.finish_reason == "stop") == (done.token_ids[-1] in engine.tokenizer.stop_ids)
            assert done.finish_reason == "stop" or len(done.token_ids) == NEW_TOKENS


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_batch_size_order_and_number_of_draws_change_no_draw(engine: Engine, asked: list[Sample], top_p: float) -> None:
    together = completions_of(engine, asked, 4, batch_size=64, top_p=top_p, **LIMITS)
    alone = completions_of(engine, asked[::-1], 4, batch_size=1, top_p=top_p, **LIMITS)[::-1]
    fewer = completions_of(engine, asked, 2, batch_size=5, top_p=top_p, **LIMITS)
    for whole, one, few in zip(together, alone, fewer, strict=True):
        for draw in range(4):
            assert whole[draw].token_ids == one[draw].token_ids or whole[draw].tie
            assert whole[draw].tie == one[draw].tie
        assert [done.token_ids for done in few if not done.tie] == [
            done.token_ids for done, other in zip(whole, few, strict=False) if not other.tie
        ]
    assert sum(done.tie for draws in together for done in draws) <= 4
    other_seed = completions_of(engine, asked, 4, batch_size=64, top_p=top_p, **{**LIMITS, "seed": 6})
    assert all(a[0].token_ids != b[0].token_ids for a, b in zip(together, other_seed, strict=True))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_draws_follow_the_probabilities_of_the_model(
    engine: Engine, asked: list[Sample], temperature: float, top_p: float
) -> None:
    limits = {"temperature": temperature, "top_p": top_p, "seed": 1, "max_new_tokens": 1}
    (draws,) = completions_of(engine, asked[:1], 4000, batch_size=64, **limits)
    expected = shares(engine.model, engine.tokenizer.prompt_ids(asked[0].messages), temperature)
    order = np.argsort(-expected, kind="stable")
    inside = expected[order].cumsum() - expected[order] < top_p
    outside = set(order[~inside].tolist())
    kept = {int(token): float(expected[token] / expected[order[inside]].sum()) for token in order[inside]}
    counts = Counter(done.token_ids[0] for done in draws)
    assert not outside & set(counts)
    usual = [token for token, share in kept.items() if share * len(draws) >= 5]
    assert len(usual) > 10
    observed = [counts[token] for token in usual]
    likely = [kept[token] * len(draws) for token in usual]
    rest = len(draws) - sum(likely)
    if rest >= 5:
        observed, likely = [*observed, len(draws) - sum(observed)], [*likely, rest]
    scaled = np.array(likely) * sum(observed) / sum(likely)
    assert chisquare(observed, scaled).pvalue > 0.001


def test_prompts_are_read_once_for_all_draws(engine: Engine, asked: list[Sample]) -> None:
    seen: list[torch.Tensor] = []

    def note(_module: torch.nn.Module, _given: tuple[()], named: dict[str, torch.Tensor]) -> None:
        seen.append(named["attention_mask"][:, -named["input_ids"].shape[1] :])

    handle = engine.model.register_forward_pre_hook(note, with_kwargs=True)
    completions_of(engine, asked, 5, batch_size=8, **LIMITS)
    handle.remove()
    prompts = [len(engine.tokenizer.prompt_ids(sample.messages)) for sample in asked]
    assert sum(int(mask.sum()) for mask in seen if mask.shape[1] > 1) == sum(prompts)
    assert max(len(mask) for mask in seen) == 8


def test_what_cannot_be_drawn_says_why(engine: Engine, asked: list[Sample]) -> None:
    long = Sample("long", (Message("user", "9" * 400),))
    drawn = completions_of(engine, [long, asked[0]], 2, batch_size=2, **LIMITS)
    assert [done.finish_reason for done in drawn[0]] == ["error", "error"]
    assert "leaves no room" in str(drawn[0][0].error)
    assert drawn[1][0].token_ids
    for wrong in ({"temperature": 0.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(InputError):
            completions_of(engine, asked, 1, batch_size=1, **{**LIMITS, **wrong})
    assert completions_of(engine, [], 3, batch_size=1, **LIMITS) == []


@settings(deadline=None, max_examples=60)
@given(
    scores=st.lists(st.floats(-8, 8), min_size=2, max_size=30),
    top_p=st.floats(0.01, 1.0),
)
def test_the_nucleus_is_the_smallest_set_of_that_mass(scores: list[float], top_p: float) -> None:
    found, _ = nucleus(torch.tensor([scores], dtype=torch.float64), top_p, 1e-4)
    weights = torch.tensor(scores, dtype=torch.float64).softmax(-1)
    kept = found[0] > 0
    assert torch.equal(found[0][kept], weights[kept])
    assert float(found[0].sum()) >= top_p - 1e-9
    assert float(found[0].sum() - found[0][kept].min()) < top_p + 1e-9
    if not bool(kept.all()):
        assert float(weights[kept].min()) >= float(weights[~kept].max())


def test_rounding_at_an_edge_is_listed(tokenizer: ChatTokenizer, make_model: Callable[..., PreTrainedModel]) -> None:
    even = torch.zeros(1, 10, dtype=torch.float64)
    assert nucleus(even, 0.55, 1e-4)[1].item(), "equal scores inside and outside"
    apart = torch.arange(10, dtype=torch.float64)[None]
    assert not nucleus(apart, 0.5, 1e-4)[1].item()
    border = float(apart.softmax(-1)[0, 9])
    assert nucleus(apart, border + 1e-7, 1e-4)[1].item()
    assert nucleus(apart, border - 1e-7, 1e-4)[1].item()
