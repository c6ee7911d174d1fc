"""Every weight or adapters: resumed to the bit, loaded by anybody, merged without a change of answers."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stokehold.core.config import LOCKED_ADAPTER_KEYS, parse_config
from stokehold.core.errors import ConfigError, InputError, IntegrityError
from stokehold.core.records import Message, Sample
from stokehold.data.batches import Batch, Batches, Cursor
from stokehold.data.formats import Parsed, parse_line, to_row
from stokehold.data.lines import Line, read_lines
from stokehold.inference.engine import Engine
from stokehold.inference.registry import hash_of, load
from stokehold.store.db.database import connect
from stokehold.store.files import hash_file
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.models import bases, checkpoints, versions
from stokehold.store.models.adapters import base_of
from stokehold.store.models.checkpoints import publish_checkpoint
from stokehold.training.consolidation import consolidate
from stokehold.training.model import open_model
from stokehold.training.state import Lineage, Progress, open_lineage, take_snapshot, write_snapshot
from stokehold.training.step import accumulate, optimiser_step, trained_tokens
from tiny_world import facts, write_jsonl

LORA = {"model": {"method": "lora"}, "adapter": {"rank": 4, "alpha": 8.0}}
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, muon": {"training": {"optimizer": "muon"}},
    "lora": {**LORA, "adapter": {"rank": 4, "dropout": 0.2}},
    "lora, muon": {**LORA, "training": {"optimizer": "muon", "weight_decay": 0.01}},
    "dora": {**LORA, "adapter": {"rank": 4, "dora": True}},
    "rslora": {**LORA, "adapter": {"rank": 4, "rslora": True, "targets": ["q_proj", "up_proj"]}},
    "lora, checkpointing": {**LORA, "training": {"gradient_checkpointing": True}},
}
QUESTION = [Message("user", "what colour is sea")]


def fresh(home: Home) -> Lineage:
    return open_lineage(home.root / home.config().model.base, home.config())


def saved(home: Home, lineage: Lineage) -> Path:
    record = publish_checkpoint(
        home, lineage.step, lambda folder: write_snapshot(take_snapshot(lineage), folder), {"branch": 0}
    )
    lineage.saved, lineage.parent = record, Path(record.path).name
    return Path(record.path)


def batches(lineage: Lineage, folder: Path) -> list[Batch]:
    raw = write_jsonl(folder / "raw.jsonl", facts(150))
    rows = write_jsonl(folder / "rows.jsonl", list(_rows(raw)))
    options = {"window_rows": 64, "max_length": 128, "seed": 0, "epochs": 1, "cursor": Cursor.start()}
    with Batches(rows, lineage.tokenizer, capacity=256, **options) as found:
        return list(found)


def _rows(raw: Path) -> Iterator[dict[str, Any]]:
    for line in read_lines(raw, 10_000):
        assert isinstance(line, Line)
        parsed = parse_line(line, "raw.jsonl")
        assert isinstance(parsed, Parsed)
        yield to_row(parsed.sample)


def train(lineage: Lineage, given: list[Batch]) -> None:
    for batch in given:
        optimiser_step(lineage, [batch])


def logits(model: Any, batch: Batch) -> torch.Tensor:
    """Of the first document, in eval mode and under the model's own attention for inference."""
    ids = torch.from_numpy(batch.ids[: batch.lengths[0]])[None].to(model.device)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def live_logits(lineage: Lineage, batch: Batch) -> torch.Tensor:
    attention = lineage.model.config._attn_implementation
    lineage.model.set_attn_implementation("sdpa")
    lineage.model.train(False)
    found = logits(lineage.model, batch)
    lineage.model.set_attn_implementation(attention)
    lineage.model.train(True)
    return found


def trainable(lineage: Lineage) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in lineage.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", METHODS)
def test_going_on_from_a_checkpoint_changes_no_bit(make_home: Callable[..., Home], tmp_path: Path, method: str) -> None:
    homes = [make_home(**METHODS[method]) for _ in range(2)]
    straight = fresh(homes[0])
    given = batches(straight, tmp_path)[:6]
    train(straight, given)
    resumed = fresh(homes[1])
    for start in (0, 2):
        train(resumed, given[start : start + 2])
        folder = saved(homes[1], resumed)
        torch.manual_seed(99)  # whatever the process drew meanwhile
        resumed = open_lineage(folder, homes[1].config())
    train(resumed, given[4:])
    ends = [saved(home, lineage) for home, lineage in zip(homes, (straight, resumed), strict=True)]
    assert hash_of(ends[0]) == hash_of(ends[1])
    assert hash_file(ends[0] / "optimizer.safetensors") == hash_file(ends[1] / "optimizer.safetensors")
    before = trainable(fresh(make_home(**METHODS[method])))
    assert all(not torch.equal(before[name], after) for name, after in trainable(resumed).items())


