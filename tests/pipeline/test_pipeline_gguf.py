"""GGUF files hold the same model: read back by transformers' own reader, and by llama.cpp's package where it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel

from model_families import family_model
from stokehold.core.errors import InputError, IntegrityError
from stokehold.data.tokenizer import CHATML, load_tokenizer, train_tokenizer
from stokehold.pipeline.gguf_export import TYPES, interleaved, write_gguf
from stokehold.pipeline.gguf_tokenizer import PATTERNS, cut_alike, pre_tokenizer, read_vocabulary
from tiny_world import facts

IDS = torch.arange(5, 30)[None]
PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 5_000.0}}
READ: dict[str, dict[str, Any]] = {
    "llama": PLAIN_ROPE,
    "llama_tied": {"attention_bias": True},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "gemma2": {"query_pre_attn_scalar": 16},
}
"""Families that transformers reads from GGUF, in a form that llama.cpp computes too."""


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A model folder of a family, with a tokenizer that has five tokens fewer than the model has rows."""

    def make(family: str, **changes: Any) -> Path:
        train_tokenizer((m["content"] for row in facts(200) for m in row["messages"]), 400, tmp_path)
        rows = load_tokenizer(tmp_path).size + 5
        family_model(family, vocab_size=rows, hidden_size=64, **changes).save_pretrained(tmp_path)
        return tmp_path

    return make


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("family", sorted(READ))
def test_another_reader_finds_the_same_model(folder: Callable[..., Path], family: str) -> None:
    path = folder(family, **READ[family])
    write_gguf(path, path / "model.gguf", "f32", "a-name")
    own = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = own.config
    if family == "mistral":  # to this reader it is a Llama, as it is to llama.cpp
        config = type(family_model("llama_tied").config)(**{**config.to_dict(), "model_type": "llama"})
    read = AutoModelForCausalLM.from_pretrained(path, gguf_file="model.gguf", dtype=torch.float32, config=config)
    assert torch.allclose(logits(read), logits(own), atol=1e-5)


def test_queries_and_keys_of_llama_are_laid_out_in_pairs() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(("kind", "worst"), [("f32", 0.0), ("f16", 2e-3), ("bf16", 1e-2), ("q8_0", 1e-2)])
def test_types_hold_the_weights_to_their_precision(folder: Callable[..., Path], kind: str, worst: float) -> None:
    path = folder("qwen3")
    write_gguf(path, path / "model.gguf", kind, "a-name")
    reader = gguf.GGUFReader(path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    own = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
    embedding = tensors["token_embd.weight"]
    assert embedding.tensor_type == TYPES[kind][0]
    assert tensors["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert "output.weight" not in tensors  # tied
    values = gguf.quants.dequantize(embedding.data, embedding.tensor_type)
    assert np.abs(values - own["model.embed_tokens.weight"].numpy()).max() <= worst


def test_norms_of_gemma_carry_their_one(folder: Callable[..., Path]) -> None:
    path = folder("gemma")
    write_gguf(path, path / "model.gguf", "f32", "a-name")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path / "model.gguf").tensors}
    own = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
    assert np.allclose(tensors["output_norm.weight"], own["model.norm.weight"].numpy() + 1)


def test_llama3_frequencies_are_those_of_the_model(folder: Callable[..., Path]) -> None:
    path = folder("llama")
    write_gguf(path, path / "model.gguf", "f32", "a-name")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path / "model.gguf").tensors}
    own = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    plain = 10_000.0 ** -(torch.arange(0, 16, 2) / 16)
    found = plain / torch.tensor(np.array(tensors["rope_freqs.weight"]))
    assert torch.allclose(found, own.model.rotary_emb.inv_freq, rtol=1e-5)
    assert tensors["rope_freqs.weight"].max() == pytest.approx(8.0)


def test_vocabulary_and_template_come_along(folder: Callable[..., Path]) -> None:
    path = folder("qwen3")
    tokenizer = load_tokenizer(path)
    found = read_vocabulary(path, tokenizer.size + 5)
    (end,) = tokenizer.stop_ids
    assert found.special["eos"] == end
    assert found.types[end] == gguf.TokenType.CONTROL
    assert found.tokens[end] == "<|im_end|>"
    assert found.tokens[-1] == "[PAD" + str(tokenizer.size + 4) + "]"
    assert found.types[-5:] == (gguf.TokenType.UNUSED,) * 5
    assert (found.begins, found.ends) == (False, False)
    assert "generation %}" not in found.template
    assert found.template.count("{#- #}") == CHATML.count("generation %}")
    with pytest.raises(InputError, match="rows of the model"):
        read_vocabulary(path, tokenizer.size - 1)


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_known_patterns_are_named(name: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    steps = [
        pre_tokenizers.Split(Regex(PATTERNS[name]), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    assert pre_tokenizer(json.loads(tokenizer.to_str())) == (name, True)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert pre_tokenizer(json.loads(tokenizer.to_str())) == ("gpt-2", True)


def test_a_pattern_of_its_own_is_called_near_and_compared(folder: Callable[..., Path]) -> None:
    path = folder("qwen3")
    assert pre_tokenizer(json.loads((path / "tokenizer.json").read_text())) == ("qwen2", False)
    texts = [m["content"] for row in facts(20) for m in row["messages"]]
    assert cut_alike(path, "qwen2", texts) == 40
    assert cut_alike(path, "qwen2", ["'sky'", "is it the sky?"]) == 1


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("gpt_neox", {}, "not written for gpt_neox"),
        ("phi3", {}, "not written for phi3"),
        ("mistral", {}, "sliding window"),
        ("gemma2", {}, "query_pre_attn_scalar"),
        ("qwen3", {"hidden_act": "relu"}, "activation relu"),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope type linear"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_by_name(
    folder: Callable[..., Path], family: str, changes: dict[str, Any], said: str
) -> None:
    path = folder(family, **changes)
    with pytest.raises(InputError, match=said):
        write_gguf(path, path / "model.gguf", "f32", "a-name")
    assert not (path / "model.gguf").exists()


def test_a_tokenizer_with_byte_fallback_is_refused(folder: Callable[..., Path]) -> None:
    path = folder("qwen3")
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.save(str(path / "tokenizer.json"))
    with pytest.raises(InputError, match="byte-level"):
        read_vocabulary(path, 10)


def test_weights_beyond_float16_are_refused(folder: Callable[..., Path]) -> None:
    path = folder("qwen3")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[0, 0] = 1e6
    model.save_pretrained(path)
    with pytest.raises(IntegrityError, match="too large for float16"):
        write_gguf(path, path / "model.gguf", "f16", "a-name")
