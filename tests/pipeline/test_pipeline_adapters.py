"""Files trained with adapters, from the first to the version that answers, with merges between and kills anywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stokehold.core.errors import ConfigError
from stokehold.core.records import Message
from stokehold.inference.registry import Registry, load
from stokehold.pipeline.foreground import Meter, train_files
from stokehold.pipeline.judge import evaluate_ref
from stokehold.pipeline.promote import go_back
from stokehold.pipeline.trainer import Trainer
from stokehold.pipeline.worker import Leave
from stokehold.store.db import events
from stokehold.store.db.database import connect
from stokehold.store.files import read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, references, versions
from stokehold.store.models.adapters import base_of
from tiny_world import facts, held_out_facts, write_jsonl

TABLES: dict[str, dict[str, Any]] = {
    "model": {"method": "lora"},
    "adapter": {"rank": 4, "alpha": 16.0, "dropout": 0.1, "merge_files": 1},
    "training": {"learning_rate": 0.03, "warmup_steps": 2, "epochs": 2},
    "evaluation": {"max_new_tokens": 12},
}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_jsonl(tmp_path / f"{seed}.jsonl", facts(120, seed)) for seed in range(3)]


def train(home: Home, files: list[Path], steps: int | None = None) -> dict[str, Any]:
    """As a process of its own would: nothing is warm."""
    return train_files(home, files, steps, True, Leave(), Meter())


def merges(home: Home) -> list[str]:
    return [event.text for event in events.events(connect(home), kind="merged")]


def test_adapters_go_the_whole_way_with_a_merge_after_each_file(
    make_home: Callable[..., Home], files: list[Path]
) -> None:
    straight = make_home(**TABLES)
    write_jsonl(straight.suites / "questions.jsonl", held_out_facts()[:12])
    whole = train(straight, files)
    killed = make_home(**TABLES)
    write_jsonl(killed.suites / "questions.jsonl", held_out_facts()[:12])
    per_file = whole["step"] // 3
    for stop in (2, per_file, per_file + 1, 2 * per_file + 3):
        train(killed, files, steps=stop)
    assert train(killed, files)["step"] == whole["step"]
    ends = [checkpoints.load_checkpoint(Path(train(home, files)["checkpoint"])) for home in (straight, killed)]
    assert ends[0].weights_hash == ends[1].weights_hash
    assert len(merges(straight)) == 2
    assert read_manifest(base_of(Path(ends[0].path)) or Path())["kind"] == "base"


def test_a_version_of_adapters_is_judged_served_and_gone_back_to(
    make_home: Callable[..., Home], files: list[Path]
) -> None:
    home = make_home(**TABLES)
    write_jsonl(home.suites / "questions.jsonl", held_out_facts()[:12])
    train(home, files[:1])
    db = connect(home)
    first = versions.find_version(home, versions.alias(db) or "")
    live = evaluations.list_evaluations(home, db, first.weights_hash)[0]
    again = write_jsonl(home.suites / "again.jsonl", held_out_facts()[:12])
    anew = evaluate_ref(home, db, home.config(), "champion", ["again"])
    again.unlink()
    assert anew.weights_hash == first.weights_hash
    expected = live.suites["questions"].nll_per_token
    assert anew.suites["again"].nll_per_token == pytest.approx(expected, abs=1e-5)
    train(home, files[1:2])
    made = versions.create(home, db, references.resolve(home, db, "latest"))
    assert verify(Path(made.path)) == []
    assert base_of(Path(made.path)) != base_of(Path(first.path))
    for ref in (made.name, "base", "champion"):
        answer = Registry(home, db, ref).current(ref).engine.stream([Message("user", "what colour is sea")], 4)
        assert answer.prompt_tokens > 0
        assert isinstance("".join(answer), str)
    versions.set_alias(home, db, versions.CHAMPION, first.name)
    go_back(home, db, "a test")
    lineage = Trainer(home, home.config(), db, Leave()).ready()
    assert lineage.step == first.step
    assert lineage.adapters is not None
    assert lineage.adapters.base == base_of(Path(first.path))
    assert load(Path(first.path), "float32", "cpu").weights_hash == lineage.saved.weights_hash  # type: ignore[union-attr]


def test_a_damaged_base_is_found_when_what_stands_on_it_is_verified(
    make_home: Callable[..., Home], files: list[Path]
) -> None:
    home = make_home(**TABLES)
    train(home, files[:1])
    made = versions.create(home, connect(home), references.resolve(home, connect(home), "latest"))
    assert versions.verify(home, Path(made.path)) == []
    base = base_of(Path(made.path))
    assert base is not None
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # whatever shares its content stays as it is
    weights.write_bytes(content)
    (bad,) = versions.verify(home, Path(made.path))
    assert (bad.path, bad.reason) == (f"../../base/{base.name}/model.safetensors", "content changed")
    weights.unlink()
    (bad,) = versions.verify(home, Path(made.path))
    assert bad.reason == "missing"


def test_what_this_machine_cannot_do_is_refused_before_any_file(
    make_home: Callable[..., Home], files: list[Path]
) -> None:
    home = make_home(training={"optimizer": "paged_adamw"})
    with pytest.raises(ConfigError, match=r"needs a CUDA device.*paged_adamw"):
        train(home, files[:1])
    assert list(home.datasets.iterdir()) == []