def test_fresh_adapters_are_drawn_from_seed_and_step_alone(make_home: Callable[..., Home]) -> None:
    def drawn(process: int, seed: int, step: int) -> torch.Tensor:
        home = make_home(**{**LORA, "training": {"seed": seed}})
        torch.manual_seed(process)
        before = torch.get_rng_state()
        _, adapters = open_model(home.root / home.config().model.base, home.config(), step)
        assert torch.equal(torch.get_rng_state(), before)
        assert adapters is not None
        return torch.cat([tensor.flatten() for tensor in adapters.tensors().values()])

    first = drawn(1, 0, 0)
    assert torch.equal(drawn(2, 0, 0), first)
    assert not torch.equal(drawn(1, 5, 0), first)
    assert not torch.equal(drawn(1, 0, 5), first)


@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
def test_adapters_alone_are_trained_and_kept(make_home: Callable[..., Home], tmp_path: Path, method: str) -> None:
    home = make_home(**METHODS[method])
    lineage = fresh(home)
    base = home.root / home.config().model.base
    given = batches(lineage, tmp_path)[:3]
    torch.testing.assert_close(
        live_logits(lineage, given[0]), logits(load(base, "float32", "cpu").engine.model, given[0]), atol=1e-5, rtol=0
    )
    frozen = {n: p.clone() for n, p in lineage.model.named_parameters() if not p.requires_grad}
    learned = sum(p.numel() for p in trainable(lineage).values())
    train(lineage, given)
    assert all(torch.equal(frozen[n], p) for n, p in lineage.model.named_parameters() if n in frozen)
    assert all("lora_" in name for name in trainable(lineage))
    folder = saved(home, lineage)
    assert {path.name for path in folder.glob("*.safetensors")} == {
        "adapter_model.safetensors",
        "golden.safetensors",
        "optimizer.safetensors",
    }
    assert (folder / "adapter_model.safetensors").stat().st_size < 4 * learned + 10_000
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert sum(tensor.numel() for tensor in take_snapshot(lineage).weights.values()) == learned


@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
def test_a_checkpoint_of_adapters_answers_as_the_live_model_wherever_its_home_is(
    make_home: Callable[..., Home], tmp_path: Path, method: str
) -> None:
    home = make_home(**METHODS[method])
    lineage = fresh(home)
    given = batches(lineage, tmp_path)[:3]
    train(lineage, given)
    folder, config = saved(home, lineage), home.config()
    expected = live_logits(lineage, given[0])
    served = logits(load(folder, "float32", "cpu").engine.model, given[0])
    torch.testing.assert_close(served, expected, atol=1e-5, rtol=0)
    moved = home.root.rename(tmp_path / "elsewhere") / folder.relative_to(home.root)
    assert torch.equal(logits(load(moved, "float32", "cpu").engine.model, given[0]), served)
    anybody = AutoModelForCausalLM.from_pretrained(moved)
    torch.testing.assert_close(logits(anybody, given[0]), expected, atol=1e-5, rtol=0)
    again = open_lineage(moved, config)
    assert torch.equal(live_logits(again, given[0]), expected)


def test_the_hash_of_adapters_covers_their_base_and_their_scale(make_home: Callable[..., Home], tmp_path: Path) -> None:
    home, other = make_home(**LORA), make_home(**LORA)
    scaled = make_home(**{**LORA, "adapter": {"rank": 4, "alpha": 9.0}})
    base = other.root / other.config().model.base
    renamed = base.rename(base.with_name("another"))
    other.write_config(other.config_path.read_text().replace(f"base/{base.name}", f"base/{renamed.name}"))
    same, _, alpha, under = (saved(one, fresh(one)) for one in (home, make_home(**LORA), scaled, other))
    assert hash_of(same) == hash_of(_)
    assert len({hash_of(same), hash_of(alpha), hash_of(under)}) == 3
    assert len({hash_file(one / "adapter_model.safetensors") for one in (same, alpha, under)}) == 1


