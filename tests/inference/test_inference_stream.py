"""One answer token by token: the same as a batch, with seeds, stop strings and whole characters."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from stokehold.core.errors import InputError
from stokehold.core.records import Message, Sample
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.inference.engine import Engine
from stokehold.inference.streaming import TextAssembler, sample_token


@pytest.fixture(scope="module")
def engine(make_model: Callable[..., PreTrainedModel], tokenizer: ChatTokenizer) -> Engine:
    return Engine(make_model(), tokenizer)


def test_a_greedy_stream_says_what_a_batch_says(engine: Engine, samples: list[Sample]) -> None:
    for sample, done in zip(samples[:8], engine.complete(samples[:8], 20, batch_size=8), strict=True):
        stream = engine.stream(sample.question, 20)
        assert "".join(stream) == done.text
        assert stream.finish_reason == done.finish_reason
        assert stream.completion_tokens == len(done.token_ids)
        assert stream.prompt_tokens == len(engine.tokenizer.prompt_ids(sample.question))


def test_seeds_decide_and_no_seed_differs(engine: Engine, samples: list[Sample]) -> None:
    def say(seed: int | None) -> str:
        # Hot enough that two answers of 20 tokens are never equal by chance.
        return "".join(engine.stream(samples[1].question, 20, temperature=9.0, seed=seed))

    assert say(5) == say(5)
    assert len({say(5), say(6), say(None), say(None)}) == 4


def test_a_conversation_without_room_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="context"):
        engine.stream([Message("user", "a " * 300)], 5)


def test_closing_a_stream_ends_it(engine: Engine, samples: list[Sample]) -> None:
    stream = engine.stream(samples[0].question, 1000, temperature=9.0, seed=1)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert torch.is_grad_enabled()


def test_a_stop_string_ends_the_answer_before_it(engine: Engine, samples: list[Sample]) -> None:
    whole = "".join(engine.stream(samples[1].question, 40, temperature=9.0, seed=3))
    stop = whole[len(whole) // 2 :][:3]
    stream = engine.stream(samples[1].question, 40, temperature=9.0, seed=3, stop=[stop])
    assert "".join(stream) == whole[: whole.index(stop)]
    assert stream.finish_reason == "stop"
    assert stream.completion_tokens < 40


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_pieces_join_to_the_text_up_to_the_first_stop(tokenizer: ChatTokenizer, text: str, stops: list[str]) -> None:
    ids = tokenizer.encode(Sample("s", text=text))[0].ids.tolist() if text else []
    text = tokenizer.decode(ids)
    assembler = TextAssembler(tokenizer, stops)
    pieces = []
    for token in ids:
        pieces.append(assembler.push(token))
        if assembler.stopped:
            break
    pieces.append(assembler.finish())
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    assert "".join(pieces) == (text[: min(ends)] if ends else text)
    assert assembler.stopped == bool(ends)


def test_no_piece_shows_half_a_character(tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode(Sample("s", text="a🙂b"))[0].ids.tolist()
    assembler = TextAssembler(tokenizer, [])
    pieces = [assembler.push(token) for token in ids]
    assert len(ids) > 3
    assert [piece for piece in pieces if piece] == ["a", "🙂", "b"]


def test_sampling_follows_temperature_and_top_p() -> None:
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    random = torch.Generator().manual_seed(0)

    def drawn(temperature: float, top_p: float) -> Counter[int]:
        return Counter(sample_token(shares.log(), temperature, top_p, random) for _ in range(2000))

    assert set(drawn(0.0, 1.0)) == {0}
    assert set(drawn(1.0, 1e-9)) == {0}
    assert set(drawn(1.0, 0.5)) == {0}
    assert set(drawn(1.0, 0.51)) == {0, 1}
    free = drawn(1.0, 1.0)
    assert free[0] / 2000 == pytest.approx(0.5, abs=0.05)
    assert free[3] / 2000 == pytest.approx(0.05, abs=0.02)
    flat = drawn(100.0, 1.0)
    assert flat[3] / 2000 == pytest.approx(0.25, abs=0.05)
