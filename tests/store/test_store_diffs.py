"""What lies between two versions: by layer, exactly, without torch and without a tensor in memory."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stokehold.core.records import Evaluation, SuiteResult, SuiteState
from stokehold.store import files
from stokehold.store.db.database import Database
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import diffs, versions
from stokehold.store.models.checkpoints import publish_checkpoint
from stokehold.store.models.tensors import Place

Tensors = dict[str, tuple[str, list[int], bytes]]


def write(path: Path, tensors: Tensors) -> None:
    """A safetensors file."""
    header, at = {}, 0
    for name, (kind, shape, content) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(content)]}
        at += len(content)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(content for _, _, content in tensors.values()))


def f32(*values: float) -> tuple[str, list[int], bytes]:
    return "F32", [len(values)], np.array(values, "<f4").tobytes()


def folder(home: Home, step: int, shards: dict[str, Tensors], **config: Any) -> Path:
    def fill(stage: Path) -> None:
        for name, tensors in shards.items():
            write(stage / name, tensors)
        (stage / "config.json").write_text(json.dumps({"hidden": 4, **config}))

    return Path(publish_checkpoint(home, step, fill, {"datasets": [f"d{step}", "both"]}).path)


def one(tensors: Tensors) -> dict[str, Tensors]:
    return {"model.safetensors": tensors}


def test_weights_by_layer_with_settings_and_data(home: Home, db: Database) -> None:
    a = folder(
        home,
        10,
        one(
            {
                "model.embed_tokens.weight": f32(1.0),
                "model.layers.0.mlp.up.weight": f32(3.0, 4.0),
                "model.layers.10.mlp.up.weight": f32(1.0, 0.0),
                "model.layers.2.norm.weight": f32(1.0),
                "lm_head.weight": f32(5.0),
            }
        ),
        dropout=0.1,
    )
    b = folder(
        home,
        20,
        one(
            {
                "model.embed_tokens.weight": f32(1.0),
                "model.layers.0.mlp.up.weight": f32(3.0, 4.5),
                "model.layers.10.mlp.up.weight": f32(0.0, 1.0),
                "model.layers.2.norm.weight": f32(1.0, 2.0),
                "new.weight": f32(5.0),
            }
        ),
        dropout=0.2,
    )
    found = diffs.diff(home, db, a, b)
    told = {group.name: (group.changed, group.relative, group.largest) for group in found.weights.groups}
    assert list(told) == ["embed_tokens", "layer.0", "layer.10"], "in the order of the model"
    assert told["embed_tokens"] == (0, 0.0, 0.0)
    assert told["layer.0"] == (1, pytest.approx(0.1), pytest.approx(0.5))
    assert told["layer.10"] == (1, pytest.approx(math.sqrt(2)), pytest.approx(1.0))
    assert found.weights.only_a == ("lm_head.weight",)
    assert found.weights.only_b == ("new.weight",)
    assert found.weights.reshaped == ("model.layers.2.norm.weight: F32 [1] -> F32 [2]",)
    assert [(s.key, s.a, s.b) for s in found.settings] == [("config.json: dropout", 0.1, 0.2)]
    assert [entry["dataset"] for entry in found.datasets["only_a"]] == ["d10"]
    assert [entry["dataset"] for entry in found.datasets["only_b"]] == ["d20"]
    assert found.steps == (10, 20)


@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64"])
def test_the_relative_change_is_what_numpy_says(kind: str, pairs: list[tuple[float, float]]) -> None:
    def encode(values: list[float]) -> tuple[bytes, np.ndarray[Any, Any]]:
        if kind == "BF16":
            wide = np.array(values, "<f4").view("<u4") & 0xFFFF0000
            return (wide >> 16).astype("<u2").tobytes(), wide.view("<f4").astype(np.float64)
        stored = np.array(values, diffs.NUMBERS[kind])
        return stored.tobytes(), stored.astype(np.float64)

    (first, x), (second, y) = encode([p[0] for p in pairs]), encode([p[1] for p in pairs])
    assert np.array_equal(diffs._numbers(first, kind), x)
    with tempfile.TemporaryDirectory() as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffs, "PIECE_BYTES", 16)
        for name, content in (("a", first), ("b", second)):
            (Path(made) / name).write_bytes(content)
        place = Place("w", f"{kind} [{len(pairs)}]", 1, 0, len(first))
        stored = [diffs._Stored(Path(made) / name, None, place) for name in ("a", "b")]
        group = diffs._compared("g", [(stored[0], stored[1])])
    norm = float(np.linalg.norm(x))
    if first == second:
        assert (group.relative, group.changed) == (0.0, 0)
    elif norm > 0:
        assert group.relative == pytest.approx(float(np.linalg.norm(y - x)) / norm)
        assert group.largest == pytest.approx(float(np.abs(y - x).max()))
    else:
        assert group.relative is None, "of nothing there is no share"


def test_shards_of_equal_hash_are_not_read(home: Home, db: Database) -> None:
    frozen: Tensors = {"model.layers.0.w.weight": f32(1.0, 2.0)}
    a = folder(home, 10, {"model-1.safetensors": frozen, "model-2.safetensors": {"model.layers.1.w.weight": f32(1.0)}})
    b = folder(home, 20, {"model-1.safetensors": frozen, "model-2.safetensors": {"model.layers.1.w.weight": f32(2.0)}})
    content = (b / "model-1.safetensors").read_bytes()
    (b / "model-1.safetensors").unlink()
    (b / "model-1.safetensors").write_bytes(content[:-8] + b"\0" * 8)  # would be another number, were it read
    groups = {group.name: group.relative for group in diffs.diff(home, db, a, b).weights.groups}
    assert groups == {"layer.0": 0.0, "layer.1": 1.0}


def test_versions_of_the_same_weights_are_the_same(home: Home, db: Database) -> None:
    source = folder(home, 10, one({"model.layers.0.w.weight": f32(1.0)}))
    a, b = (Path(versions.create(home, db, source).path) for _ in range(2))
    found = diffs.diff(home, db, a, b)
    assert found.weights.same
    assert found.settings == ()
    assert (found.evaluation, found.comparable) == ((), None)


def test_adapters_are_compared_on_their_bases(home: Home, db: Database) -> None:
    base = home.base / "b"
    files.publish(base, lambda stage: _base(stage), {"kind": "base"})

    def fill(value: float) -> Any:
        def write_adapter(stage: Path) -> None:
            (stage / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../../base/b"}))
            name = "base_model.model.model.layers.0.q.lora_A.weight"
            write(stage / "adapter_model.safetensors", {name: f32(value)})

        return write_adapter

    a, b = (Path(publish_checkpoint(home, n, fill(float(n)), {}).path) for n in (10, 20))
    (group,) = diffs.diff(home, db, a, b).weights.groups
    assert (group.name, group.tensors, group.changed) == ("layer.0", 2, 1)


def _base(stage: Path) -> None:
    write(stage / "model.safetensors", {"model.layers.0.q.weight": f32(1.0)})
    (stage / "config.json").write_text("{}")


def test_evaluations_of_both_side_by_side(home: Home, db: Database) -> None:
    a, b = (folder(home, n, one({"w": f32(float(n))})) for n in (10, 20))
    for name, path, exact, engine in (("e1", a, 0.25, "x"), ("e2", a, 0.5, "y"), ("e3", b, 0.75, "x")):
        suites = {"s": SuiteResult("s", SuiteState.OK, 4, exact=exact, nll_per_token=1 - exact)}
        weights = versions.checkpoints.weights_hash(versions.entries(path))
        judged = Evaluation(name, "r", weights, f"{engine}-s", suites, 1.0, "", files.utc_now())
        evaluations.save(home, db, judged, lambda stage: None)
    found = diffs.diff(home, db, a, b)
    assert [(r.suite, r.exact_a, r.exact_b, r.nll_b) for r in found.evaluation] == [("s", 0.25, 0.75, 0.25)]
    assert found.comparable is True, "of two evaluations of A the one that was made like B's"
