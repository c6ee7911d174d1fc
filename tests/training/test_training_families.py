"""Every family of models trains packed as its authors' attention would train it document by document, or is refused.

`python tests/training/test_training_families.py` writes the golden losses anew; look at the difference before
committing it: they are the arithmetic of whole models, and only a change of that may change them.
"""

import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model_families import CAUSAL, EXPERTS, LONG, SHAPE, VOCABULARY, WINDOW, family_model, fill, uniform
from stokehold.core.errors import InputError
from stokehold.data.batches import Batch, Cursor
from stokehold.training import attention, support
from stokehold.training.attention import BLOCK, Sight, documents_attention
from stokehold.training.forward import project, trained_logits, trained_states

GOLDEN = Path(__file__).with_name("golden_losses.json")
GOLDEN_LENGTHS = (9, 1, WINDOW, 21, 2, 30)
ERROR = 1e-5
"""Relative: float32 sums taken in another order differ by a tenth of it."""

NEAR_WINDOW = st.sampled_from([1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 3 * WINDOW + 1])
LENGTHS = st.lists(NEAR_WINDOW | st.integers(1, 40), min_size=1, max_size=5).filter(lambda sizes: max(sizes) > 1)

attention.register()


def packed_batch(lengths: tuple[int, ...], seed: int = 0, vocabulary: int = VOCABULARY) -> Batch:
    """Documents of random tokens in one row; about two thirds of the tokens are trained, never a first one."""
    positions = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])
    drawn = np.random.Philox(key=seed).random_raw(2 * len(positions)).reshape(2, -1)
    trained = (positions > 0) & (drawn[1] % 3 > 0)
    trained[int(np.argmax(positions))] = True
    ids = (3 + drawn[0] % (vocabulary - 3)).astype(np.int64)
    return Batch(ids, trained, positions, lengths, ("row",), 1, Cursor.start(), "batch")


def packing(name: str, **changes: object) -> PreTrainedModel:
    model = family_model(name, **changes)
    model.set_attn_implementation(attention.NAME)
    return model


def targets(batch: Batch) -> torch.Tensor:
    return torch.from_numpy(batch.ids[batch.trained])


