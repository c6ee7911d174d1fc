"""The memory estimate: its laws, its parts counted by hand, and real training steps measured beside it."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from model_families import CAUSAL, family_model
from stokehold.core import memory
from stokehold.core.config import Config, parse_config
from stokehold.core.memory import Matrix, ModelShape, adapter_parameters, estimate, largest_batch, most_answers
from stokehold.store.models.weights import read_shape

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"
NEAR = (0.8, 1.5)
"""Estimate over measured."""

LAYERS, HIDDEN, INNER, VOCABULARY = 4, 64, 128, 1000
BLOCK = (
    *(Matrix(name, HIDDEN, HIDDEN) for name in ("q_proj", "o_proj")),
    *(Matrix(name, HIDDEN // 2, HIDDEN) for name in ("k_proj", "v_proj")),
    *(Matrix(name, INNER, HIDDEN) for name in ("gate_proj", "up_proj")),
    Matrix("down_proj", HIDDEN, INNER),
)
SHAPE = ModelShape(
    parameters=VOCABULARY * HIDDEN + LAYERS * sum(m.parameters for m in BLOCK) + (2 * LAYERS + 1) * HIDDEN,
    matrices=BLOCK * LAYERS,
    layers=LAYERS,
    hidden=HIDDEN,
    vocabulary=VOCABULARY,
    key_value_width=HIDDEN // 2,
    context_tokens=512,
)


def config(**tables: dict[str, Any]) -> Config:
    return parse_config({"data": {"max_length": 128}, **tables})


def test_full_training_is_counted_by_hand() -> None:
    found = estimate(SHAPE, config())
    assert (found.weights, found.gradients, found.optimizer) == tuple(4 * n * SHAPE.parameters for n in (1, 1, 2))
    assert found.snapshot == found.weights + found.optimizer
    assert found.step == found.weights + found.gradients + found.optimizer + found.activations + found.logits
    assert found.training == found.step + found.snapshot + memory.RUNTIME_BYTES
    halved = estimate(SHAPE, config(model={"dtype": "bfloat16"}))
    assert (halved.weights, halved.optimizer) == (2 * SHAPE.parameters, 12 * SHAPE.parameters)


def test_adapters_train_themselves_alone() -> None:
    chosen = config(model={"method": "lora"}, adapter={"rank": 4, "targets": ["q_proj", "down_proj"]})
    expected = LAYERS * 4 * ((HIDDEN + HIDDEN) + (HIDDEN + INNER))
    assert adapter_parameters(SHAPE, chosen) == expected
    found = estimate(SHAPE, chosen)
    assert found.gradients == 4 * expected
    assert found.snapshot == 3 * 4 * expected
    assert found.weights == 4 * (SHAPE.parameters + expected)
    dora = config(model={"method": "lora"}, adapter={"rank": 4, "targets": ["q_proj", "down_proj"], "dora": True})
    assert adapter_parameters(SHAPE, dora) == expected + LAYERS * 2 * HIDDEN
    everywhere = config(model={"method": "lora"}, adapter={"rank": 1})
    assert adapter_parameters(SHAPE, everywhere) == sum(m.rows + m.columns for m in SHAPE.matrices)


def test_the_optimisers_keep_what_their_formats_say() -> None:
    kept = {
        name: estimate(SHAPE, config(training={"optimizer": name}, devices={"trainer": "cuda:0"}))
        for name in ("adamw", "adamw_8bit", "paged_adamw", "muon")
    }
    assert kept["adamw_8bit"].optimizer * 3.5 < kept["adamw"].optimizer
    assert (kept["paged_adamw"].optimizer, kept["paged_adamw"].paged) == (0, 8 * SHAPE.parameters)
    matrices = sum(m.parameters for m in SHAPE.matrices)
    scratch = memory.MUON_SCRATCH * 2 * HIDDEN * INNER
    assert kept["muon"].optimizer == 4 * matrices + 8 * (SHAPE.parameters - matrices) + scratch
    quantised = estimate(SHAPE, config(model={"method": "qlora"}, devices={"trainer": "cuda:0"}))
    assert quantised.weights < kept["adamw"].weights
    assert quantised.device == max(quantised.step, quantised.answers)


def test_the_head_works_on_chunks_as_training_cuts_them() -> None:
    from stokehold.training.crossentropy import CHUNK_BYTES

    assert memory.LOGIT_CHUNK_BYTES == CHUNK_BYTES
    few, many = (estimate(SHAPE, config(training={"micro_batch_tokens": n})) for n in (10**5, 10**6))
    assert few.logits == many.logits
    assert few.activations * 10 == pytest.approx(many.activations, rel=1e-6)


tables = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {
                "method": st.sampled_from(["full", "lora", "qlora"]),
                "dtype": st.sampled_from(["float32", "bfloat16"]),
            }
        ),
        "training": st.fixed_dictionaries(
            {
                "micro_batch_tokens": st.integers(16, 10**6),
                "gradient_checkpointing": st.booleans(),
                "optimizer": st.sampled_from(["adamw", "adamw_8bit", "paged_adamw", "muon"]),
            }
        ),
        "devices": st.fixed_dictionaries({"trainer": st.sampled_from(["cpu", "cuda:0"])}),
    }
)


@settings(max_examples=200, deadline=None)
@given(tables, st.integers(0, 2**38))
def test_what_is_suggested_fits_and_little_more_would(given_tables: dict[str, Any], room: int) -> None:
    chosen = config(**given_tables)

    def needs(tokens: int) -> int:
        training = chosen.training.model_copy(update={"micro_batch_tokens": tokens})
        return estimate(SHAPE, chosen.model_copy(update={"training": training})).training

    tokens = largest_batch(SHAPE, chosen, room)
    if tokens is None:
        assert needs(chosen.data.max_length) > room
        return
    assert needs(tokens) <= room
    most = max(chosen.training.micro_batch_tokens, chosen.data.max_length)
    assert tokens > most - memory.ROUND_TOKENS or needs(tokens + memory.ROUND_TOKENS) > room


@given(st.integers(1, 4096), st.integers(0, 2**36))
def test_as_many_answers_are_suggested_as_fit(batch: int, room: int) -> None:
    chosen = config(evaluation={"batch_size": batch})

    def needs(answers: int) -> int:
        evaluation = chosen.evaluation.model_copy(update={"batch_size": answers})
        return estimate(SHAPE, chosen.model_copy(update={"evaluation": evaluation})).evaluating

    found = most_answers(SHAPE, chosen, room)
    assert needs(found or 1) <= room or found is None
    assert found == batch or needs((found or 0) + 1) > room


def test_checkpointing_activations_costs_less_memory_and_more_tokens_cost_more() -> None:
    plain, less = (
        estimate(SHAPE, config(training={"gradient_checkpointing": on, "micro_batch_tokens": 4096}))
        for on in (False, True)
    )
    assert less.activations < plain.activations
    assert less.optimizer == plain.optimizer
    short = config(evaluation={"max_new_tokens": 16})
    assert estimate(SHAPE, short, prompt_tokens=10).evaluation < estimate(SHAPE, short).evaluation


@pytest.mark.parametrize("family", CAUSAL)
def test_headers_tell_the_shape_that_the_model_has(family: str, tmp_path: Path) -> None:
    model = family_model(family)
    model.save_pretrained(tmp_path)
    found = read_shape(tmp_path)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (found.layers, found.hidden, found.vocabulary, found.context_tokens) == (2, 32, 96, 128)
    layers = [p for name, p in model.named_parameters() if re.search(r"\.\d+\..*weight$", name) and p.ndim == 2]
    assert sum(m.parameters for m in found.matrices) == sum(parameter.numel() for parameter in layers)


def test_a_tied_head_that_was_written_all_the_same_counts_once(tmp_path: Path) -> None:
    model = family_model("qwen3")
    tensors = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    assert "lm_head.weight" in tensors
    save_file(tensors, tmp_path / "model.safetensors")
    model.config.save_pretrained(tmp_path)
    assert read_shape(tmp_path).parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memory_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", ["small", "lora"])
def test_the_estimate_is_near_what_real_steps_take(benchmark: ModuleType, case: str) -> None:
    found = benchmark.run(case)
    assert found["activations_mib"] > 200, "the shape is too small to say much"
    low, high = NEAR
    assert low < found["ratio"] < high, found
