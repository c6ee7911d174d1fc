"""Versions without copies, aliases, references, and the blobs below them."""

import os
import shutil
from pathlib import Path

import pytest

from stokehold.core.config import describe, parse_config
from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.records import Checkpoint
from stokehold.store.blobs import LINK_BYTES, BlobStore, share
from stokehold.store.db.database import Database, connect
from stokehold.store.files import hash_file, read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.models import references, versions
from stokehold.store.models.checkpoints import publish_checkpoint
from tiny_world import safetensors

WEIGHTS = "model.safetensors"


def checkpoint(home: Home, step: int = 100) -> Checkpoint:
    def write(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(safetensors(os.urandom(LINK_BYTES + 7)))
        (folder / "optimizer.safetensors").write_bytes(safetensors(os.urandom(LINK_BYTES + 7)))
        (folder / "trainer.json").write_text("{}")
        (folder / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')

    return publish_checkpoint(home, step, write, {})


def damage(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        stream.write(b"damaged")


def test_a_version_has_the_model_its_lineage_and_no_optimiser(home: Home, db: Database) -> None:
    source = checkpoint(home)
    made = versions.create(
        home, db, Path(source.path), parent="v0000", datasets=["d1", "d2"], evaluation="e1", note="good"
    )
    assert made == versions.find_version(home, "v1") == versions.list_versions(home)[0]
    assert (made.name, made.step, made.weights_hash) == ("v0001", 100, source.weights_hash)
    assert (made.parent, made.datasets, made.evaluation, made.note) == ("v0000", ("d1", "d2"), "e1", "good")
    assert {path.name for path in Path(made.path).iterdir()} == {
        *(WEIGHTS, "config.json", "manifest.json"),
        "trainer.json",  # small, and what training from this version needs
    }
    assert verify(Path(made.path)) == []
    whole = versions.create(home, db, Path(source.path), optimiser=True)
    assert "optimizer.safetensors" in {path.name for path in Path(whole.path).iterdir()}


def test_large_files_are_shared_and_not_read_small_ones_are_copied(home: Home, db: Database) -> None:
    source = checkpoint(home)
    stated = hash_file(Path(source.path) / WEIGHTS)
    damage(Path(source.path) / WEIGHTS)
    made = versions.create(home, db, Path(source.path))
    assert made.weights_hash == stated, "the hash is the checkpoint's, so the weights were not read"
    shared = Path(made.path) / WEIGHTS
    assert shared.samefile(Path(source.path) / WEIGHTS) or shared.stat().st_nlink == 1  # a reflink has its own inode
    assert not (Path(made.path) / "config.json").samefile(Path(source.path) / "config.json")
    (bad,) = versions.verify(home, Path(made.path))
    assert bad.path == WEIGHTS
    assert "shared with step_000000100" in bad.reason, "linked copies share one fate, and it says so"


def test_a_checkpoint_that_was_changed_makes_no_version(home: Home, db: Database) -> None:
    small = checkpoint(home, 100)
    (Path(small.path) / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    with pytest.raises(IntegrityError, match="changed since"):
        versions.create(home, db, Path(small.path))
    short = checkpoint(home, 200)
    os.truncate(Path(short.path) / WEIGHTS, LINK_BYTES + 1)
    with pytest.raises(IntegrityError, match="changed since"):
        versions.create(home, db, Path(short.path))
    assert versions.list_versions(home) == []


def test_a_folder_without_weights_makes_no_version(home: Home, db: Database) -> None:
    bare = publish_checkpoint(home, 1, lambda folder: (folder / "trainer.json").touch(), {})
    with pytest.raises(IntegrityError, match="no weights"):
        versions.create(home, db, Path(bare.path))


def test_numbers_are_never_given_twice(home: Home, db: Database) -> None:
    source = Path(checkpoint(home).path)
    names = [versions.create(home, db, source).name for _ in range(3)]
    assert names == ["v0001", "v0002", "v0003"]
    for name in names:
        shutil.rmtree(home.versions / name)
    assert versions.create(home, db, source).name == "v0004"


def test_numbers_go_on_above_the_folders_of_a_lost_database(home: Home, db: Database) -> None:
    source = Path(checkpoint(home).path)
    versions.create(home, db, source)
    fresh = connect(f"sqlite:///{home.root / 'other.db'}")
    assert versions.create(home, fresh, source).name == "v0002"
    fresh.close()


def test_aliases_move_and_remember(home: Home, db: Database) -> None:
    source = Path(checkpoint(home).path)
    for _ in range(2):
        versions.create(home, db, source)
    assert versions.alias(db) is None
    assert versions.set_alias(home, db, "champion", "v1") is None
    assert versions.set_alias(home, db, "champion", "v0002") == "v0001"
    assert versions.set_alias(home, db, "champion", "v0002") == "v0002"
    assert (versions.alias(db), versions.previous(db)) == ("v0002", "v0001")
    with pytest.raises(NotFoundError, match="v0001, v0002"):
        versions.set_alias(home, db, "champion", "v0009")
    assert versions.aliases(db) == {"champion": "v0002"}


def test_references(home: Home, db: Database) -> None:
    for ref in ("latest", "champion", "base", "v0001", "step:100", "nonsense", "versions/../..", "v1/.."):
        with pytest.raises(NotFoundError):
            references.resolve(home, db, ref)
    made = checkpoint(home)
    version = versions.create(home, db, Path(made.path))
    versions.set_alias(home, db, "champion", version.name)
    (home.base / "abc").mkdir()
    home.write_config(describe(parse_config({"model": {"base": "base/abc"}})))
    assert references.resolve(home, db, "latest") == Path(made.path)
    assert references.resolve(home, db, "step:100") == Path(made.path)
    assert references.resolve(home, db, "champion") == Path(version.path)
    assert references.resolve(home, db, "v0001") == references.resolve(home, db, "v1") == Path(version.path)
    assert references.resolve(home, db, "base") == home.base / "abc"
    assert references.resolve(home, db, made.path) == Path(made.path)
    with pytest.raises(NotFoundError):
        references.resolve(home, db, made.path, paths=False)
    assert references.resolve(home, db, "versions/v0001") == Path(version.path)


def test_a_version_without_manifest_does_not_exist(home: Home, db: Database) -> None:
    made = versions.create(home, db, Path(checkpoint(home).path))
    (Path(made.path) / "manifest.json").unlink()
    assert versions.list_versions(home) == []
    with pytest.raises(NotFoundError, match="none yet"):
        versions.find_version(home, "v0001")


def test_blobs_keep_content_once_and_read_only(home: Home, tmp_path: Path) -> None:
    store = BlobStore(home.blobs)
    (tmp_path / "a").write_bytes(b"same")
    (tmp_path / "b").write_bytes(b"same")
    digest = store.add(tmp_path / "a")
    assert digest == store.add(tmp_path / "b") == hash_file(tmp_path / "a")
    assert store.hashes() == [digest]
    assert store.path(digest).stat().st_mode & 0o222 == 0
    assert store.verify(digest) is None
    store.place(digest, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"same"
    (tmp_path / "c").write_bytes(b"a library rewrites its copy")
    assert store.verify(digest) is None
    damage(store.path(digest))
    assert store.verify(digest) == "content changed"
    store.path(digest).unlink()
    assert store.verify(digest) == "missing"
    with pytest.raises(NotFoundError, match="blob is missing"):
        store.place(digest, tmp_path / "d")
    assert [path.name for path in home.blobs.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("size", [0, 10, LINK_BYTES - 1, LINK_BYTES])
def test_sharing_gives_the_same_content_at_the_least_cost(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(os.urandom(size))
    how = share(tmp_path / "a", tmp_path / "b")
    assert hash_file(tmp_path / "a") == hash_file(tmp_path / "b")
    assert how in ({"reflink", "link"} if size >= LINK_BYTES else {"reflink", "copy"})
    assert (how == "link") == (tmp_path / "a").samefile(tmp_path / "b")


def test_a_manifest_of_a_version_names_its_source(home: Home, db: Database) -> None:
    made = versions.create(home, db, Path(checkpoint(home).path), config_hash="c0ffee")
    manifest = read_manifest(Path(made.path))
    assert (manifest["kind"], manifest["source"], manifest["config_hash"]) == ("version", "step_000000100", "c0ffee")


@pytest.mark.parametrize("stands_there", ["a symbolic link", "a folder"])
def test_what_stands_in_the_place_of_a_blob_is_refused(home: Home, tmp_path: Path, stands_there: str) -> None:
    store = BlobStore(home.blobs)
    (tmp_path / "a").write_bytes(b"content")
    path = store.path(store.add(tmp_path / "a"))
    path.unlink()
    path.mkdir() if stands_there == "a folder" else path.symlink_to(tmp_path / "a")
    assert store.verify(path.name) == stands_there
    with pytest.raises(IntegrityError, match=f"blob is {stands_there}"):
        store.place(path.name, tmp_path / "b")
    assert not os.path.lexists(tmp_path / "b")


def test_a_linked_file_is_not_taken_in_and_a_name_that_is_no_hash_is_no_path(home: Home, tmp_path: Path) -> None:
    store = BlobStore(home.blobs)
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(IntegrityError, match="a symbolic link, not the file"):
        store.adopt(tmp_path / "link", hash_file(tmp_path / "a"), 7)
    for name in ("../" * 21 + "x", "A" * 64, "", "a" * 63):
        with pytest.raises(IntegrityError, match="no hash of a blob"):
            store.path(name)
    assert store.hashes() == []


@pytest.mark.parametrize("extra", [1, 2**30, 2**62])
def test_weights_with_a_header_larger_than_their_file_make_no_version(home: Home, db: Database, extra: int) -> None:
    content = bytearray(safetensors(b"weights"))
    length = int.from_bytes(content[:8], "little")
    content[:8] = (length + 7 + extra).to_bytes(8, "little")

    def write(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(content)

    made = publish_checkpoint(home, 5, write, {})
    reason = r"its header is said to have|not a safetensors file"
    with pytest.raises(IntegrityError, match=reason):
        versions.create(home, db, Path(made.path))
    assert versions.list_versions(home) == []
    (bad,) = versions.verify(home, Path(made.path))
    assert (bad.path, "cut short" in bad.reason) == (WEIGHTS, True)