def logits_alone(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """What `trained_logits` must give, from passes over one document each."""
    edges = np.cumsum([0, *batch.lengths])
    found = []
    for start, end in pairwise(edges.tolist()):
        logits = model(input_ids=torch.from_numpy(batch.ids[None, start:end]), use_cache=False).logits[0, :-1]
        found.append(logits[torch.from_numpy(batch.trained[start + 1 : end])])
    return torch.cat(found)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative error of any row."""
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[PreTrainedModel, PreTrainedModel]]:
    """Per family the packing model and its twin with its authors' attention."""
    return {name: (packing(name), family_model(name)) for name in CAUSAL}


@pytest.mark.parametrize("name", CAUSAL)
@settings(max_examples=30, derandomize=True)  # a token whose two best experts are equal may go to either
@given(lengths=LENGTHS, seed=st.integers(0, 2**32))
def test_documents_have_the_logits_they_have_alone(
    pairs: dict[str, tuple[PreTrainedModel, PreTrainedModel]], name: str, lengths: list[int], seed: int
) -> None:
    model, twin = pairs[name]
    batch = packed_batch(tuple(lengths), seed)
    with torch.no_grad():
        together, alone = trained_logits(model, batch), logits_alone(twin, batch)
        in_pieces = project(model, trained_states(model, batch))
    assert together.shape == (int(batch.trained.sum()), VOCABULARY)
    assert distance(together, alone) < ERROR
    assert distance(in_pieces, alone) < ERROR


@pytest.mark.parametrize("name", CAUSAL)
def test_gradients_are_those_of_documents_alone(
    pairs: dict[str, tuple[PreTrainedModel, PreTrainedModel]], name: str
) -> None:
    model, twin = pairs[name]
    batch = packed_batch((1, 3 * WINDOW, WINDOW, 2, 25))
    together = gradients(model, cross_entropy(trained_logits(model, batch), targets(batch)))
    alone = gradients(twin, cross_entropy(logits_alone(twin, batch), targets(batch)))
    assert float(alone.norm()) > 0.1
    assert float((together - alone).norm() / alone.norm()) < ERROR


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gpt_oss", "mistral", "phi3", "phimoe"])
def test_a_window_changes_what_a_long_document_gives(name: str) -> None:
    """The premise of the tests above: they would notice if the window were left out."""
    narrow, wide = family_model(name), family_model(name, sliding_window=100)
    wide.load_state_dict(narrow.state_dict())
    with torch.no_grad():
        short, long = packed_batch((WINDOW,)), packed_batch((3 * WINDOW,))
        assert distance(logits_alone(narrow, short), logits_alone(wide, short)) < ERROR
        assert distance(logits_alone(narrow, long), logits_alone(wide, long)) > 0.01


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt_neox"])
@pytest.mark.parametrize("tied", [True, False])
def test_heads_tied_or_not(name: str, tied: bool) -> None:
    """A tied matrix gets the gradients of both its uses, also where the head runs on chosen positions only."""
    model, twin = packing(name, tie_word_embeddings=tied), family_model(name, tie_word_embeddings=tied)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (embedding is head) == tied
    batch = packed_batch((5, 12))
    found = torch.autograd.grad(cross_entropy(trained_logits(model, batch), targets(batch)), embedding)[0]
    weights = twin.get_input_embeddings().weight
    expected = torch.autograd.grad(cross_entropy(logits_alone(twin, batch), targets(batch)), weights)[0]
    assert float((found - expected).norm() / expected.norm()) < ERROR
    assert bool((expected.abs().sum(-1) > 0).all()) == tied


@pytest.mark.parametrize("name", ["gemma2", "cohere", "qwen3"])
def test_adapters_are_seen_through(name: str) -> None:
    adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model, twin = (get_peft_model(one, adapters).eval() for one in (packing(name), family_model(name)))
    for one in (model, twin):
        fill(one, seed=5)
    assert support.projects(model)
    batch = packed_batch((4, 1, 17))
    with torch.no_grad():
        alone = logits_alone(twin, batch)
        assert distance(trained_logits(model, batch), alone) < ERROR
        assert distance(project(model, trained_states(model, batch)), alone) < ERROR
        with twin.disable_adapter():
            assert distance(logits_alone(twin, batch), alone) > 0.01


def dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention by its definition, with the mask of the whole row."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    places = torch.arange(sum(lengths))
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    behind = places[:, None] - places
    seen = (document[:, None] == document) & (behind >= 0) & (behind < (window or len(places)))
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    weights = torch.where(seen, scores.exp(), 0)
    total = weights.sum(-1, keepdim=True)
    total = total if sinks is None else total + sinks.view(1, -1, 1, 1).exp()
    return ((weights / total) @ value).transpose(1, 2)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 40, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7]), min_size=1, max_size=3),
    window=st.none() | st.sampled_from([1, 2, 39, 40, 41, BLOCK, BLOCK + 1, 2 * BLOCK]),
    softcap=st.none() | st.just(1.5),
    sinks=st.booleans(),
    kv_heads=st.sampled_from([1, 2, 4]),
)
def test_attention_is_its_definition_however_long_the_documents(
    lengths: list[int], window: int | None, softcap: float | None, sinks: bool, kv_heads: int
) -> None:
    tokens = sum(lengths)
    query, key, value = (
        2 * uniform(name, (1, heads, tokens, 8)).double()
        for name, heads in (("q", 4), ("k", kv_heads), ("v", kv_heads))
    )
    sink_logits = uniform("s", (4,)).double() if sinks else None
    edges = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    asked = {"sliding_window": window, "softcap": softcap, "s_aux": sink_logits, "cu_seq_lens_q": edges}
    found, _ = documents_attention(torch.nn.Module(), query, key, value, None, **asked)
    # Where a score is capped or a sink takes part, weights pass through float32.
    precision = 1e-12 if softcap is None and not sinks else 1e-6
    torch.testing.assert_close(
        found, dense(query, key, value, lengths, window, softcap, sink_logits), rtol=precision, atol=precision
    )


