"""Old versions written small: every bit comes back, whatever fails, and nothing is given up before it was read back."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import every_fault
from safetensors.numpy import save_file

from stokehold.core.config import Config
from stokehold.core.errors import IntegrityError, StokeholdError
from stokehold.store.db.database import Database, connect
from stokehold.store.files import read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import compaction, delta, trash
from stokehold.store.models import versions
from stokehold.store.models.checkpoints import publish_checkpoint

WEIGHTS = "model.safetensors"
OLD_S = 10 * 24 * 3600.0
Tensors = dict[str, np.ndarray]


def drawn(seed: int, rows: int = 64) -> Tensors:
    random = np.random.default_rng(seed)
    return {
        "embed": random.normal(size=(rows, 256)).astype(np.float32),
        "head": random.normal(size=(rows, 256)).astype(np.float16),
        "tied": np.ones((rows, 256), np.float32),
        "tied_too": np.ones((rows, 256), np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3.5, np.float32),
    }


def moved(tensors: Tensors, seed: int) -> Tensors:
    """A step further: the matrices a little, the frozen ones not at all."""
    random = np.random.default_rng(seed)
    changed = {name: (tensors[name] * (1 + 1e-5 * random.normal())).astype(tensors[name].dtype) for name in ("embed",)}
    return {**tensors, **changed}


def version(home: Home, db: Database, step: int, tensors: Tensors, parent: str | None = None) -> Path:
    def write(stage: Path) -> None:
        save_file(tensors, stage / WEIGHTS, metadata={"format": "pt"})
        (stage / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')

    source = publish_checkpoint(home, step, write, {})
    folder = Path(versions.create(home, db, Path(source.path), parent=parent).path)
    age(folder)
    return folder


def age(folder: Path) -> None:
    then = folder.stat().st_mtime - OLD_S
    os.utime(folder, (then, then))


def pair(home: Home, db: Database) -> tuple[Path, Path]:
    first = drawn(0)
    return version(home, db, 1, first), version(home, db, 2, moved(first, 1), "v0001")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pack(home: Home, folder: Path) -> compaction.Saving | None:
    return compaction.pack(home, folder, compaction.against(home, folder))


def test_a_packed_version_comes_back_bit_for_bit_under_its_name(home: Home, db: Database) -> None:
    parent, child = pair(home, db)
    before, record = content(child), versions.find_version(home, "v0002")
    saving = pack(home, child)
    assert saving is not None
    assert (saving.name, saving.against) == ("v0002", "versions/v0001")
    assert saving.after < 0.5 * saving.before == 0.5 * len(before[WEIGHTS])
    assert not (child / WEIGHTS).exists()
    assert verify(child) == []
    assert versions.find_version(home, "v0002") == record, "lineage and weights' hash are what they were"
    assert compaction.whole(home, child) == child
    assert content(child) == before
    assert compaction.whole(home, child) == child, "a whole one stays as it is"
    assert content(parent).keys() == {WEIGHTS, "config.json", "manifest.json"}


def test_a_content_that_comes_twice_is_stored_once(home: Home, db: Database) -> None:
    folder = version(home, db, 1, drawn(0, rows=256))
    pack(home, folder)
    described = compaction._described(folder)[0]["tensors"]
    tied, again = (next(t for t in described if t["name"] == name) for name in ("tied", "tied_too"))
    assert (tied["offset"], tied["length"]) == (again["offset"], again["length"])


def test_chains_are_read_through_and_are_bounded(home: Home, db: Database) -> None:
    tensors, folders, whole = drawn(0), [], []
    for number in range(compaction.LONGEST_CHAIN + 2):
        folders.append(version(home, db, number + 1, tensors, f"v{number:04}" if number else None))
        whole.append(content(folders[-1]))
        tensors = moved(tensors, number)
    for folder in folders[1:]:
        assert pack(home, folder) is not None
    depths = [compaction.depth(home, folder) for folder in folders]
    assert max(depths) == compaction.LONGEST_CHAIN
    assert depths[0] == 0
    with pytest.raises(StokeholdError, match="too many versions are packed upon it"):
        pack(home, folders[0])
    for folder, before in reversed(list(zip(folders, whole, strict=True))):
        assert content(compaction.whole(home, folder)) == before


def test_what_is_packed_against_a_version_names_it(home: Home, db: Database) -> None:
    _, child = pair(home, db)
    pack(home, child)
    assert compaction.dependants(home) == {"v0001": ["v0002"]}


def test_damage_below_is_named_and_the_packed_version_stays(home: Home, db: Database) -> None:
    parent, child = pair(home, db)
    pack(home, child)
    packed = content(child)
    path = parent / WEIGHTS
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size - 5)
        stream.write(b"\0\0")
    with pytest.raises(IntegrityError, match=r"does not come back|damaged"):
        compaction.whole(home, child)
    assert content(child) == packed
    (child / compaction.CONTENT).chmod(0o644)
    (child / compaction.CONTENT).write_bytes(b"nonsense")
    with pytest.raises(IntegrityError, match="damaged"):
        compaction.whole(home, child)


def test_a_damaged_version_is_not_packed(home: Home, db: Database) -> None:
    folder = version(home, db, 1, drawn(0))
    path = folder / WEIGHTS
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(-3, os.SEEK_END)
        stream.write(b"\1")
    before = content(folder)
    with pytest.raises(IntegrityError, match="changed since it was published"):
        pack(home, folder)
    assert content(folder) == before


def test_noise_is_not_packed_and_one_in_use_neither(home: Home, db: Database) -> None:
    noise = version(home, db, 1, {"noise": np.frombuffer(os.urandom(200_000), np.uint8)})
    assert pack(home, noise) is None
    assert (noise / WEIGHTS).is_file()
    used = version(home, db, 2, drawn(0))
    compaction.touch(used)
    with pytest.raises(StokeholdError, match="in use"):
        pack(home, used)
    assert (used / WEIGHTS).is_file()


def test_the_whole_files_wait_in_the_trash_for_an_hour(home: Home, db: Database) -> None:
    _, child = pair(home, db)
    pack(home, child)
    assert [(entry.origin, entry.reason) for entry in trash.listing(home)] == [("versions/v0002", trash.PRUNED)]
    assert trash.expired(home) == []


TYPES = st.sampled_from([np.float32, np.float16, np.float64, np.int8, np.int64, np.uint8, np.int32])
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> Tensors:
    names = draw(st.lists(st.text("abc.", min_size=1, max_size=4), min_size=1, max_size=5, unique=True))
    found = {}
    for name in names:
        kind, shape = np.dtype(draw(TYPES)), draw(SHAPES)
        size = int(np.prod(shape)) * kind.itemsize
        found[name] = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), kind).reshape(shape).copy()
    return found


@given(tensors(), tensors(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_packing_and_unpacking_is_the_identity(a: Tensors, b: Tensors, shared: bool) -> None:
    with TemporaryDirectory() as scratch:
        home, below, child, stage = Home(Path(scratch)), *(Path(scratch) / name for name in ("below", "child", "stage"))
        for folder, content in ((below, a), (child, {**(a if shared else {}), **b})):
            folder.mkdir()
            save_file(content, folder / WEIGHTS)
        stage.mkdir()
        compaction._write(home, child, below, [WEIGHTS], stage)
        ((name, packed),) = compaction._files(home, stage, "below")
        assert (name, b"".join(map(bytes, packed))) == (WEIGHTS, (child / WEIGHTS).read_bytes())


@given(st.binary(max_size=40), st.binary(min_size=40, max_size=40), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_the_code_is_reversible_whatever_the_bytes(own: bytes, base: bytes, item_bytes: int, alone: bool) -> None:
    def slices(data: bytes) -> Iterator[delta.Bytes]:
        return iter([np.frombuffer(data[: len(own)], np.uint8)])

    out = io.BytesIO()
    delta.encode(slices(own), None if alone else slices(base), item_bytes, out)
    out.seek(0)
    back = delta.decode(out, None if alone else slices(base), item_bytes, len(own))
    assert b"".join(map(bytes, back)) == own


def prepared(root: Path) -> None:
    home = Home.create(root, Config())
    db = connect(home)
    pair(home, db)
    db.close()


def prepared_packed(root: Path) -> None:
    prepared(root)
    home = Home.open(root)
    pack(home, home.versions / "v0002")
    age(home.versions / "v0002")


def pack_it(home: Home) -> None:
    if not compaction.is_packed(read_manifest(home.versions / "v0002")):
        pack(home, home.versions / "v0002")


def unpack_it(home: Home) -> None:
    compaction.whole(home, home.versions / "v0002")


def _state(home: Home) -> str:
    folder = home.versions / "v0002"
    if verify(folder):
        return "named"
    state = "packed" if compaction.is_packed(read_manifest(folder)) else "whole"
    assert (state == "whole") == (folder / WEIGHTS).is_file()
    return state


def packed_or_whole(home: Home, told: str | None) -> str:
    return {"packed": "new", "whole": "old", "named": "named"}[_state(home)]


def whole_or_packed(home: Home, told: str | None) -> str:
    return {"packed": "old", "whole": "new", "named": "named"}[_state(home)]


def test_packing_under_every_fault(tmp_path: Path) -> None:
    counts = every_fault(prepared, pack_it, packed_or_whole, tmp_path)
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]


def test_unpacking_under_every_fault(tmp_path: Path) -> None:
    counts = every_fault(prepared_packed, unpack_it, whole_or_packed, tmp_path)
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]
