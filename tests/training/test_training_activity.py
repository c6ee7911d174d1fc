"""Where a model moved between two snapshots, against numbers worked by hand and laws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from stokehold.training import activity
from stokehold.training.activity import adapter_stats, layer_activity, movement

Weights = dict[str, torch.Tensor]

NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.10.mlp.up_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
)


def ones(size: int = 4) -> Weights:
    return {name: torch.ones(size) for name in NAMES}


def test_the_relative_change_by_hand_in_the_order_of_the_model() -> None:
    before, after = ones(), ones()
    after["model.embed_tokens.weight"] = torch.tensor([1.0, 1.0, 1.0, 2.0])
    after["model.layers.0.self_attn.q_proj.weight"] = torch.full((4,), 4.0)
    after["lm_head.weight"] = torch.zeros(4)
    found = layer_activity(before, after)
    assert list(found) == ["embed", "layer_0", "layer_10", "norms", "head"]
    assert found == pytest.approx(
        {"embed": 1 / 2, "layer_0": math.sqrt(36 / 8), "layer_10": 0.0, "head": 1.0, "norms": 0.0}
    )


def test_what_cannot_be_told_is_unknown() -> None:
    before = ones() | {"model.norm.weight": torch.zeros(4), "lm_head.weight": torch.full((4,), math.nan)}
    after = ones() | {"model.embed_tokens.weight": torch.ones(5)}
    found = layer_activity(before, after)
    assert "embed" not in found, "of another shape now"
    assert (found["norms"], found["head"]) == (None, None)
    assert layer_activity({}, after) == {}


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(vocab_size=32, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1),
        GPT2Config(vocab_size=32, n_embd=16, n_head=2, n_positions=8),
        GPTNeoXConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_attention_heads=2),
    ],
    ids=lambda config: config.model_type,
)
def test_every_weight_of_a_family_has_a_place(config: PreTrainedConfig) -> None:
    config.num_hidden_layers = 2
    weights = AutoModelForCausalLM.from_config(config).state_dict()
    found = layer_activity(weights, weights)
    assert set(found) == {"embed", "layer_0", "layer_1", "norms", "head"}
    assert set(found.values()) == {0.0}


VALUES = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12)


@given(VALUES, st.data(), st.sampled_from([-8.0, 0.125, 2.0, 1024.0]))
def test_a_change_of_unit_changes_nothing(values: list[float], data: st.DataObject, scale: float) -> None:
    moved = data.draw(st.lists(st.floats(-10, 10, width=32), min_size=len(values), max_size=len(values)))
    before, after = torch.tensor(values, dtype=torch.float64), torch.tensor(moved, dtype=torch.float64)
    plain = layer_activity({"h.0.w": before}, {"h.0.w": after})
    scaled = layer_activity({"h.0.w": before * scale}, {"h.0.w": after * scale})
    assert plain == scaled, "powers of two are exact"
    assert layer_activity({"h.0.w": before}, {"h.0.w": before})["layer_0"] in (0.0, None)
    norm = math.sqrt(math.fsum(value * value for value in values))
    if norm:
        distance = math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(moved, values, strict=True)))
        assert plain["layer_0"] == pytest.approx(distance / norm)


def test_pieces_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(1)
    before = {name: torch.randn(7, 11, generator=random, dtype=torch.bfloat16) for name in NAMES}
    after = {name: tensor + torch.randn(7, 11, generator=random) for name, tensor in before.items()}
    whole = layer_activity(before, after)
    monkeypatch.setattr(activity, "PIECE", 5)
    assert layer_activity(before, after) == pytest.approx(whole, rel=1e-12)


Q, V = "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.1.self_attn.v_proj"


def adapters(a: float, b: float) -> Weights:
    parts = ("lora_A.default.weight", "lora_B.default.weight")
    return {f"{module}.{part}": torch.full((2, 2), value) for module, value in ((Q, a), (V, b)) for part in parts}


def test_adapters_by_hand_and_the_dead_one_by_name() -> None:
    frozen = {f"{Q}.base_layer.weight": torch.ones(3, 3)}
    found = adapter_stats(adapters(1.0, 5.0) | frozen, adapters(3.0, 5.0) | frozen, adapters(0.5, 0.0))
    assert found == {
        "adapters": {
            Q: {"update_norm": pytest.approx(math.sqrt(8 * 4)), "gradient_norm": pytest.approx(math.sqrt(8 / 4))},
            V: {"update_norm": 0.0, "gradient_norm": 0.0},
        },
        "dead_layers": [V],
    }


def test_without_gradients_nothing_is_declared_dead() -> None:
    found = adapter_stats(adapters(1.0, 5.0), adapters(1.0, 5.0), {})
    assert found["dead_layers"] == []
    assert found["adapters"][Q] == {"update_norm": 0.0, "gradient_norm": None}
    assert adapter_stats(ones(), ones(), ones()) == {}


def test_an_adapter_that_stands_still_under_a_gradient_is_not_dead() -> None:
    assert adapter_stats(adapters(1.0, 1.0), adapters(1.0, 1.0), adapters(0.0, 2.0))["dead_layers"] == [Q]


def test_the_status_gets_both_or_knows_that_it_does_not() -> None:
    unknown = {"layer_activity_summary": None, "lora_stats": None}
    assert movement(None, ones(), {}) == unknown
    assert movement(adapters(1.0, 1.0), ones(), {}) == unknown, "nothing in common, as after a merge"
    assert movement(ones(), ones(), {}) == {
        "layer_activity_summary": layer_activity(ones(), ones()),
        "lora_stats": None,
    }
    found = movement(adapters(1.0, 1.0), adapters(2.0, 1.0), {})
    assert found["layer_activity_summary"] == {"layer_0": 1.0, "layer_1": 0.0}
    assert found["lora_stats"] == adapter_stats(adapters(1.0, 1.0), adapters(2.0, 1.0), {})