STATES = torch.zeros(1, 1, 2, 8)
EDGES = torch.tensor([0, 2], dtype=torch.int32)


@pytest.mark.parametrize(
    ("module", "asked", "reason"),
    [
        ({}, {"position_bias": STATES}, "position_bias"),
        ({}, {"indices": STATES}, "indices"),
        ({}, {"attention_mask": STATES}, "mask of its own"),
        ({}, {"attention_mask": Sight(None), "sliding_window": 4}, "shows all tokens and its attention 4"),
        ({}, {"is_causal": False}, "later tokens"),
        ({"is_causal": False}, {}, "later tokens"),
        ({}, {"cu_seq_lens_q": None}, "lengths"),
    ],
)
def test_attention_refuses_what_it_would_have_to_leave_out(
    module: dict[str, bool], asked: dict[str, object], reason: str
) -> None:
    given_all = {"attention_mask": None, "cu_seq_lens_q": EDGES, **asked}
    with pytest.raises(InputError, match=reason):
        documents_attention(SimpleNamespace(**module), STATES, STATES, STATES, **given_all)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_family_is_admitted_and_nothing_of_it_is_changed(name: str) -> None:
    model = packing(name)
    weights, random_state = [weight.clone() for weight in model.parameters()], torch.get_rng_state()
    support.admit(model, max_length=128)
    assert support.projects(model)
    assert model.config._attn_implementation == attention.NAME
    assert all(torch.equal(one, other) for one, other in zip(weights, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(weight.grad is None for weight in model.parameters())


REFUSED = {
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 1}, "attention cannot be exchanged"),
    "falcon": ({"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}, "attention cannot be exchanged"),
    "lfm2": ({**SHAPE, "layer_types": ["conv", "full_attention"]}, "layers of kind conv"),
    "llama4_text": ({**SHAPE, **EXPERTS, "layer_types": ["chunked_attention"] * 2}, "chunked_attention"),
    "gemma3_text": ({**SHAPE, "head_dim": 8, "use_bidirectional_attention": True}, "mask pattern of its own"),
    "gpt2": ({"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 63}, "only up to 63 tokens"),
    "bert": ({**SHAPE, "is_decoder": False}, "mask pattern of its own"),
    "doge": (SHAPE, "does not go with packed rows"),
    "phi3": ({**SHAPE, **LONG}, "only up to 32 tokens"),
}


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_what_cannot_be_packed_is_refused_with_the_reason(model_type: str) -> None:
    shape, reason = REFUSED[model_type]
    config = CONFIG_MAPPING[model_type](**{"vocab_size": VOCABULARY, "pad_token_id": 0, **shape})
    model = AutoModelForCausalLM.from_config(config).eval()
    if model._can_set_attn_implementation():
        model.set_attn_implementation(attention.NAME)
    with pytest.raises(InputError, match=reason) as caught:
        support.admit(model, max_length=64)
    assert caught.value.where
    assert caught.value.fix


def test_a_rotary_embedding_that_changes_with_length_is_admitted_below_that_length() -> None:
    model = packing("phi3", **LONG)
    support.admit(model, max_length=32)
    with pytest.raises(InputError, match="only up to 32 tokens"):
        support.admit(model, max_length=33)
    twin = family_model("phi3", **LONG)
    with torch.no_grad():
        for lengths, same in (((32, 9), True), ((33, 9), False)):
            batch = packed_batch(lengths)
            apart = distance(trained_logits(model, batch), logits_alone(twin, batch))
            assert (apart < ERROR) == same, "beyond the original context a document's logits depend on its row"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_documents_see_each_other_is_refused(dtype: torch.dtype) -> None:
    """A layer that mixes neighbouring tokens outside of attention, as convolutions do."""
    model = packing("qwen3").to(dtype)
    support.admit(model, max_length=128)
    layer = model.model.layers[0]
    layer.register_forward_hook(lambda _, __, output: output + output.roll(1, dims=1))
    with pytest.raises(InputError, match="packed documents see each other"):
        support.admit(model, max_length=128)
    assert model.config._attn_implementation == attention.NAME


def test_a_model_that_attends_otherwise_than_its_authors_wrote_is_refused() -> None:
    """Positions that a layer takes from the row instead of the document change no neighbour, and yet are wrong."""
    model = packing("qwen3")

    def by_row(_: torch.nn.Module, args: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> object:
        return args[:1], {"position_ids": torch.arange(args[0].shape[1])[None] ** 2}

    model.model.rotary_emb.register_forward_pre_hook(by_row, with_kwargs=True)
    with pytest.raises(InputError, match="do not give the logits they give alone"):
        support.admit(model, max_length=128)


def test_a_head_that_is_not_known_is_noticed() -> None:
    """HyperCLOVA X multiplies by `logits_scaling` where Granite divides."""
    config = CONFIG_MAPPING["hyperclovax"](**SHAPE, vocab_size=VOCABULARY, logits_scaling=2.0, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval()
    fill(model, seed=0)
    model.set_attn_implementation(attention.NAME)
    support.admit(model, max_length=64)
    assert not support.projects(model)


@pytest.mark.parametrize("name", CAUSAL)
def test_bfloat16_weights_give_nearly_the_loss_of_float32(name: str) -> None:
    batch = packed_batch(GOLDEN_LENGTHS)
    exact, rounded = packing(name), packing(name).to(torch.bfloat16)
    with torch.no_grad():
        expected = float(cross_entropy(trained_logits(exact, batch), targets(batch)))
        found = float(cross_entropy(trained_logits(rounded, batch).float(), targets(batch)))
    assert found != expected
    assert found == pytest.approx(expected, rel=0.01)


def losses(name: str) -> list[float]:
    """Mean loss in nats of three steps of AdamW on one packed batch."""
    model, batch = packing(name), packed_batch(GOLDEN_LENGTHS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for _ in range(3):
        loss = cross_entropy(trained_logits(model, batch), targets(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("name", CAUSAL)
def test_losses_are_the_golden_ones(name: str) -> None:
    found = losses(name)
    assert found == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=1e-5)
    assert found == losses(name), "the same steps on the same machine give the same bits"
    assert found[2] < found[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CAUSAL)
def test_the_gpu_gives_what_the_cpu_gives_document_by_document(name: str) -> None:
    batch = packed_batch(GOLDEN_LENGTHS)
    model = packing(name).to(torch.bfloat16)
    expected = trained_logits(model, batch).float()
    on_gpu = model.to("cuda")
    found = trained_logits(on_gpu, batch)
    cross_entropy(found.float(), targets(batch).to("cuda")).backward()
    assert distance(found.float().cpu(), expected) < 0.05
    assert all(bool(weight.grad.isfinite().all()) for weight in on_gpu.parameters() if weight.grad is not None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_the_variable_length_kernel_is_the_cpu_attention(window: int | None, kv_heads: int) -> None:
    lengths = [1, 60, 300, 7]
    edges = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    rule = attention.Rule(scaling=0.25, window=window)
    heads = {"q": 4, "k": kv_heads, "v": kv_heads}
    states = [uniform(name, (1, count, sum(lengths), 16)).to(torch.bfloat16) for name, count in heads.items()]
    here = [one.clone().requires_grad_() for one in states]
    there = [one.to("cuda").requires_grad_() for one in states]
    assert attention._varlen_can(there[0], there[2], rule)
    expected, found = attention._one_by_one(*here, edges, rule), attention._varlen(*there, edges, rule)
    torch.testing.assert_close(found.cpu(), expected, rtol=0.02, atol=0.02)
    expected.square().sum().backward()
    found.square().sum().backward()
    for one, other in zip(there, here, strict=True):
        torch.testing.assert_close(one.grad.cpu(), other.grad, rtol=0.05, atol=0.05)


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.write_text(json.dumps({name: losses(name) for name in CAUSAL}, indent=1) + "\n")
    sys.exit(0)
