"""A tokenizer and random models, small enough to make on the spot, decided enough to have no ties."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stokehold.core.records import Message, Sample
from stokehold.data.tokenizer import ChatTokenizer, load_tokenizer, train_tokenizer

TEXT = "the quick brown fox jumps over a lazy dog and says é ü 日本 five times before it sleeps again"
WORDS = TEXT.split()
CONTEXT = 160
GPT2_KEYS = ("vocab_size", "pad_token_id", "eos_token_id", "tie_word_embeddings")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer((" ".join(WORDS[k:] + WORDS[:k]) for k in range(len(WORDS))), 320, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> ChatTokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def make_model(tokenizer: ChatTokenizer) -> Callable[..., PreTrainedModel]:
    """Models by kind and seed, with scaled weights: their logits lie far apart, and they stop now and then.

    qwen rotates positions, gpt2 looks them up, gemma alternates sliding and full attention.
    """

    def make(kind: str = "qwen", seed: int = 0) -> PreTrainedModel:
        shape = {
            "vocab_size": tokenizer.size,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": False,
            "pad_token_id": tokenizer.pad_id,
            "eos_token_id": min(tokenizer.stop_ids),
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: PreTrainedModel
            if kind == "qwen":
                model = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=2, attention_dropout=0.1, **shape))
            elif kind == "gpt2":
                heads = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": CONTEXT}
                model = GPT2LMHeadModel(GPT2Config(**heads, **{k: shape[k] for k in GPT2_KEYS}))
            else:
                layers = ["sliding_attention", "full_attention"]
                config = Gemma3TextConfig(num_hidden_layers=2, sliding_window=12, layer_types=layers, **shape)
                model = Gemma3ForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4)
            for stop in tokenizer.stop_ids:
                model.get_output_embeddings().weight[stop].mul_(2)
        return model

    return make


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Conversations of many lengths, one of them with three turns."""
    made = [_sample(f"s{k}", " ".join(WORDS[: 1 + k * 5 % 17] * (1 + k % 3)), WORDS[k % 7 :][:4]) for k in range(22)]
    first = made[3].messages
    return [*made, Sample("turns", (*first, Message("user", "and then?"), Message("assistant", "the end")))]


def _sample(name: str, question: str, answer: list[str]) -> Sample:
    return Sample(name, (Message("user", question), Message("assistant", " ".join(answer))))
