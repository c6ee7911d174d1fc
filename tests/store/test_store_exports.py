"""Plain folders appear whole or not at all, and what comes in is checked before it is a version."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from stokehold.core.config import describe, parse_config
from stokehold.core.errors import InputError, IntegrityError, StokeholdError
from stokehold.store.db.database import connect
from stokehold.store.files import STAGING, read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.models import exports, imports, versions
from stokehold.store.models.bases import import_base
from store.matrix import every_fault

TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": []}
CONFIG = {"architectures": ["ToyForCausalLM"], "vocab_size": 2, "hidden_size": 4}


def weights(fill: int = 0, columns: int = 4) -> bytes:
    """A safetensors file of one tensor of bytes."""
    header = {"embed.weight": {"dtype": "U8", "shape": [2, columns], "data_offsets": [0, 2 * columns]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes([fill]) * (2 * columns)


def write_model(folder: Path, fill: int = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights(fill))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder


def prepare(root: Path) -> None:
    home = Home.create(root, parse_config({}))
    base = import_base(home, write_model(root / "model"))
    facts = {"base": base.path, "architecture": base.architecture, "vocabulary": base.vocabulary}
    home.write_config(describe(parse_config({"model": facts})))
    versions.create(home, connect(home), home.root / base.path)
    write_model(root / "incoming", fill=7)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    prepare(tmp_path / "home")
    return Home.open(tmp_path / "home")


def write_out(home: Home) -> None:
    target, folder = home.root / "outside" / "model", home.versions / "v0001"
    if target.is_dir():
        return  # done before; a second export refuses to write over the first

    def write(stage: Path) -> exports.Files:
        files = exports.copy_model(folder, stage, home.disk)
        told = {
            "format": 1,
            "name": "v0001",
            "licence": "",
            "datasets": [],
            "evaluation": None,
            "lineage": [],
            "step": None,
        }
        told |= {"weights_hash": "0", "architecture": "Toy", "method": "full", "created": "now", "note": ""}
        told |= {"base": {"name": "b", "source": "", "revision": "", "weights_hash": None}}
        return exports.describe(told, "full", files, stage, home.disk)

    exports.publish_plain(target, write, home.disk)


def judge_out(home: Home, told: str | None) -> str:
    target, folder = home.root / "outside" / "model", home.versions / "v0001"
    if not target.exists():
        return "old"
    for entry in read_manifest(folder)["files"]:
        assert blake3((target / entry["path"]).read_bytes()).hexdigest() == entry["blake3"]
    listed = json.loads((target / "stokehold.json").read_text())["files"]
    for entry in listed:
        assert blake3((target / entry["path"]).read_bytes()).hexdigest() == entry["blake3"]
    assert not (target / "manifest.json").exists()
    return "new"


def bring_in(home: Home) -> None:
    imports.import_folder(home, connect(home), home.root / "incoming")


def judge_in(home: Home, told: str | None) -> str:
    found = versions.list_versions(home)
    for version in found:
        if verify(Path(version.path)):
            return "named"
    new = [v for v in found if (Path(v.path) / "model.safetensors").read_bytes() == weights(7)]
    assert len(found) == 1 + len(new)
    return "new" if new else "old"


def test_an_export_is_whole_or_not_there_whatever_the_disk_does(tmp_path: Path) -> None:
    counts = every_fault(prepare, write_out, judge_out, tmp_path)
    assert counts["kill"]["old"] > 5
    assert counts["kill"]["new"]


def test_an_import_is_a_version_or_nothing_whatever_the_disk_does(tmp_path: Path) -> None:
    counts = every_fault(prepare, bring_in, judge_in, tmp_path)
    assert counts["kill"]["old"] > 5
    assert counts["kill"]["new"]


def test_what_a_killed_export_left_goes_with_the_next_and_nothing_else_does(home: Home) -> None:
    target = home.root / "outside" / "model"
    target.parent.mkdir()
    for name in ("model-0123", "other-0123"):
        (target.parent / f"{STAGING}{name}").mkdir()
    write_out(home)
    assert sorted(path.name for path in target.parent.iterdir()) == [f"{STAGING}other-0123", "model"]


def test_a_file_or_a_link_in_the_place_is_not_written_over(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with pytest.raises(StokeholdError, match="something here"):
            exports.publish_plain(tmp_path / name, lambda stage: {}, home.disk)
    assert (tmp_path / "file").read_text() == "mine"


Break = Callable[[Path], object]
REFUSED: dict[str, tuple[Break, str]] = {
    "link": (lambda f: (f / "vocab.json").symlink_to("/etc/hostname"), "symbolic link"),
    "linked folder": (lambda f: (f / "more").symlink_to("/etc"), "symbolic link"),
    "code": (lambda f: (f / "modeling.py").write_text(""), "code"),
    "pickle": (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "safetensors only"),
    "remote code": (lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"auto_map": {}})), "asks for code"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no safetensors weights"),
    "short": (lambda f: (f / "model.safetensors").write_bytes(weights()[:-1]), "bytes instead of"),
    "shape": (lambda f: (f / "model.safetensors").write_bytes(weights(columns=5)), "embed.weight is"),
    "other": (lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["X"]})), "architecture"),
    "rows": (lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 3})), "vocabulary"),
    "setting": (lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 8})), "hidden_size is 8"),
    "tokens": (lambda f: (f / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}})), "other tokens"),
    "no tokens": (lambda f: (f / "tokenizer.json").unlink(), "without a tokenizer"),
    "index": (
        lambda f: (f / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x"}})),
        "outside the folder",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_folder_that_could_harm_or_not_be_gone_on_with_is_refused(home: Home, name: str) -> None:
    spoil, said = REFUSED[name]
    spoil(home.root / "incoming")
    with pytest.raises((InputError, IntegrityError), match=said):
        bring_in(home)
    assert [version.name for version in versions.list_versions(home)] == ["v0001"]


def test_a_file_that_changed_since_its_export_is_refused(home: Home) -> None:
    write_out(home)
    folder = home.root / "outside" / "model"
    (folder / "model.safetensors").write_bytes(weights(9))
    with pytest.raises(IntegrityError, match="changed since it was exported"):
        imports.import_folder(home, connect(home), folder)


def test_a_round_trip_keeps_the_hash_of_the_weights(home: Home) -> None:
    write_out(home)
    made = imports.import_folder(home, connect(home), home.root / "outside" / "model", note="back")
    assert made.weights_hash == versions.find_version(home, "v0001").weights_hash
    assert (made.name, made.note) == ("v0002", "back")