def test_a_version_of_adapters_is_loaded_and_its_missing_base_is_told(make_home: Callable[..., Home]) -> None:
    home = make_home(**LORA)
    folder = saved(home, fresh(home))
    made = versions.create(home, connect(home), folder)
    served = load(Path(made.path), "float32", "cpu")
    assert served.weights_hash == made.weights_hash == checkpoints.load_checkpoint(folder).weights_hash
    assert "".join(served.engine.stream(QUESTION, 3)) is not None
    shutil.rmtree(home.root / home.config().model.base)
    with pytest.raises(IntegrityError, match="the base model of these adapters is missing"):
        load(Path(made.path), "float32", "cpu")


def test_a_damaged_base_is_not_trained_on(make_home: Callable[..., Home]) -> None:
    home = make_home(**LORA)
    folder = saved(home, fresh(home))
    weights = home.root / home.config().model.base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match="the base model is damaged"):
        open_lineage(folder, home.config())


def test_adapters_are_no_base(make_home: Callable[..., Home]) -> None:
    home = make_home(**LORA)
    folder = saved(home, fresh(home))
    with pytest.raises(InputError, match="adapters, and no model"):
        bases.import_base(make_home(), folder)


def test_answering_between_steps_changes_no_bit(make_home: Callable[..., Home], tmp_path: Path) -> None:
    ends = []
    for asked in (False, True):
        home = make_home(**METHODS["lora"])
        lineage = fresh(home)
        for batch in batches(lineage, tmp_path)[:4]:
            optimiser_step(lineage, [batch])
            if asked:
                engine = Engine(lineage.model, lineage.tokenizer)
                gold = Message("assistant", "sea is blue")
                samples = [Sample("a", messages=(*QUESTION, gold)), Sample("b", messages=(*QUESTION, gold))]
                first, second = engine.complete(samples, 4, 2)
                assert first.token_ids == second.token_ids
                checkpoint = load(saved(home, lineage), "float32", "cpu").engine
                same = checkpoint.complete(samples, 4, 2)[0]
                assert same.token_ids == first.token_ids
                assert same.token_logprobs == pytest.approx(first.token_logprobs, abs=1e-5)
        ends.append(saved(home, lineage))
    assert hash_of(ends[0]) == hash_of(ends[1])


def test_checkpointed_activations_give_the_same_gradient(make_home: Callable[..., Home], tmp_path: Path) -> None:
    for method in ("full", "lora"):
        gradients = []
        for recompute in (False, True):
            tables = {**METHODS[method], "training": {"gradient_checkpointing": recompute}}
            lineage = fresh(make_home(**tables))
            group = batches(lineage, tmp_path)[:2]
            accumulate(lineage, group, trained_tokens(group))
            gradients.append({n: p.grad.clone() for n, p in lineage.model.named_parameters() if p.grad is not None})
            assert lineage.model.is_activation_checkpointing is recompute
        assert gradients[0].keys() == gradients[1].keys() != set()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "lora, muon"])
def test_merging_keeps_the_answers_and_training_goes_on_to_the_bit(
    make_home: Callable[..., Home], tmp_path: Path, method: str
) -> None:
    tables = METHODS[method] | {"adapter": {**METHODS[method]["adapter"], "merge_files": 2}}
    ends = []
    for killed in (False, True):
        home = make_home(**tables)
        lineage = fresh(home)
        given = batches(lineage, tmp_path)[:6]
        lineage.runs |= {name: Progress("data", Cursor.start()) for name in ("one", "two", "three")}
        train(lineage, given[:3])
        older = saved(home, lineage)
        before, drawn = live_logits(lineage, given[0]), torch.get_rng_state()
        assert consolidate(lineage, home, connect(home), {"one", "not of this lineage"}) is None
        base = consolidate(lineage, home, connect(home), {"one", "two"})
        if killed:  # before anything was saved: the same merge again
            lineage = open_lineage(older, home.config())
            assert consolidate(lineage, home, connect(home), {"one", "two"}) == base
        assert torch.equal(torch.get_rng_state(), drawn)
        assert base is not None
        assert base.parent == home.base
        torch.testing.assert_close(live_logits(lineage, given[0]), before, atol=1e-5, rtol=0)
        assert (lineage.step, lineage.merged) == (3, ("one", "two"))
        assert consolidate(lineage, home, connect(home), {"one", "two", "three"}) is None
        train(lineage, given[3:5])
        if killed:
            lineage = open_lineage(saved(home, lineage), home.config())
        train(lineage, given[5:])
        ends.append(saved(home, lineage))
        assert base_of(ends[-1]) == base
        assert base_of(older) == home.root / home.config().model.base
        assert torch.equal(live_logits(open_lineage(older, home.config()), given[0]), before)
        assert not torch.equal(live_logits(lineage, given[0]), before)
    assert hash_of(ends[0]) == hash_of(ends[1])
    assert hash_file(ends[0] / "optimizer.safetensors") == hash_file(ends[1] / "optimizer.safetensors")


