"""A drill restores a version elsewhere and asks it what it answered when it was made; what differs is told."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from stokehold.core.errors import NotFoundError
from stokehold.core.records import JobState
from stokehold.pipeline import upkeep
from stokehold.pipeline.drill import drill
from stokehold.store.backup import drills
from stokehold.store.db import events
from stokehold.store.db.database import connect
from stokehold.store.files import read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.models import versions
from stokehold.store.models.checkpoints import publish_checkpoint
from stokehold.store.models.weights import GOLDEN
from stokehold.supervisor.status import payload
from stokehold.training.golden import Golden
from stokehold.training.state import open_lineage, take_snapshot, write_snapshot


def version(home: Home, step: int = 0, spoil: Callable[[Path], None] | None = None) -> str:
    """A version of weights that no step was taken from; `spoil` changes files before they are hashed."""
    lineage = open_lineage(home.root / home.config().model.base, home.config())
    lineage.step = step
    snapshot = take_snapshot(lineage)

    def write(folder: Path) -> None:
        write_snapshot(snapshot, folder)
        if spoil:
            spoil(folder)

    made = publish_checkpoint(home, step, write, {"branch": 0})
    return versions.create(home, connect(home), Path(made.path)).name


def lose_a_layer(folder: Path) -> None:
    """As a writer would that mixed up its tensors: every hash is right."""
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"].zero_()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def elsewhere(folder: Path) -> None:
    """As written on another machine, whose sums come in another order."""
    recorded = Golden.from_bytes((folder / GOLDEN).read_bytes(), "here")
    facts = {**recorded.facts, "cpu": "another"}
    moved = Golden(
        **{**{k: getattr(recorded, k) for k in ("ids", "positions", "targets", "sums")}, "facts": facts},
        logprobs=recorded.logprobs + 1e-5,
    )
    (folder / GOLDEN).write_bytes(moved.to_bytes())


@pytest.fixture
def home(make_home: Callable[..., Home]) -> Home:
    torch.set_num_threads(1)
    return make_home()


def test_a_good_version_answers_to_the_bit_and_nothing_is_left_of_the_drill(home: Home) -> None:
    name = version(home)
    before = sorted(home.root.rglob("*"))
    done = drill(home)
    assert (done.version, done.ok, done.worst, done.exact, done.differences) == (name, True, 0.0, True, ())
    assert done.bytes == sum(entry["bytes"] for entry in read_manifest(home.versions / name)["files"])
    added = {path.relative_to(home.root).as_posix() for path in set(home.root.rglob("*")) - set(before)}
    assert {name for name in added if not name.startswith("stoke.db")} == {"status/drill.json"}
    assert verify(home.versions / name) == []
    assert drills.latest(home) == done
    (told,) = events.events(connect(home), kind="drill")
    assert told.text == f"{name}: answers as it did, to the bit"
    shown = payload(home, connect(home))["drill"]
    assert (shown["version"], shown["ok"]) == (name, True)
    assert 0 <= shown["age_s"] < 3600


def test_the_champion_is_drilled_before_the_newest(home: Home) -> None:
    with pytest.raises(NotFoundError, match="there is no version yet"):
        drill(home)
    first, second = version(home), version(home, 1)
    assert drill(home).version == second
    versions.set_alias(home, connect(home), versions.CHAMPION, first)
    assert drill(home).version == first
    assert drill(home, second).version == second


def test_weights_that_are_whole_and_wrong_are_told(home: Home) -> None:
    name = version(home, spoil=lose_a_layer)
    assert verify(home.versions / name) == []
    done = drill(home)
    assert done.ok is False
    assert done.worst is not None
    assert done.worst > 1e-3
    assert "does not answer as it did: a log-probability is off by" in done.reason
    told = payload(home, connect(home))
    assert told["drill"]["ok"] is False
    assert "drill_failed" in {alert["kind"] for alert in told["active_alerts"]}


def test_other_arithmetic_is_allowed_its_tolerance(home: Home) -> None:
    version(home, spoil=elsewhere)
    done = drill(home)
    assert (done.ok, done.exact) == (True, False)
    assert done.worst == pytest.approx(1e-5, rel=0.2)
    assert done.differences[0].startswith("cpu another -> ")


def test_nothing_recorded_is_unknown_and_no_success(home: Home) -> None:
    version(home, spoil=lambda folder: (folder / GOLDEN).unlink())
    done = drill(home)
    assert (done.ok, done.worst) == (None, None)
    assert "nothing is recorded" in done.reason


def test_a_damaged_file_is_a_drill_that_failed(home: Home) -> None:
    name = version(home)
    weights = home.versions / name / "config.json"
    digest = next(e["blake3"] for e in read_manifest(home.versions / name)["files"] if e["path"] == "config.json")
    for path in (weights, home.blobs / digest[:2] / digest):
        if path.exists():
            path.chmod(0o644)
            path.write_bytes(path.read_bytes().replace(b"{", b"[", 1))
    done = drill(home)
    assert done.ok is False
    assert "config.json" in done.reason
    assert [path.name for path in home.versions.iterdir()] == [name]


def test_adapters_are_drilled_on_their_base(make_home: Callable[..., Home]) -> None:
    home = make_home(model={"method": "lora"})
    version(home)
    assert drill(home).ok is True


def test_the_command_tells_and_exits_by_the_result(home: Home, environment: dict[str, str]) -> None:
    good, bad = version(home), version(home, 1, lose_a_layer)
    command = [sys.executable, "-m", "stokehold.cli.main", "versions", "drill", "--home", str(home.root)]
    told = subprocess.run([*command, good], capture_output=True, text=True, env=environment, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"{good}: ok, answers as it did, to the bit\n")
    failed = subprocess.run([*command, bad, "--json"], capture_output=True, text=True, env=environment, check=False)
    assert failed.returncode == 1
    answer = orjson.loads(failed.stdout)
    assert (answer["version"], answer["ok"]) == (bad, False)
    assert answer == {**asdict(drills.latest(home) or answer), "differences": []}


def test_nothing_recorded_fails_the_command_and_not_the_night(home: Home, environment: dict[str, str]) -> None:
    name = version(home, spoil=lambda folder: (folder / GOLDEN).unlink())
    command = [sys.executable, "-m", "stokehold.cli.main", "versions", "drill", "--home", str(home.root)]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert told.returncode == 1
    assert told.stdout.startswith(f"{name}: not compared, loaded, but nothing is recorded")
    db = connect(home)
    assert upkeep.run(home, db, {"job": "sched-nightly-1"}) is JobState.COMPLETED
    assert events.events(db, kind="upkeep_failed") == []
    assert [event.data["duty"] for event in events.events(db, kind="upkeep")] == list(upkeep.DUTIES)
    version(home, 1, lose_a_layer)
    assert upkeep.run(home, db, {"job": "sched-nightly-2"}) is JobState.FAILED
    (failed,) = events.events(db, kind="upkeep_failed")
    assert failed.data["duty"] == "drill"
