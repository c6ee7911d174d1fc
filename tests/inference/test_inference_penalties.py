"""The stop marks that were asked for and not one more: by row, in any type, with nothing left behind.

The model is a real one whose weights make each token name the next: it would answer with stop marks for ever.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from reciting import reciter
from stokehold.core.config import Config
from stokehold.core.records import Message, Sample
from stokehold.data.profile import STOP, EmojiThink
from stokehold.data.template import ChatTemplate
from stokehold.data.tokenizer import CHATML, ChatTokenizer, load_tokenizer, train_tokenizer
from stokehold.inference.engine import Engine
from stokehold.inference.penalties import StopMarkPenalty
from stokehold.inference.registry import Registry, load
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.training.state import open_lineage

PROFILE = EmojiThink(2)
ANSWER = "ok\n"
KINDS = ("bytes", "marks", "runs")
"""Tokenizers by what a stop mark is: four tokens, one, or a part of one that holds two."""


@pytest.fixture(scope="session")
def mark_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("marks")
    words = ["ok\n\nok", "assistant\n", "ok ok"] * 4
    train_tokenizer(words, 300, root / "bytes")
    train_tokenizer([*words, *[f"{STOP} "] * 9], 300, root / "marks")
    train_tokenizer([*words, *[STOP * 2] * 9, *[STOP] * 9], 300, root / "runs")
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="session")
def mark_tokenizers(mark_folders: dict[str, Path]) -> dict[str, ChatTokenizer]:
    return {kind: load_tokenizer(folder, PROFILE) for kind, folder in mark_folders.items()}


def fallback_tokenizer() -> ChatTokenizer:
    """As Llama-2: words with ▁ for a space, everything else in bytes."""
    words = ["<unk>", "<|im_start|>", "<|im_end|>", "▁", "ok", "\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({w: n for n, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    special = {"eos_token": "<|im_end|>"}
    template = ChatTemplate(CHATML, special, ["<|im_start|>", "<|im_end|>"], PROFILE)
    return ChatTokenizer(tokenizer, template, special, set())


def ids_of(tokenizer: ChatTokenizer, text: str) -> list[int]:
    return tokenizer._chat.encode(text, add_special_tokens=False).ids


def chain(tokenizer: ChatTokenizer) -> dict[int, int]:
    """Token → the one that follows: the prompt's line end, the answer, a line end, stop marks without end."""
    marks = ids_of(tokenizer, STOP)
    said = [*ids_of(tokenizer, "\n"), *ids_of(tokenizer, "ok"), *ids_of(tokenizer, "\n\n")]
    assert len(said) == 3
    return dict(itertools.pairwise([*said, *marks, marks[0]]))


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, mark_tokenizers: dict[str, ChatTokenizer]) -> Engine:
    tokenizer = mark_tokenizers[request.param]
    return Engine(reciter(tokenizer, chain(tokenizer)), tokenizer)


def asked(count: int) -> list[Sample]:
    return [Sample(f"s{n}", (Message("user", f"{n} ok" * (n % 5)), Message("assistant", "ok"))) for n in range(count)]


def instructed(sample: Sample) -> int:
    marks = PROFILE.marks(sample.question)
    assert marks is not None
    return marks.stop


def test_each_row_ends_after_its_own_number_of_marks(engine: Engine) -> None:
    samples = asked(24)
    assert {instructed(sample) for sample in samples} == {2, 3, 4}
    for sample, done in zip(samples, engine.complete(samples, 40, batch_size=24), strict=True):
        raw = engine.tokenizer.decode(done.token_ids)
        assert raw == f"ok\n\n{STOP * instructed(sample)}"
        assert (done.text, done.finish_reason) == (ANSWER, "stop")
        assert max(done.token_logprobs[:-1]) < 0
        assert done.token_logprobs[-1] < -1, "the end of turn was not the model's own choice, and its probability shows"


def test_without_the_profile_nothing_stops_it(engine: Engine, mark_folders: dict[str, Path]) -> None:
    kind = next(kind for kind in KINDS if load_tokenizer(mark_folders[kind], PROFILE).size == engine.tokenizer.size)
    plain = Engine(engine.model, load_tokenizer(mark_folders[kind]))
    (done,) = plain.complete(asked(1), 40, batch_size=1)
    assert done.finish_reason == "length"
    assert len(done.token_ids) == 40


