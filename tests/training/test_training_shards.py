"""Large weights lie in files of bounded size; what training never changes is written once and linked from then on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from model_families import CAUSAL, family_model
from stokehold.core.errors import ConfigError
from stokehold.data.tokenizer import train_tokenizer
from stokehold.store.db.database import connect
from stokehold.store.files import hash_file, read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.models import checkpoints, versions
from stokehold.store.models.bases import import_base
from stokehold.store.models.weights import INDEX, weight_files
from stokehold.training.model import create_tiny
from stokehold.training.shards import cut, write_weights
from stokehold.training.state import Lineage, Snapshot, open_lineage, take_snapshot
from stokehold.training.writer import CheckpointWriter
from tiny_world import facts

SHARD_BYTES = 3_000_000
FROZEN = ("model.embed_tokens.*", "model.layers.0.*")
WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}
"""A layer is 4 MB: large enough to be linked, and to need more than one shard."""

SIZES = st.dictionaries(
    st.builds("{}.{}.{}".format, st.sampled_from("ab"), st.integers(0, 12), st.sampled_from(["w", "v.w", "u"])),
    st.integers(1, 50),
    min_size=1,
)


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    train_tokenizer((m["content"] for row in facts(100) for m in row["messages"]), 300, folder)
    create_tiny(folder, seed=3, **WIDE)
    return folder


@pytest.fixture
def make(make_home: Callable[..., Home], wide_base: Path, tmp_path: Path) -> Callable[..., Home]:
    def made(freeze: tuple[str, ...] = FROZEN, shard_bytes: int = SHARD_BYTES) -> Home:
        home = make_home(model={"freeze": freeze}, store={"shard_bytes": shard_bytes})
        before = home.config().model.base
        base = import_base(home, wide_base)
        home.write_config(home.config_path.read_text().replace(before, base.path))
        return home

    return made


def fresh(home: Home) -> Lineage:
    return open_lineage(home.root / home.config().model.base, home.config())


def step(lineage: Lineage) -> None:
    """A real update of everything that has a gradient."""
    ids = torch.arange(1, 40)[None]
    lineage.optimizer.zero_grad()
    model = lineage.model
    model(input_ids=ids, cu_seq_lens_q=torch.tensor([0, 39], dtype=torch.int32), use_cache=False).logits.logsumexp(
        -1
    ).mean().backward()
    lineage.optimizer.step()
    lineage.step += 1
    lineage.saved = None


def save(home: Home, lineage: Lineage) -> Path:
    """By the writer of the loop."""

    def nothing(*_: Any) -> None:
        return

    with CheckpointWriter(home, lineage, nothing, nothing) as writer:
        return Path(writer.finish().path)


def shards(folder: Path) -> dict[str, set[str]]:
    """Tensor names by file, as the files themselves say."""
    found = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as opened:
            found[path.name] = set(opened.keys())
    return found


def is_frozen(name: str) -> bool:
    return "embed_tokens" in name or ".layers.0." in name


@given(SIZES, st.integers(1, 120), st.data())
def test_however_weights_are_cut_none_is_lost_and_nothing_frozen_moves(
    sizes: dict[str, int], most: int, data: st.DataObject
) -> None:
    frozen = {name for name in sizes if data.draw(st.booleans())}
    files = cut(sizes, frozen, most)
    assert sorted(name for names in files.values() for name in names) == sorted(sizes)
    assert cut(dict(reversed(sizes.items())), frozen, most) == files, "the order they come in says nothing"
    if sum(sizes.values()) <= most:
        assert list(files) == ["model.safetensors"]
        return
    for names in files.values():
        assert len(names) == 1 or sum(sizes[name] for name in names) <= most
        assert frozen.isdisjoint(names) or frozen.issuperset(names)
    count = len(files)
    assert list(files) == [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def test_a_layer_that_fits_is_not_divided() -> None:
    sizes = {f"model.layers.{n}.{part}": 10 for n in (10, 9, 2) for part in ("a", "b", "c")}
    files = list(cut(sizes, set(), 40).values())
    assert [{name.split(".")[2] for name in names} for names in files] == [{"2"}, {"9"}, {"10"}]


def test_shards_load_as_they_are_and_training_goes_on_from_them_to_the_bit(make: Callable[..., Home]) -> None:
    ends = []
    for shard_bytes in (SHARD_BYTES, 10**9):
        home = make(shard_bytes=shard_bytes)
        straight, resumed = fresh(home), fresh(home)
        for _ in range(2):
            step(straight)
            step(resumed)
            folder = save(home, resumed)
            resumed = open_lineage(folder, home.config())
        step(straight)
        step(resumed)
        straight_weights, weights = straight.model.state_dict(), resumed.model.state_dict()
        assert all(torch.equal(straight_weights[name], tensor) for name, tensor in weights.items())
        last = save(home, resumed)
        anybody = AutoModelForCausalLM.from_pretrained(last).state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in anybody.items())
        assert verify(last) == []
        ends.append(last)
    assert [path.name for path in weight_files(ends[1])] == ["model.safetensors"]
    assert not (ends[1] / INDEX).exists()
    parts = weight_files(ends[0])
    assert len(parts) > 2
    assert max(path.stat().st_size for path in parts) < SHARD_BYTES + 10_000
    index = json.loads((ends[0] / INDEX).read_text())
    placed = {name: file for file, names in shards(ends[0]).items() for name in names}
    assert index["weight_map"] == placed
    assert (
        index["metadata"]["total_size"]
        == sum(tensor.nbytes for tensor in anybody.values()) - anybody["lm_head.weight"].nbytes
    )


def test_frozen_weights_have_no_gradient_and_no_moments_and_stay(make: Callable[..., Home]) -> None:
    lineage = fresh(make())
    before = {name: p.detach().clone() for name, p in lineage.model.named_parameters()}
    step(lineage)
    for name, parameter in lineage.model.named_parameters():
        assert (parameter.grad is None) == is_frozen(name)
        assert torch.equal(before[name], parameter) == is_frozen(name), name
    remembered = {key.rsplit(".", 1)[0] for key in lineage.optimizer.state()}
    assert remembered == {name for name in before if not is_frozen(name)}


def test_frozen_shards_are_linked_and_add_no_byte(make: Callable[..., Home]) -> None:
    home = make()
    lineage = fresh(home)
    step(lineage)
    first = save(home, lineage)
    step(lineage)
    second = save(home, lineage)
    lineage = open_lineage(second, home.config())
    step(lineage)
    third = save(home, lineage)
    files = shards(third)
    assert shards(first) == shards(second) == files
    frozen = {file for file, names in files.items() if any(map(is_frozen, names))}
    assert 0 < len(frozen) < len(files)
    for file, names in files.items():
        assert all(map(is_frozen, names)) == (file in frozen)
        same = {(folder / file).stat().st_ino for folder in (first, second, third)}
        assert len(same) == (1 if file in frozen else 3)
    assert all(read_manifest(folder) and verify(folder) == [] for folder in (first, second, third))
    entries = {entry["path"]: entry["blake3"] for entry in read_manifest(third)["files"]}
    assert all(entries[file] == hash_file(third / file) for file in frozen)
    assert len({checkpoints.load_checkpoint(folder).weights_hash for folder in (first, second, third)}) == 3
    db = connect(home)
    made = [Path(versions.create(home, db, folder).path) for folder in (first, third)]
    assert all((one / file).stat().st_ino == (first / file).stat().st_ino for one in made for file in frozen)


def test_two_homes_write_the_same_shards(make: Callable[..., Home]) -> None:
    hashes = []
    for linked in (True, False):
        home = make()
        lineage = fresh(home)
        step(lineage)
        folder = save(home, lineage)
        step(lineage)
        if not linked:
            (folder / "manifest.json").unlink()  # as retention leaves a folder that it is taking away
        hashes.append(checkpoints.load_checkpoint(save(home, lineage)).weights_hash)
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("family", CAUSAL)
def test_every_family_comes_back_from_shards(family: str, tmp_path: Path) -> None:
    model = family_model(family)
    weights = model.state_dict()
    assert write_weights(model, weights, tmp_path, 8_000) == {}
    assert len(shards(tmp_path)) > 1
    found = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("freeze", "told"),
    [(("model.layers.7.*",), "no weight has such a name"), (("*",), "nothing is left to train")],
)
def test_names_that_freeze_nothing_or_everything_are_refused(
    make: Callable[..., Home], freeze: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        fresh(make(freeze=freeze))


def test_adapters_freeze_by_themselves(make_home: Callable[..., Home]) -> None:
    with pytest.raises(ConfigError, match=r"the method lora freezes by itself.*model\.freeze"):
        fresh(make_home(model={"method": "lora", "freeze": ["model.layers.0.*"]}))


def test_muon_takes_what_is_left(make_home: Callable[..., Home]) -> None:
    home = make_home(model={"freeze": ["model.layers.*"]}, training={"optimizer": "muon"})
    lineage = fresh(home)
    step(lineage)
    assert {key.rsplit(".", 1)[0] for key in lineage.optimizer.state()} == {
        "model.embed_tokens.weight",
        "model.norm.weight",
    }


def test_a_snapshot_names_what_is_frozen_tied_or_not(make_home: Callable[..., Home]) -> None:
    taken: Snapshot = take_snapshot(fresh(make_home(model={"freeze": ["model.embed_tokens.*"]})))
    assert taken.frozen == {"model.embed_tokens.weight", "lm_head.weight"}
