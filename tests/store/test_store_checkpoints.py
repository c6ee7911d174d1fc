"""Checkpoints: the newest that verifies on the present branch, and what was passed over."""

import os
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.store.db import journal
from stokehold.store.db.database import Database
from stokehold.store.files import MANIFEST, hash_file, read_manifest
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.models import checkpoints
from stokehold.store.models.checkpoints import (
    checkpoint_folder,
    find_step,
    latest,
    list_checkpoints,
    load_checkpoint,
    prune,
    publish_checkpoint,
    set_aside,
    verify_checkpoint,
)


def state(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_text(text * 1000)
        (folder / "optimizer.safetensors").write_text("moments")
        (folder / "trainer.json").write_text("{}")

    return write


def publish(home: Home, *steps: int, branch: int = 0) -> None:
    for step in steps:
        publish_checkpoint(home, step, state(f"{branch}:{step} "), {"branch": branch, "datasets": ["d7f3"]})


def newest(home: Home, db: Database | None = None) -> int | None:
    found = latest(home, db).checkpoint
    return found.step if found else None


def test_a_published_checkpoint_reads_back(home: Home) -> None:
    made = publish_checkpoint(home, 1200, state("x"), {"branch": 2, "parent": "step_000001000", "datasets": ["d"]})
    folder = home.checkpoints / "step_000001200"
    assert made == load_checkpoint(folder)
    assert (made.step, made.path, made.parent) == (1200, str(folder), "step_000001000")
    assert made.weights_hash == hash_file(folder / "model.safetensors")
    manifest = read_manifest(folder)
    assert (manifest["kind"], manifest["branch"], manifest["datasets"]) == ("checkpoint", 2, ["d"])


def test_there_may_be_none(home: Home) -> None:
    assert latest(home) == checkpoints.Latest(None, ())
    assert list_checkpoints(home) == []


def test_order_is_by_number_not_by_text(home: Home) -> None:
    publish(home, 999_999_999, 1_000_000_000, 200)
    assert [one.step for one in list_checkpoints(home)] == [200, 999_999_999, 1_000_000_000]
    assert newest(home) == 1_000_000_000


def flip(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[7] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def newer_format(folder: Path) -> None:
    manifest = orjson.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_bytes(orjson.dumps(manifest | {"format": 99}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "model.safetensors: content changed"),
        (lambda folder: os.truncate(folder / "optimizer.safetensors", 3), "3 bytes instead of 7"),
        (lambda folder: (folder / "trainer.json").unlink(), "trainer.json: missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "no manifest"),
        (newer_format, "newer format 99"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(
    home: Home, damage: Callable[[Path], object], reason: str
) -> None:
    publish(home, 100, 200)
    assert newest(home) == 200
    damage(checkpoint_folder(home, 200))
    found = latest(home)
    assert found.checkpoint == load_checkpoint(checkpoint_folder(home, 100))
    assert [one.path for one in found.passed_over] == [str(checkpoint_folder(home, 200))]
    assert reason in found.passed_over[0].reason


def test_an_untouched_checkpoint_is_read_once(home: Home) -> None:
    """Restoring size and time after a flip shows that the content was not read again; touching it makes it so."""
    publish(home, 100)
    weights = checkpoint_folder(home, 100) / "model.safetensors"
    was = weights.stat()
    flip(checkpoint_folder(home, 100))
    os.utime(weights, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert verify_checkpoint(checkpoint_folder(home, 100)) == []
    os.utime(weights)
    assert [bad.path for bad in verify_checkpoint(checkpoint_folder(home, 100))] == ["model.safetensors"]


def test_folders_that_are_no_checkpoints_do_not_disturb(home: Home) -> None:
    publish(home, 100)
    (home.checkpoints / ".staging-step_000000200-x").mkdir()
    (home.checkpoints / "step_000000300").mkdir()
    (home.checkpoints / "notes").mkdir()
    (home.checkpoints / "step_000000400").write_text("a file")
    assert [one.step for one in list_checkpoints(home)] == [100]
    assert newest(home) == 100


def test_a_repeated_step_replaces_and_keeps_the_old_in_the_trash(home: Home) -> None:
    publish_checkpoint(home, 100, state("old"), {})
    made = publish_checkpoint(home, 100, state("new"), {})
    assert load_checkpoint(checkpoint_folder(home, 100)) == made
    (old,) = trash.listing(home)
    assert (old.origin, old.reason) == ("checkpoints/step_000000100", "the step was taken again")
    assert load_checkpoint(old.path).weights_hash != made.weights_hash


def test_a_name_that_a_folder_without_manifest_holds_is_taken_over(home: Home) -> None:
    checkpoint_folder(home, 100).mkdir()
    publish(home, 100)
    assert newest(home) == 100


def test_going_back(home: Home, db: Database) -> None:
    publish(home, 100, 200, 300)
    branch = journal.new_branch(db, 200, "WORSE twice")
    found = latest(home, db)
    assert found.checkpoint is not None
    assert found.checkpoint.step == 200, "even before anything was moved"
    assert "abandoned branch 0" in found.passed_over[0].reason
    publish(home, 250, branch=branch)
    assert [path.name for path in set_aside(home, 200, "WORSE twice", branch)] == ["step_000000300"]
    assert newest(home, db) == newest(home) == 250
    assert [(one.origin, one.reason) for one in trash.listing(home)] == [
        ("checkpoints/step_000000300", "WORSE twice"),
    ]
    assert set_aside(home, 200, "again", branch) == []


def test_prune_keeps_the_newest_that_verify_and_what_is_needed(home: Home) -> None:
    publish(home, 100, 200, 300, 400, 500)
    flip(checkpoint_folder(home, 500))
    gone = prune(home, keep={100}, n=2)
    assert [path.name for path in gone] == ["step_000000200"]
    assert [one.step for one in list_checkpoints(home)] == [100, 300, 400, 500], "what is damaged stays to be looked at"
    assert prune(home, keep={100}, n=2) == []


def test_find_step_names_the_nearest(home: Home) -> None:
    with pytest.raises(NotFoundError, match="none yet"):
        find_step(home, 1)
    publish(home, 100, 200)
    assert find_step(home, 200) == checkpoint_folder(home, 200)
    with pytest.raises(NotFoundError, match="nearest is step:100"):
        find_step(home, 120)


def test_other_folders_are_not_checkpoints(home: Home, tmp_path: Path) -> None:
    publish(home, 100)
    manifest = read_manifest(checkpoint_folder(home, 100)) | {"kind": "version"}
    del manifest["seal"]
    (checkpoint_folder(home, 100) / MANIFEST).write_bytes(orjson.dumps(manifest))
    with pytest.raises(IntegrityError, match="not a checkpoint"):
        load_checkpoint(checkpoint_folder(home, 100))


def test_weights_hash_covers_every_shard_and_nothing_else() -> None:
    def entry(path: str, digest: str) -> dict[str, str]:
        return {"path": path, "blake3": digest * 64}

    shards = [entry("model-00001-of-00002.safetensors", "a"), entry("model-00002-of-00002.safetensors", "b")]
    beside = [entry("optimizer.safetensors", "c"), entry("config.json", "d")]
    whole = checkpoints.weights_hash([*shards, *beside])
    assert whole == checkpoints.weights_hash([*beside, *shards[::-1]]) == checkpoints.weights_hash(shards)
    assert whole != checkpoints.weights_hash([shards[0], entry("model-00002-of-00002.safetensors", "e")])
    assert checkpoints.weights_hash([entry("adapter_model.safetensors", "f")]) == "f" * 64
    assert checkpoints.weights_hash(beside) == ""


def test_trash_is_emptied_by_age_and_reason(home: Home) -> None:
    publish(home, 100, 200, 300)
    prune(home, keep=set(), n=2)
    set_aside(home, 200, "WORSE")
    assert trash.empty(home) == []
    assert trash.empty(home, pruned_keep_s=0) == ["checkpoints/step_000000100"]
    assert trash.empty(home, keep_s=0) == ["checkpoints/step_000000300"]
    assert list(home.trash.iterdir()) == []
    assert newest(home) == 200
