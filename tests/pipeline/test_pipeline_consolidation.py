"""A merge of adapters under every fault of a disk, and what the trainer makes of one that is refused."""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from bench import Bench

from adapter_home import TABLES, newest, publish, trained
from stokehold.core.records import JobState
from stokehold.store.db import events
from stokehold.store.db.database import connect
from stokehold.store.disk import Disk
from stokehold.store.files import read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.models import checkpoints, versions
from stokehold.store.models.adapters import base_of
from stokehold.training.consolidation import consolidate
from stokehold.training.golden import agreement, golden
from stokehold.training.state import open_lineage
from store.matrix import every_fault
from tiny_world import facts

for name in ("stokehold.training.adapters", "transformers.models.qwen3.modeling_qwen3"):
    importlib.import_module(name)  # once, in the process that the matrix forks its children from

WEIGHTS = "model.safetensors"
HEADER_BYTES = 16 * 1024
"""More than the header of the tiny model's weights."""


def merge(home: Home) -> None:
    """As the trainer begins a file: the merge, then training, here one step that ends in a checkpoint."""
    torch.set_num_threads(1)
    if len(checkpoints.list_checkpoints(home)) > 1:
        return
    lineage, db = newest(home), connect(home)
    consolidate(lineage, home, db, {"one"})
    lineage.step = 5
    publish(home, lineage)
    db.close()


def merged(home: Home, _told: str | None) -> str:
    """The checkpoint of before is whole and stands on the old base; all that shows is whole."""
    before = checkpoints.find_step(home, 4)
    assert base_of(before) == home.root / home.config().model.base
    shelves = (home.base, home.versions, home.checkpoints)
    if any(verify(folder) for shelf in shelves for folder in shelf.iterdir()):
        assert verify(before) == verify(home.root / home.config().model.base) == []
        return "named"
    assert len(versions.list_versions(home)) <= 1
    assert len(list(home.base.iterdir())) <= 2
    found = checkpoints.latest(home).checkpoint
    assert found is not None
    if found.step == 4:
        return "old"
    assert base_of(Path(found.path)) != base_of(before)
    return "new"


def test_a_merge_under_every_fault(make_home: Callable[..., Home], tmp_path: Path) -> None:
    made = make_home(**TABLES)
    trained(made)
    counts = every_fault(lambda root: shutil.copytree(made.root, root) and None, merge, merged, tmp_path, every=61)
    assert counts["kill"]["old"] > 3
    assert sum(counts["io"].values()) == sum(counts["full"].values()) == sum(counts["kill"].values())


class Rotting(Disk):
    """A disk that loses what a model's weights hold while they are copied into the shelf of bases."""

    def __init__(self, shelf: Path) -> None:
        self.shelf, self.rotten = shelf, 0

    def copy(self, source: Path, target: Path) -> str:
        digest = super().copy(source, target)
        if target.name == WEIGHTS and target.is_relative_to(self.shelf):
            self.rotten += 1
            with target.open("r+b") as stream:
                stream.seek(HEADER_BYTES)
                stream.write(bytes(target.stat().st_size - HEADER_BYTES))
        return digest


def test_a_refused_merge_is_told_and_training_goes_on_with_the_adapters(make_home: Callable[..., Home]) -> None:
    made = make_home(**TABLES)
    rotting = Rotting(made.base)
    one = Bench(Home.open(made.root, rotting))
    first, second = one.dataset("one.jsonl", facts(40)), one.dataset("two.jsonl", facts(40, seed=1))
    assert one.run(first) is one.run(second) is JobState.COMPLETED
    assert rotting.rotten == 1
    (told,) = [event for event in events.events(one.db) if event.kind == "merge_refused"]
    assert "merging would change a log-probability" in told.text
    assert [found.origin.split("/")[0] for found in trash.listing(made)].count("base") == 1
    adapted = newest(made)
    assert adapted.merged == ()
    assert adapted.adapters is not None
    assert adapted.adapters.base == made.root / made.config().model.base
    assert {progress.examples for progress in adapted.runs.values()} == {40}
    assert versions.list_versions(made) == []
    again = Bench(Home.open(made.root))  # the disk was replaced, and the trainer started again
    one.close()
    before = golden(adapted.model)
    assert again.run(again.dataset("three.jsonl", facts(40, seed=2))) is JobState.COMPLETED
    assert len([event for event in events.events(again.db) if event.kind == "merged"]) == 1
    after = newest(made)
    assert len(after.merged) == 2
    (version,) = versions.list_versions(made)
    stored = open_lineage(made.root / read_manifest(Path(version.path))["base"], made.config())
    assert agreement(before, golden(stored.model, before)).worst < 1e-3, "the merged weights are the adapters' sum"
    again.close()
