"""Golden logits: taking them changes nothing, whoever loads the checkpoint gives them again, other weights do not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from model_families import CAUSAL, family_model
from stokehold.core.errors import IntegrityError
from stokehold.inference.registry import load
from stokehold.store.db.database import connect
from stokehold.store.files import read_manifest
from stokehold.store.home import Home
from stokehold.store.models import checkpoints, versions
from stokehold.store.models.checkpoints import publish_checkpoint, weights_hash
from stokehold.store.models.weights import GOLDEN
from stokehold.training.golden import Golden, agreement, golden
from stokehold.training.state import Lineage, open_lineage, take_snapshot, write_snapshot

LARGEST_BYTES = 1_000_000
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "half": {"model": {"dtype": "bfloat16"}},
    "lora": {"model": {"method": "lora"}, "adapter": {"rank": 4, "dropout": 0.3}},
    "dora": {"model": {"method": "lora"}, "adapter": {"rank": 4, "dora": True}},
    "half lora": {"model": {"method": "lora", "dtype": "bfloat16"}},
}


@pytest.fixture(params=METHODS)
def lineage(make_home: Callable[..., Home], request: pytest.FixtureRequest) -> tuple[Home, Lineage]:
    """A model whose trained weights are no longer those it began with."""
    home = make_home(**METHODS[request.param])
    opened = open_lineage(home.root / home.config().model.base, home.config())
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in opened.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return home, opened


def saved(home: Home, lineage: Lineage) -> Path:
    snapshot = take_snapshot(lineage)
    return Path(publish_checkpoint(home, lineage.step, lambda folder: _write(snapshot, folder), {}).path)


def _write(snapshot: Any, folder: Path) -> None:
    write_snapshot(snapshot, folder)


def recorded(folder: Path) -> Golden:
    return Golden.from_bytes((folder / GOLDEN).read_bytes(), str(folder))


def test_what_the_checkpoint_answers_is_what_the_live_weights_answered_to_the_bit(
    lineage: tuple[Home, Lineage],
) -> None:
    home, live = lineage
    folder = saved(home, live)
    config = home.config()
    before = recorded(folder)
    served = load(folder, config.model.dtype, "cpu").engine.model
    found = agreement(before, golden(served, before))
    assert (found.equal, found.ok, found.worst, found.differences) == (True, True, 0.0, ())
    assert agreement(before, golden(open_lineage(folder, config).model)).equal
    assert (folder / GOLDEN).stat().st_size < LARGEST_BYTES
    with torch.no_grad():
        for name, parameter in served.named_parameters():
            if "lora_B" in name or name.endswith("mlp.down_proj.weight"):
                parameter.zero_()
                break
    assert not agreement(before, golden(served, before)).ok


def test_taking_them_leaves_the_model_as_it_was(lineage: tuple[Home, Lineage]) -> None:
    _, live = lineage
    model = live.model
    some = list(model.modules())[3]
    some.training = False  # a mode of its own comes back too
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    attention, drawn = model.config._attn_implementation, torch.get_rng_state()
    taken = golden(model)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.config._attn_implementation == attention
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(golden(model).logprobs, taken.logprobs), "dropout is off"


def test_a_model_that_fails_is_handed_back_too(lineage: tuple[Home, Lineage]) -> None:
    _, live = lineage
    attention = live.model.config._attn_implementation
    outside = replace(golden(live.model), ids=torch.tensor([10**6]))
    with pytest.raises(IndexError):
        golden(live.model, outside)
    assert live.model.config._attn_implementation == attention
    assert live.model.training


def test_they_are_no_weights_and_a_version_takes_them_along(make_home: Callable[..., Home]) -> None:
    home = make_home()
    folder = saved(home, open_lineage(home.root / home.config().model.base, home.config()))
    entries = read_manifest(folder)["files"]
    without = [entry for entry in entries if entry["path"] != GOLDEN]
    assert len(without) == len(entries) - 1
    assert weights_hash(without) == weights_hash(entries) == checkpoints.load_checkpoint(folder).weights_hash
    made = versions.create(home, connect(home), folder)
    assert (Path(made.path) / GOLDEN).read_bytes() == (folder / GOLDEN).read_bytes()
    anybody = AutoModelForCausalLM.from_pretrained(made.path)
    before = recorded(Path(made.path))
    assert agreement(before, golden(anybody, before)).equal
    assert load_file(folder / GOLDEN).keys() == {"ids", "positions", "targets", "logprobs", "sums"}


@pytest.mark.parametrize("family", CAUSAL)
def test_every_family_is_asked_and_small_whatever_its_vocabulary(family: str) -> None:
    model = family_model(family)
    taken = golden(model)
    again = Golden.from_bytes(taken.to_bytes(), "here")
    assert agreement(again, golden(model, again)).equal
    assert taken.logprobs.isfinite().all()
    assert (taken.logprobs <= 0).all(), "they are log-probabilities"
    assert len(taken.to_bytes()) < LARGEST_BYTES
    assert agreement(again, golden(family_model(family, seed=1), again)).worst > 0.01


def test_the_questions_follow_from_the_vocabulary_alone() -> None:
    small, other = family_model("llama"), family_model("qwen3", seed=4)
    assert torch.equal(golden(small).ids, golden(other).ids)
    assert golden(small).ids.max() < small.config.vocab_size
    assert golden(small).ids[:4].tolist() == [38, 28, 3, 41], "frozen: older checkpoints are asked the same"


def test_other_arithmetic_is_allowed_its_tolerance_and_told() -> None:
    model = family_model("llama")
    taken = golden(model)
    elsewhere = replace(taken, facts={**taken.facts, "cpu": "another"})
    near, far = (replace(elsewhere, logprobs=taken.logprobs + shift) for shift in (5e-4, 5e-3))
    assert agreement(near, taken).ok
    assert agreement(near, taken).differences == (f"cpu another -> {taken.facts['cpu']}",)
    assert not agreement(far, taken).ok
    here = replace(taken, logprobs=near.logprobs)
    assert not agreement(here, taken).ok, "the same arithmetic gives the same bits"
    assert agreement(here, taken).worst == pytest.approx(5e-4, rel=0.01)
    broken = replace(taken, logprobs=taken.logprobs * float("nan"))
    assert not agreement(elsewhere, broken).ok


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    good = golden(family_model("llama")).to_bytes()
    for content in (b"", good[:100], b"\0" * 64, good.replace(b'"format":"1"', b'"format":"2"')):
        with pytest.raises(IntegrityError, match="golden"):
            Golden.from_bytes(content, "v0001")
