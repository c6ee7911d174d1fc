"""A merge of adapters ends in the old state or the new one, and a wrong merge is found before anything stands on it."""

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedModel

from adapter_home import TABLES, newest, publish, trained
from stokehold.inference.registry import load
from stokehold.store import failpoints
from stokehold.store.backup import backups
from stokehold.store.db.database import connect
from stokehold.store.files import read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.models import bases, checkpoints, versions
from stokehold.store.models.adapters import base_of
from stokehold.store.models.weights import GOLDEN
from stokehold.training import consolidation
from stokehold.training.adapters import Adapters
from stokehold.training.consolidation import MergeError, consolidate
from stokehold.training.golden import Golden, agreement, golden

PATIENCE_S = 600.0
"""A bound on hanging, not on speed."""


class Forgetful(Adapters):
    """Adapters whose merge leaves one layer out."""

    def merge(self) -> PreTrainedModel:
        with torch.no_grad():
            for name, parameter in self.peft.named_parameters():
                if ".layers.1." in name and "lora_B" in name:
                    parameter.zero_()
        return super().merge()


def folders(home: Home) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for shelf in (home.base, home.versions) for path in shelf.iterdir()}


def test_a_merge_is_a_base_and_a_version_with_lineage_behind_a_snapshot(make_home: Callable[..., Home]) -> None:
    home = make_home(**TABLES)
    db = connect(home)
    lineage = trained(home)
    first, before = base_of(home.checkpoints / str(lineage.parent)), golden(lineage.model)
    base = consolidate(lineage, home, db, {"one"})
    assert base is not None
    assert first is not None
    (taken,) = backups.list_snapshots(home)
    assert taken.reason == "before the adapters are merged"
    assert agreement(before, golden(lineage.model, before)).worst < 1e-4
    (made,) = versions.list_versions(home)
    assert (made.step, made.datasets) == (4, ("data",))
    assert f"base/{first.name}" in made.note
    manifest = read_manifest(base)
    assert (manifest["parent"], manifest["merged"], manifest["step"]) == (f"base/{first.name}", ["one"], 4)
    assert verify(base) == verify(Path(made.path)) == []
    recorded = Golden.from_bytes((Path(made.path) / GOLDEN).read_bytes(), made.name)
    assert agreement(recorded, golden(load(Path(made.path), "float32", "cpu").engine.model, recorded)).equal
    assert (base / "model.safetensors").stat().st_size > 0


def test_golden_logits_are_no_part_of_a_bases_name(make_home: Callable[..., Home], tiny_base: Path) -> None:
    home = make_home()
    plain = bases.import_base(home, tiny_base).path
    (tiny_base / GOLDEN).write_bytes(b"of another machine")
    try:
        assert bases.import_base(home, tiny_base, lineage={"step": 1}).path == plain
    finally:
        (tiny_base / GOLDEN).unlink()


def test_a_wrong_merge_is_caught_and_the_adapters_are_as_they_were(make_home: Callable[..., Home]) -> None:
    home = make_home(**TABLES)
    lineage = trained(home)
    there, before = folders(home), golden(lineage.model)
    good = lineage.adapters
    assert good is not None
    lineage.adapters = Forgetful(good.peft, good.base, good.files)
    with pytest.raises(MergeError, match=r"merging would change a log-probability by [\d.e-]+ nats, and at most 0.001"):
        consolidate(lineage, home, connect(home), {"one"})
    assert folders(home) == there
    again = newest(home)
    assert agreement(before, golden(again.model, before)).equal
    assert (again.step, again.merged, again.runs.keys()) == (4, (), {"one"})


def test_weights_that_are_wrong_on_the_disk_are_caught_too(
    make_home: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(**TABLES)
    lineage = trained(home)
    there = folders(home)
    whole = consolidation.write_weights

    def halved(model: PreTrainedModel, weights: Any, folder: Path, most: int) -> dict[str, str]:
        return whole(model, {name: tensor * 0.5 for name, tensor in weights.items()}, folder, most)

    monkeypatch.setattr(consolidation, "write_weights", halved)
    with pytest.raises(MergeError):
        consolidate(lineage, home, connect(home), {"one"})
    assert folders(home) == there
    assert [entry.reason for entry in trash.listing(home)] == ["the merged weights did not answer as the adapters did"]


def merge_once(root: Path, failpoint: str) -> None:
    torch.set_num_threads(1)
    home = Home.open(root)
    home.sweep()
    failpoints.arm(failpoint)
    lineage = newest(home)
    consolidate(lineage, home, connect(home), {"one"})
    publish(home, replace(lineage, step=5))


def apart(home: Home, failpoint: str = "") -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stokehold.training.adapters", "stokehold.training.consolidation"])
    child = context.Process(target=merge_once, args=(home.root, failpoint))
    child.start()
    child.join(PATIENCE_S)
    if child.is_alive():
        child.kill()
        child.join()
    return cast("int | None", child.exitcode)


def test_killed_anywhere_in_a_merge_it_is_the_old_state_and_the_next_run_makes_the_new_one(
    make_home: Callable[..., Home],
) -> None:
    straight = make_home(**TABLES)
    trained(straight)
    assert apart(straight) == 0
    expected = checkpoints.load_checkpoint(checkpoints.find_step(straight, 5)).weights_hash
    places = [*failpoints.MERGES, "publish.renamed", "publish.manifest@2", "publish.written@3"]
    for place in places:
        home = make_home(**TABLES)
        trained(home)
        name, _, time = place.partition("@")
        assert apart(home, f"{name}:kill@{time or 1}") == -signal.SIGKILL, place
        home.sweep()
        old = newest(home)
        assert (old.step, old.merged) == (4, ()), place
        assert old.adapters is not None
        assert old.adapters.base == home.root / home.config().model.base
        assert [fault for version in versions.list_versions(home) for fault in verify(Path(version.path))] == []
        assert apart(home) == 0, place
        assert checkpoints.load_checkpoint(checkpoints.find_step(home, 5)).weights_hash == expected, place
        assert len(versions.list_versions(home)) == 1, place
        assert len(list(home.base.iterdir())) == 2, place
