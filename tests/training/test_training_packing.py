"""From conversations to loss: in every template the answers and their ends of turn are trained and nothing else, and
how documents are packed changes neither loss nor gradient."""

import json
import re
from itertools import count
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from model_families import family_model
from stokehold.core.records import Message, Sample
from stokehold.data.batches import Batch, Batches, Cursor
from stokehold.data.formats import to_row
from stokehold.data.tokenizer import CHATML, ChatTokenizer, load_tokenizer, train_tokenizer
from stokehold.training import attention
from stokehold.training.forward import trained_logits

HEADERS = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
"""As Llama 3."""

MODEL_ROLE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}
    {{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
"""As Gemma, which has no system role."""

INSTRUCTIONS = """\
{{- bos_token }}
{%- set said = namespace(system='', last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set said.system = message.content + '\\n\\n' %}{% endif %}
    {%- if message.role == 'user' %}{% set said.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (said.system if loop.index0 == said.last else '') + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
"""As Mistral: the system's words go before the last question, so that earlier turns change as a talk goes on."""

TEMPLATES = {
    "chatml": (CHATML, "<|im_start|>", "<|im_end|>", ""),
    "chatml_without_marks": (re.sub(r"\{%-? (end)?generation %\}", "", CHATML), "<|im_start|>", "<|im_end|>", ""),
    "headers": (HEADERS, "<|start_header_id|>", "<|eot_id|>", ""),
    "model_role": (MODEL_ROLE, "<start_of_turn>", "<end_of_turn>", ""),
    "instructions": (INSTRUCTIONS, "<s>", "</s>", " "),
}
"""By name: the template, the token that begins, the one that ends a turn, and what the model says before an answer."""

SPECIAL = ("<|end_header_id|>", "[INST]", "[/INST]", *(token for _, *pair, _ in TEMPLATES.values() for token in pair))
WORDS = st.lists(
    st.sampled_from(["why", "how", "because", "it", "is", "so", "12", "é", "漢\nand\n\nthen"]), min_size=1, max_size=8
)
SAID = WORDS.map(" ".join).filter(lambda text: text.strip())
TALKS = st.tuples(st.none() | SAID, st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3))
"""A system prompt or none, and questions with their answers."""

FOLDERS = count()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatTokenizer]:
    root = tmp_path_factory.mktemp("templates")
    train_tokenizer(["why is it so and how because it is so then 12 é"] * 20, 330, root / "trained")
    vocabulary = Tokenizer.from_file(str(root / "trained" / "tokenizer.json"))
    vocabulary.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys(SPECIAL)])
    found = {}
    for name, (template, begin, end, _) in TEMPLATES.items():
        folder = root / name
        folder.mkdir()
        vocabulary.save(str(folder / "tokenizer.json"))
        tree = {"chat_template": template, "bos_token": begin, "eos_token": end}
        (folder / "tokenizer_config.json").write_text(json.dumps(tree))
        found[name] = load_tokenizer(folder)
    return found


def sample(talk: tuple[str | None, list[tuple[str, str]]], name: str = "s") -> Sample:
    system, turns = talk
    opening = [] if system is None else [Message("system", system)]
    said = [Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    return Sample(name, (*opening, *said))


def trained_texts(tokenizer: ChatTokenizer, one: Sample) -> list[str]:
    """The text of every stretch of trained tokens, document after document."""
    found = []
    for document in tokenizer.encode(one):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], document.trained, [0]])))
        found += [tokenizer.decode(document.ids[a:b].tolist(), keep_special=True) for a, b in edges.reshape(-1, 2)]
    return found


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@settings(max_examples=40)
@given(talk=TALKS)
def test_the_answers_and_their_ends_are_trained_and_nothing_else(
    tokenizers: dict[str, ChatTokenizer], name: str, talk: tuple[str | None, list[tuple[str, str]]]
) -> None:
    _, _, end, before = TEMPLATES[name]
    answers = [answer if name.startswith("chatml") else answer.strip() for _, answer in talk[1]]
    assert trained_texts(tokenizers[name], sample(talk)) == [before + answer + end for answer in answers]


@settings(max_examples=40)
@given(talk=TALKS)
def test_generation_marks_change_nothing(
    tokenizers: dict[str, ChatTokenizer], talk: tuple[str | None, list[tuple[str, str]]]
) -> None:
    assert tokenizers["chatml"].template_hash != tokenizers["chatml_without_marks"].template_hash
    (marked,), (plain,) = (tokenizers[name].encode(sample(talk)) for name in ("chatml", "chatml_without_marks"))
    assert marked.ids.tolist() == plain.ids.tolist()
    assert marked.trained.tolist() == plain.trained.tolist()


