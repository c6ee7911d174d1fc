"""Weights go out as others load them, and come back as the same weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from stokehold.core.errors import InputError, IntegrityError, StokeholdError, UsageError
from stokehold.inference.registry import load
from stokehold.pipeline.exporting import Exported, Form, export
from stokehold.pipeline.foreground import Meter, train_files
from stokehold.pipeline.worker import Leave
from stokehold.store.db.database import connect
from stokehold.store.files import STAGING, verify
from stokehold.store.home import Home
from stokehold.store.models import imports, versions
from stokehold.store.models.adapters import base_of
from tiny_world import facts, held_out_facts, write_jsonl

LORA: dict[str, Any] = {
    "model": {"method": "lora"},
    "adapter": {"rank": 4, "alpha": 16.0},
    "training": {"learning_rate": 0.03, "warmup_steps": 2},
    "evaluation": {"max_new_tokens": 12},
}
IDS = torch.arange(5, 40)[None]


@pytest.fixture
def trained(make_home: Callable[..., Home], tmp_path: Path) -> Callable[..., Home]:
    """A home with one file in its weights, judged and promoted to v0001."""

    def make(**tables: Any) -> Home:
        home = make_home(**tables)
        write_jsonl(home.suites / "questions.jsonl", held_out_facts()[:12])
        train_files(home, [write_jsonl(tmp_path / "facts.jsonl", facts(60))], 6, False, Leave(), Meter())
        train_files(home, [tmp_path / "facts.jsonl"], None, True, Leave(), Meter())
        return home

    return make


def out(home: Home, target: Path, asked: Form | None = None, gguf: str | None = None, ref: str = "v0001") -> Exported:
    return export(home, connect(home), home.config(), ref, target, asked, gguf, Meter())


def logits(model: PreTrainedModel) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def of_version(home: Home, name: str) -> torch.Tensor:
    return logits(load(home.versions / name, "float32", "cpu").engine.model)


def test_a_whole_version_goes_out_and_comes_back_as_the_same_weights(
    trained: Callable[..., Home], tmp_path: Path
) -> None:
    home, target = trained(), tmp_path / "away" / "model"
    done = out(home, target)
    assert (done.version, done.form, done.worst_nats) == ("v0001", "full", None)
    assert not (target / "manifest.json").exists()
    assert not list(target.parent.glob(f"{STAGING}*"))
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert torch.equal(logits(model), of_version(home, "v0001"))
    assert AutoTokenizer.from_pretrained(target)("say the colour").input_ids
    made = imports.import_folder(home, connect(home), target)
    assert made.name == "v0002"
    assert made.weights_hash == versions.find_version(home, "v0001").weights_hash == done.weights_hash
    assert made.datasets == versions.find_version(home, "v0001").datasets
    assert verify(Path(made.path)) == []
    assert torch.equal(of_version(home, "v0002"), of_version(home, "v0001"))


def test_the_card_says_where_the_weights_come_from(trained: Callable[..., Home], tmp_path: Path) -> None:
    home = trained()
    out(home, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    told = json.loads((tmp_path / "model" / "stokehold.json").read_text())
    for said in ("facts.jsonl", told["weights_hash"], told["datasets"][0]["blake3"], "questions", "not named by"):
        assert said in card
    assert told["evaluation"]["suites"]["questions"]["n"] == 12
    assert {file["path"] for file in told["files"]} >= {"config.json", "model.safetensors", "README.md"}


def test_adapters_go_out_merged_and_answer_as_before(trained: Callable[..., Home], tmp_path: Path) -> None:
    home = trained(**LORA)
    done = out(home, tmp_path / "model")
    assert done.form == "merged"
    assert done.worst_nats is not None
    assert done.worst_nats < 1e-3
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.allclose(logits(merged), of_version(home, "v0001"), atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(home.root / home.config().model.base, dtype=torch.float32)
    assert not torch.allclose(logits(base), logits(merged), atol=1e-2)
    made = imports.import_folder(home, connect(home), tmp_path / "model")
    assert torch.equal(of_version(home, made.name), logits(merged))


def test_adapters_go_out_alone_and_come_back_as_the_same_weights(trained: Callable[..., Home], tmp_path: Path) -> None:
    home = trained(**LORA)
    done = out(home, tmp_path / "adapters", "adapter")
    assert done.form == "adapter"
    tree = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(tree["base_model_name_or_path"], dtype=torch.float32)
    outside = PeftModel.from_pretrained(base, tmp_path / "adapters")
    assert torch.allclose(logits(outside.get_base_model()), of_version(home, "v0001"), atol=1e-6)
    made = imports.import_folder(home, connect(home), tmp_path / "adapters")
    assert made.weights_hash == versions.find_version(home, "v0001").weights_hash
    assert base_of(Path(made.path)) == home.root / home.config().model.base
    assert torch.equal(of_version(home, made.name), of_version(home, "v0001"))


def test_adapters_of_a_hub_model_name_it_by_id_and_commit(trained: Callable[..., Home], tmp_path: Path) -> None:
    home = trained(**LORA)
    text = home.config_path.read_text()
    home.write_config(text.replace('source = ""', 'source = "owner/name"').replace('revision = ""', 'revision = "abc"'))
    out(home, tmp_path / "adapters", "adapter")
    tree = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert (tree["base_model_name_or_path"], tree["revision"]) == ("owner/name", "abc")
    made = imports.import_folder(home, connect(home), tmp_path / "adapters")
    assert made.weights_hash == versions.find_version(home, "v0001").weights_hash


def test_nothing_is_written_over_and_nothing_damaged_goes_out(trained: Callable[..., Home], tmp_path: Path) -> None:
    home = trained()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(StokeholdError, match="something here"):
        out(home, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert out(home, tmp_path / "empty").files > 3
    with pytest.raises(UsageError, match="whole"):
        out(home, tmp_path / "other", "adapter")
    weights = home.versions / "v0001" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match="not what the manifest says"):
        out(home, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_a_damaged_adapter_is_not_merged(trained: Callable[..., Home], tmp_path: Path) -> None:
    home = trained(**LORA)
    path = home.versions / "v0001" / "adapter_model.safetensors"
    tensors = {name: tensor + 1 for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path)
    with pytest.raises(IntegrityError):
        out(home, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_adapters_with_another_scale_or_base_are_refused(trained: Callable[..., Home], tmp_path: Path) -> None:
    home = trained(**LORA)
    out(home, tmp_path / "adapters", "adapter")
    (tmp_path / "adapters" / "stokehold.json").unlink()
    path = tmp_path / "adapters" / "adapter_config.json"
    tree = json.loads(path.read_text())
    changes = (({"lora_alpha": 99}, "adapter.alpha"), ({"base_model_name_or_path": "x/y"}, "not in this home"))
    for change, said in changes:
        path.write_text(json.dumps(tree | change))
        with pytest.raises(InputError, match=said):
            imports.import_folder(home, connect(home), tmp_path / "adapters")
    assert [version.name for version in versions.list_versions(home)] == ["v0001"]
