"""Tokenizer folders in the shapes of the families that users bring: templates of our own writing, real tokenizers."""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import orjson
import pytest
from tokenizers import AddedToken, Tokenizer

from stokehold.core.records import Message, Provenance, Sample
from stokehold.data.formats import to_row
from stokehold.data.tokenizer import ChatTokenizer, load_tokenizer, train_tokenizer

SYLLABLES = ("au", "di", "ence", "tion", "ment", "ble", "con", "re", "un", "ly")

REWRITING = """\
{%- set asked = namespace(at=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set asked.at = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- set answer = message.content %}
        {%- if '</think>' in answer %}
            {%- set thought = answer.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set answer = answer.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > asked.at %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- answer }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
"""As Qwen3: earlier answers lose their thinking block, the last one always has it; no generation marks."""

HEADERS = """\
{%- for message in messages %}
    {%- if loop.first %}{{ bos_token }}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
"""As Llama-3: header tokens, a begin-of-text token, contents trimmed."""

MODEL_ROLE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
    {{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
"""As Gemma: the model has a role name of its own, a system turn is refused."""

SHAPES = {
    "chatml": (None, (), {}),
    "rewriting": (REWRITING, ("<|im_start|>", "<|im_end|>"), {"eos_token": "<|im_end|>"}),
    "headers": (
        HEADERS,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": {"__type": "AddedToken", "content": "<|eot_id|>"}},
    ),
    "model_role": (
        MODEL_ROLE,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>"},
    ),
}


def puzzle(number: int, chance: random.Random) -> tuple[Message, ...]:
    """A question and an answer in the manner of the syllable puzzles; lengths vary."""
    tiles = chance.choices(SYLLABLES, k=chance.randint(2, 12))
    bank = " ".join(f'"{tile}"' for tile in tiles)
    gold = ",".join(f'"{tile}"' for tile in tiles[: len(tiles) // 2])
    question = f"Puzzle {number}\n\n1. ___ ___ - a large group of listeners\n\nBank: {bank}\n"
    return Message("user", question), Message("assistant", f'{{"ans_num":1,"syllables":[{gold}]}}')


def corpus() -> list[str]:
    chance = random.Random("corpus")
    return [message.content for number in range(300) for message in puzzle(number, chance)]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder per shape, all with the same vocabulary but for their special tokens."""
    root = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer(corpus(), 700, root / "chatml")
    for name, (template, special, config) in SHAPES.items():
        if template is not None:
            tokenizer = Tokenizer.from_file(str(root / "chatml" / "tokenizer.json"))
            tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
            tokenizer.add_tokens(["<think>", "</think>"])
            (root / name).mkdir()
            tokenizer.save(str(root / name / "tokenizer.json"))
            tree = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **config}
            (root / name / "tokenizer_config.json").write_text(json.dumps(tree))
    return {name: root / name for name in SHAPES}


@pytest.fixture(scope="session")
def tokenizers(folders: dict[str, Path]) -> dict[str, ChatTokenizer]:
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def chatml(tokenizers: dict[str, ChatTokenizer]) -> ChatTokenizer:
    return tokenizers["chatml"]


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[Iterable[Sample]], Path]:
    """Writes samples as the canonical rows of a dataset."""

    def write(samples: Iterable[Sample]) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"".join(orjson.dumps(to_row(sample)) + b"\n" for sample in samples))
        return path

    return write


@pytest.fixture
def puzzles() -> Callable[[int], list[Sample]]:
    """`count` distinct samples with ids row0, row1, …"""

    def make(count: int) -> list[Sample]:
        chance = random.Random("puzzles")
        return [Sample(f"row{n}", puzzle(n, chance), provenance=Provenance(line=n + 1)) for n in range(count)]

    return make