@pytest.mark.parametrize(("name", "documents"), [("chatml", 1), ("headers", 1), ("model_role", 1), ("instructions", 2)])
def test_what_the_system_says_is_read_and_not_trained(
    tokenizers: dict[str, ChatTokenizer], name: str, documents: int
) -> None:
    tokenizer = tokenizers[name]
    assert tokenizer.folds_system == (name == "model_role")
    found = tokenizer.encode(sample(("be so", [("why", "it is"), ("how", "because")])))
    assert len(found) == documents
    for document in found:
        text = tokenizer.decode(document.ids.tolist())
        assert text.count("be so") == 1
        assert "be so" not in tokenizer.decode(document.ids[document.trained].tolist())


def talks(number: int) -> list[Sample]:
    """Conversations of one to three turns; every other one begins with a system prompt."""
    said = ["why", "is", "it", "so", "and", "how", "because", "it", "is", "so", "then", "12"]
    made = []
    for n in range(number):
        turns = [(" ".join(said[: 1 + (n * 7 + t) % 11]), " ".join(said[(n + t) % 5 :])) for t in range(1 + n % 3)]
        made.append(sample(("be so" if n % 2 else None, turns), f"row{n}"))
    return made


def packed(tokenizer: ChatTokenizer, samples: list[Sample], folder: Path, capacity: int, seed: int = 0) -> list[Batch]:
    rows = folder / f"rows{next(FOLDERS)}.jsonl"
    rows.write_bytes(b"".join(orjson.dumps(to_row(one)) + b"\n" for one in samples))
    options = {"window_rows": 16, "max_length": 512, "seed": seed, "epochs": 1, "cursor": Cursor.start()}
    with Batches(rows, tokenizer, capacity=capacity, ahead=False, **options) as batches:
        return list(batches)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_masked_share_is_what_is_not_answered(
    tokenizers: dict[str, ChatTokenizer], name: str, tmp_path: Path
) -> None:
    """Counted apart from the mask: per answer the tokens that inference would generate for it."""
    tokenizer, samples = tokenizers[name], talks(20)
    batches = packed(tokenizer, samples, tmp_path, capacity=300)
    answers = [one.messages[: at + 1] for one in samples for at, m in enumerate(one.messages) if m.role == "assistant"]
    expected = sum(len(tokenizer.answer_ids(messages)[1]) for messages in answers)
    assert sum(int(batch.trained.sum()) for batch in batches) == expected
    tokens = sum(len(document.ids) for one in samples for document in tokenizer.encode(one))
    assert sum(len(batch.ids) for batch in batches) == tokens
    assert 0.15 < 1 - expected / tokens < 0.95
    for batch in batches:
        firsts = np.cumsum([0, *batch.lengths[:-1]])
        assert not batch.trained[firsts].any(), "nothing precedes the first token of a document"
        ends = [i for i in np.flatnonzero(batch.trained) if i + 1 == len(batch.ids) or not batch.trained[i + 1]]
        assert set(batch.ids[ends].tolist()) <= tokenizer.stop_ids


@pytest.fixture(scope="module")
def models(tokenizers: dict[str, ChatTokenizer]) -> list[PreTrainedModel]:
    """One with full attention and a tied head, one with windows and soft caps, one with positions of its own."""
    attention.register()
    size = max(tokenizer.size for tokenizer in tokenizers.values())
    long = {"max_position_embeddings": 512}
    found = [family_model(name, vocab_size=size, **long) for name in ("qwen3", "gemma2")]
    found.append(family_model("gpt2", vocab_size=size, n_positions=512))
    for model in found:
        model.set_attn_implementation(attention.NAME)
    return found


def trained(model: PreTrainedModel, batches: list[Batch]) -> tuple[float, torch.Tensor]:
    """Summed loss in nats over an epoch, and the gradient of it."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        targets = torch.from_numpy(batch.ids[batch.trained])
        loss = cross_entropy(trained_logits(model, batch), targets, reduction="sum")
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.mark.parametrize("name", ["chatml", "instructions"])
def test_how_documents_are_packed_changes_neither_loss_nor_gradient(
    tokenizers: dict[str, ChatTokenizer], models: list[PreTrainedModel], name: str, tmp_path: Path
) -> None:
    tokenizer, samples = tokenizers[name], talks(12)
    apart = packed(tokenizer, samples, tmp_path, capacity=1)
    assert len(apart) == len(samples)
    for model in models:
        loss, gradient = trained(model, apart)
        for capacity, seed in ((200, 0), (450, 5), (10_000, 1)):
            together = packed(tokenizer, samples, tmp_path, capacity, seed)
            assert len(together) < len(apart)
            found, direction = trained(model, together)
            assert found == pytest.approx(loss, rel=1e-6)
            assert float((direction - gradient).norm() / gradient.norm()) < 1e-5
