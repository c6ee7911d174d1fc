"""The store under every fault at every change it makes: the old state or the new one, and it says which."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from matrix import Counts, every_fault, places

from stokehold.core.config import Config
from stokehold.core.records import Dataset
from stokehold.store.blobs import LINK_BYTES, BlobStore
from stokehold.store.datasets import list_datasets, save_dataset
from stokehold.store.db.database import connect
from stokehold.store.disk import FaultyDisk
from stokehold.store.files import hash_file, publish, read_manifest, verify, write_atomic
from stokehold.store.home import Home
from stokehold.store.housekeeping import ages, trash
from stokehold.store.models import versions
from stokehold.store.models.bases import import_base
from stokehold.store.models.checkpoints import (
    checkpoint_folder,
    list_checkpoints,
    prune,
    publish_checkpoint,
    set_aside,
)
from tiny_world import safetensors

LARGE, SMALL = safetensors(b"large" * (LINK_BYTES // 5)), safetensors(b"small")
SETTINGS = "suites/settings.json"


class WithoutExchange(FaultyDisk):
    """A file system that cannot swap two names."""

    def exchange(self, one: Path, other: Path) -> bool:
        return False


def fresh(root: Path) -> None:
    Home.create(root, Config())


def with_checkpoints(root: Path) -> None:
    home = Home.create(root, Config())
    connect(home).close()
    for step in (10, 20, 30):
        publish_checkpoint(home, step, state("old"), {"value": "old"})


def with_trash(root: Path) -> None:
    with_checkpoints(root)
    home = Home(root)
    for step in (10, 20):
        trash.discard(home, checkpoint_folder(home, step), trash.PRUNED)


def state(value: str, model: bytes = LARGE) -> Callable[[Path], None]:
    def write(stage: Path) -> None:
        (stage / "model.safetensors").write_bytes(model)
        (stage / "config.json").write_text(f'"{value}"')

    return write


def damaged(home: Home) -> bool:
    """Whether anything that is published does not verify, or a blob."""
    shelves = (home.base, home.checkpoints, home.versions, home.datasets, home.evaluations)
    folders = [folder for shelf in shelves for folder in shelf.iterdir()]
    assert not [folder for folder in folders if folder.name.startswith(".")], "the sweep left something"
    blobs = BlobStore(home.blobs)
    return any(verify(folder) for folder in folders) or any(blobs.verify(name) for name in blobs.hashes())


def both(counts: Counts) -> None:
    """Kills ended in either state, else the matrix has shown little; no fault but a flip was left to `verify`."""
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]
    assert sum(counts["full"].values()) == sum(counts["io"].values()) == sum(counts["kill"].values())


# publish


def publish_one(home: Home) -> None:
    if not (home.evaluations / "it").exists():
        publish(home.evaluations / "it", state("new"), {"kind": "test"}, disk=home.disk)


def published(home: Home, _told: str | None) -> str:
    if damaged(home):
        return "named"
    return "new" if (home.evaluations / "it").exists() else "old"


def test_publish(tmp_path: Path) -> None:
    counts = every_fault(fresh, publish_one, published, tmp_path)
    both(counts)
    assert set(counts["flip"]) == {"named"}, "a bit that turns anywhere in what was written is seen"


# publish in the place of another


def replace_one(home: Home) -> None:
    publish_checkpoint(home, 20, state("new"), {"value": "new"})


def replaced(home: Home, _told: str | None) -> str:
    """The old one is never gone: it is in its place, or in the trash."""
    if damaged(home):
        return "named"
    value = read_manifest(checkpoint_folder(home, 20))["value"]
    assert (checkpoint_folder(home, 20) / "config.json").read_text() == f'"{value}"'
    away = [read_manifest(found.path)["value"] for found in trash.listing(home)]
    assert value == "old" or "old" in away
    return value


@pytest.mark.parametrize("disk", [FaultyDisk, WithoutExchange])
def test_publish_in_the_place_of_another(tmp_path: Path, disk: type[FaultyDisk]) -> None:
    both(every_fault(with_checkpoints, replace_one, replaced, tmp_path, disk=disk))
    changes = places(with_checkpoints, replace_one, tmp_path, disk)
    moves = [change for change in changes if change.startswith("rename") and not change.endswith(ages.FILE)]
    assert len(moves) == (2 if disk is FaultyDisk else 5), "the note, then one more, or the three that take turns"


# one file


def with_a_setting(root: Path) -> None:
    fresh(root)
    write_atomic(root / SETTINGS, b"old" * 1000)


def write_one(home: Home) -> None:
    write_atomic(home.root / SETTINGS, b"new" * 1000, disk=home.disk)


def written(home: Home, _told: str | None) -> str:
    content = (home.root / SETTINGS).read_bytes()
    if content not in (b"old" * 1000, b"new" * 1000):
        return "named"  # a file without a manifest: its reader judges it
    return content[:3].decode()


def test_one_file(tmp_path: Path) -> None:
    both(every_fault(with_a_setting, write_one, written, tmp_path))


# blobs


def with_a_file(root: Path) -> None:
    fresh(root)
    (root.parent / "large").write_bytes(LARGE)
    (root.parent / "small").write_bytes(SMALL)


def add_two(home: Home) -> None:
    blobs = BlobStore(home.blobs, home.disk)
    for name in ("large", "small"):
        blobs.add(home.root.parent / name)


def adopt_two(home: Home) -> None:
    blobs = BlobStore(home.blobs, home.disk)
    for content, name in ((LARGE, "a"), (SMALL, "b")):
        path = home.root / name
        if not path.exists():
            path.write_bytes(content)
        blobs.adopt(path, hash_file(home.root.parent / ("large" if name == "a" else "small")), len(content))
        path.unlink()


def two_blobs(home: Home, _told: str | None) -> str:
    if damaged(home):
        return "named"
    return "new" if len(BlobStore(home.blobs).hashes()) == 2 else "old"


@pytest.mark.parametrize("act", [add_two, adopt_two])
def test_blobs(tmp_path: Path, act: Callable[[Home], None]) -> None:
    both(every_fault(with_a_file, act, two_blobs, tmp_path))


def with_blobs(root: Path) -> None:
    with_a_file(root)
    add_two(Home(root))


def place_two(home: Home) -> None:
    blobs = BlobStore(home.blobs, home.disk)

    def write(stage: Path) -> None:
        for name in blobs.hashes():
            blobs.place(name, stage / name)

    if not (home.evaluations / "it").exists():
        publish(home.evaluations / "it", write, {"kind": "test"}, known={n: n for n in blobs.hashes()}, disk=home.disk)


def test_placing_blobs(tmp_path: Path) -> None:
    both(every_fault(with_blobs, place_two, published, tmp_path))


# versions


def create_one(home: Home) -> None:
    db = connect(home)
    if not versions.list_versions(home):
        versions.create(home, db, checkpoint_folder(home, 20))
    db.close()


def created(home: Home, _told: str | None) -> str:
    if damaged(home):
        return "named"
    return "new" if versions.list_versions(home) else "old"


def test_making_a_version(tmp_path: Path) -> None:
    both(every_fault(with_checkpoints, create_one, created, tmp_path))


# checkpoints and trash


def prune_all_but_the_newest(home: Home) -> None:
    prune(home, set(), 1)


def go_back(home: Home) -> None:
    set_aside(home, 10, "went back")


def one_left(home: Home, _told: str | None) -> str:
    """Several steps, each of them whole: what is not in its place is in the trash."""
    if damaged(home):
        return "named"
    here = [Path(checkpoint.path).name for checkpoint in list_checkpoints(home)]
    away = [Path(found.origin).name for found in trash.listing(home)]
    assert sorted(here + away) == [f"step_0000000{step}" for step in (10, 20, 30)]
    return "new" if len(here) == 1 else "old"


@pytest.mark.parametrize("act", [prune_all_but_the_newest, go_back])
def test_taking_checkpoints_away(tmp_path: Path, act: Callable[[Home], None]) -> None:
    both(every_fault(with_checkpoints, act, one_left, tmp_path))


def empty_all(home: Home) -> None:
    trash.empty(home, keep_s=-1, pruned_keep_s=-1)


def emptied(home: Home, _told: str | None) -> str:
    """Half a folder in the trash has no manifest: it is not taken for one."""
    assert len(list_checkpoints(home)) == 1
    assert not damaged(home)
    for found in trash.listing(home):
        assert verify(found.path) == [] or not (found.path / "manifest.json").exists()
    return "old" if any(home.trash.iterdir()) else "new"


def test_emptying_the_trash(tmp_path: Path) -> None:
    counts = every_fault(with_trash, empty_all, emptied, tmp_path)
    assert set(counts["kill"]) == {"old"}, "the last removal is what empties it"


# datasets and bases


def save_one(home: Home) -> None:
    def write(stage: Path) -> None:
        (stage / "rows.jsonl").write_text('{"text": "a row"}\n' * 100)

    save_dataset(home, Dataset("d1", "c1", "one.jsonl", 1800, 100, 0, 0, "2026-01-01T00:00:00.000Z"), write)


def saved(home: Home, _told: str | None) -> str:
    if damaged(home):
        return "named"
    return "new" if list_datasets(home) else "old"


def test_saving_a_dataset(tmp_path: Path) -> None:
    both(every_fault(fresh, save_one, saved, tmp_path))


def with_a_model(root: Path) -> None:
    fresh(root)
    model = root.parent / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(LARGE)
    (model / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 3}')
    (model / "tokenizer.json").write_text("{}")


def import_one(home: Home) -> None:
    import_base(home, home.root.parent / "model")


def imported(home: Home, _told: str | None) -> str:
    found = list(home.base.iterdir())
    if damaged(home):
        return "named"
    if found:
        assert (found[0] / "model.safetensors").read_bytes() == LARGE
    return "new" if found else "old"


def test_importing_a_base(tmp_path: Path) -> None:
    both(every_fault(with_a_model, import_one, imported, tmp_path))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux")
def test_names_of_the_places(tmp_path: Path) -> None:
    """The manifest is written last, and the folder gets its name after that."""
    names = [place.split(" ")[0] for place in places(fresh, publish_one, tmp_path)]
    assert names[-4:] == ["write", "sync", "rename", "sync"]