def test_a_base_goes_at_the_next_merge_only_when_nothing_names_it(make_home: Callable[..., Home]) -> None:
    home = make_home(**{**LORA, "adapter": {"merge_files": 1}})
    first = home.root / home.config().model.base
    lineage = fresh(home)
    bystanders = {name: shutil.copytree(first, home.base / name) for name in ("unnamed", "discarded", "versioned")}
    for name, shelf in (("discarded", home.trash), ("versioned", home.versions)):
        (shelf / name).mkdir(parents=True)
        (shelf / name / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "../../base/{name}"}}')
    lineage.runs["one"] = Progress("data", Cursor.start())
    saved(home, lineage)
    merged = consolidate(lineage, home, connect(home), {"one"})
    assert merged is not None
    assert set(home.base.iterdir()) == {first, merged, bystanders["discarded"], bystanders["versioned"]}
    assert [entry.origin for entry in trash.listing(home) if entry.path.name.endswith("unnamed")] == ["base/unnamed"]


@pytest.mark.parametrize("key", LOCKED_ADAPTER_KEYS)
def test_what_adapters_are_may_not_change(make_home: Callable[..., Home], key: str) -> None:
    home = make_home(**LORA)
    folder = saved(home, fresh(home))
    other = {"rank": 5, "alpha": 9.0, "targets": ["q_proj"], "dora": True, "rslora": True}
    name = key.removeprefix("adapter.")
    tree = home.config().model_dump()
    tree["adapter"][name] = other[name]
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        open_lineage(folder, parse_config(tree))
    full = make_home()
    folder = saved(full, fresh(full))
    tree = full.config().model_dump()
    tree["adapter"][name] = other[name]
    open_lineage(folder, parse_config(tree))


def test_layers_that_the_model_lacks_are_refused(make_home: Callable[..., Home]) -> None:
    home = make_home(**{**LORA, "adapter": {"targets": ["nowhere"]}})
    with pytest.raises(ConfigError, match=r"nowhere.*adapter\.targets"):
        fresh(home)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal is for machines without CUDA")
def test_four_bits_without_cuda_are_refused(make_home: Callable[..., Home]) -> None:
    home = make_home(**{**LORA, "model": {"method": "qlora"}})
    with pytest.raises(ConfigError, match=r"this needs a CUDA device.*qlora.*devices"):
        fresh(home)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_four_bit_weights_are_trained_beside_and_resumed(make_home: Callable[..., Home], tmp_path: Path) -> None:
    tables = {**LORA, "model": {"method": "qlora", "dtype": "bfloat16"}, "devices": {"trainer": "cuda:0"}}
    tables["adapter"] = {"rank": 4, "dropout": 0.2}
    home = make_home(**tables)
    lineage = fresh(home)
    given = batches(lineage, tmp_path)[:4]
    quantised = [p for p in lineage.model.parameters() if p.dtype == torch.uint8]
    assert len(quantised) == 14
    train(lineage, given[:2])
    folder = saved(home, lineage)
    served = load(folder, "bfloat16", "cuda:0").engine.model
    torch.testing.assert_close(logits(served, given[0]), live_logits(lineage, given[0]), atol=1e-2, rtol=1e-2)
    train(lineage, given[2:])
    resumed = open_lineage(folder, home.config())
    train(resumed, given[2:])
    for name, expected in trainable(lineage).items():
        torch.testing.assert_close(trainable(resumed)[name], expected, atol=1e-3, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_merging_four_bit_weights_is_refused(make_home: Callable[..., Home]) -> None:
    tables = {**LORA, "model": {"method": "qlora"}, "devices": {"trainer": "cuda:0"}, "adapter": {"merge_files": 1}}
    with pytest.raises(ConfigError, match=r"adapter\.merge_files"):
        fresh(make_home(**tables))