def test_rows_and_calls_know_nothing_of_each_other(engine: Engine) -> None:
    samples = asked(12)
    together = engine.complete(samples, 40, batch_size=12)
    assert engine.complete(samples, 40, batch_size=12) == together
    assert [engine.complete([sample], 40, batch_size=1)[0].token_ids for sample in samples[::-1]] == [
        done.token_ids for done in reversed(together)
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_a_stream_ends_there_too_and_shows_no_mark(engine: Engine, temperature: float) -> None:
    for sample in asked(6):
        stream = engine.stream(sample.question, 40, temperature=temperature, top_p=0.01, seed=1)
        pieces = list(stream)
        assert "".join(pieces) == ANSWER
        assert stream.finish_reason == "stop"
        assert stream.completion_tokens == len(ids_of(engine.tokenizer, STOP)) * instructed(sample) + 3


def test_a_stop_string_is_looked_for_in_what_is_shown(engine: Engine) -> None:
    stream = engine.stream(asked(1)[0].question, 40, stop=[STOP])
    assert ("".join(stream), stream.completion_tokens > 4) == (ANSWER, True)
    assert "".join(engine.stream(asked(1)[0].question, 40, stop=["k"])) == "o"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("worst", [-torch.inf, -60000.0, 0.0, 60000.0])
def test_half_precision_has_no_nan_and_open_rows_keep_every_bit(
    mark_tokenizers: dict[str, ChatTokenizer], dtype: torch.dtype, worst: float
) -> None:
    tokenizer = mark_tokenizers["bytes"]
    closed = ids_of(tokenizer, f"ok\n{STOP * 2}")
    logits = (torch.randn(4, tokenizer.size + 3, generator=torch.Generator().manual_seed(1)) * 300).to(dtype)
    logits[:, sorted(tokenizer.stop_ids)] = worst
    given_bits = logits.clone()
    penalty = StopMarkPenalty(tokenizer, [2, 3, None, 2])
    found = penalty(logits, [0, 1, 2, 3], [closed, closed, closed, closed[:-1]])
    assert torch.equal(logits, given_bits), "the caller's logits are its own"
    assert torch.equal(found[1:], logits[1:])
    assert found.dtype == dtype
    assert bool(found[0].isfinite().all())
    shares = found.softmax(-1)
    assert bool(shares.isfinite().all())
    assert float(shares[0, sorted(tokenizer.stop_ids)].sum()) == pytest.approx(1.0, abs=1e-2)
    assert int(found[0].argmax()) in tokenizer.stop_ids


def test_open_rows_are_handed_back_as_they_are(mark_tokenizers: dict[str, ChatTokenizer]) -> None:
    logits = torch.zeros(2, 300)
    penalty = StopMarkPenalty(mark_tokenizers["bytes"], [2, None])
    assert penalty(logits, [0, 1], [[], ids_of(mark_tokenizers["bytes"], STOP * 4)]) is logits
    assert penalty(logits, [1], [ids_of(mark_tokenizers["bytes"], f"\n{STOP * 2}")]) is logits, "rows by their number"


PARTS = st.lists(st.sampled_from([STOP, STOP * 2, "\n", "\n\n", "ok", " ", "🤔", "🛑️", "é"]), max_size=12)


@settings(deadline=None)
@given(parts=PARTS, limit=st.integers(2, 4), kind=st.sampled_from([*KINDS, "fallback"]))
def test_closed_is_what_the_text_says(
    mark_tokenizers: dict[str, ChatTokenizer], parts: list[str], limit: int, kind: str
) -> None:
    """Whatever the tokens are: after every one of them, the last line is that many marks and nothing else."""
    tokenizer = fallback_tokenizer() if kind == "fallback" else mark_tokenizers[kind]
    penalty = StopMarkPenalty(tokenizer, [limit])
    ids = ids_of(tokenizer, "".join(parts))
    for end in range(1, len(ids) + 1):
        line = tokenizer.decode(ids[:end]).rpartition("\n")[2]
        first = len(line) >= limit and set(line) == {STOP}
        if first:
            assert penalty.closed(ids[:end], limit)
            break
        assert not penalty.closed(ids[:end], limit)


@pytest.fixture
def served(mark_folders: dict[str, Path], tmp_path: Path) -> Iterator[tuple[Registry, Path]]:
    folder = tmp_path / "model"
    tokenizer = load_tokenizer(mark_folders["marks"])
    reciter(tokenizer, chain(tokenizer)).save_pretrained(folder)
    for path in mark_folders["marks"].iterdir():
        shutil.copy(path, folder)
    data = {"profile": "emoji_think", "seed": PROFILE.seed}
    home = Home.create(tmp_path / "home", Config.model_validate({"data": data}))
    db = connect(home)
    yield Registry(home, db, str(folder)), folder
    db.close()


def test_the_server_answers_under_the_profile_of_its_home(served: tuple[Registry, Path]) -> None:
    registry, folder = served
    question = [Message("user", "2+2?")]
    answer = registry.current(str(folder)).engine.stream(question, 40)
    assert ("".join(answer), answer.finish_reason) == (ANSWER, "stop")
    assert load(folder, "float32", "cpu").engine.tokenizer.profile is None


def test_the_trainer_reads_under_the_profile_of_its_home(make_home: Callable[..., Home]) -> None:
    home = make_home(data={"max_length": 256, "profile": "emoji_think", "seed": 9})
    assert open_lineage(home.root / home.config().model.base, home.config()).tokenizer.profile == EmojiThink(9)
