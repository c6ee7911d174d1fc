"""Checkpoints are written beside training: what is written is the state at the snapshot, one at a time."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stokehold.core.errors import DiskFullError, StokeholdError
from stokehold.core.records import Checkpoint
from stokehold.store import failpoints
from stokehold.store.home import Home
from stokehold.store.models import checkpoints
from stokehold.training import writer as writing
from stokehold.training.state import Lineage, Snapshot, open_lineage
from stokehold.training.writer import CheckpointWriter

PATIENCE_S = 60.0
EMBEDDING = "model.embed_tokens.weight"


class Gate:
    """Holds the writer's thread between publishing a checkpoint and saying so."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.steps: list[int] = []

    def __call__(self, _snapshot: Snapshot, checkpoint: Checkpoint) -> None:
        self.steps.append(checkpoint.step)
        self.reached.set()
        assert self.opened.wait(PATIENCE_S)


@pytest.fixture
def home(make_home: Callable[..., Home]) -> Home:
    return make_home()


@pytest.fixture
def lineage(home: Home) -> Lineage:
    return open_lineage(home.root / home.config().model.base, home.config())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(writing, "ROOM_POLL_S", 0.01)
    yield
    failpoints.arm("")


def step(lineage: Lineage) -> None:
    """As a step does it: the weights change in place, and are no longer those on disk."""
    with torch.no_grad():
        for parameter in lineage.model.parameters():
            parameter.add_(1.0)
    lineage.step += 1
    lineage.saved = None


def first_weight(folder: str) -> float:
    return float(load_file(Path(folder) / "model.safetensors")[EMBEDDING][0, 0])


def never(error: DiskFullError) -> None:
    raise AssertionError(error)


def test_the_loop_goes_on_while_a_checkpoint_is_written(home: Home, lineage: Lineage) -> None:
    gate = Gate()
    with CheckpointWriter(home, lineage, gate, never) as writer:
        step(lineage)
        before = float(lineage.model.get_input_embeddings().weight.detach()[0, 0])
        writer.begin()
        step(lineage)  # while the first is not written
        assert gate.reached.wait(PATIENCE_S)
        writer.collect()
        assert lineage.saved is None, "nothing was waited for"
        gate.opened.set()
        writer.wait()
    (one,) = checkpoints.list_checkpoints(home)
    assert (one.step, lineage.step, lineage.parent) == (1, 2, "step_000000001")
    assert lineage.saved is None, "a step was taken since"
    assert first_weight(one.path) == before


def test_the_next_snapshot_waits_for_the_one_before(home: Home, lineage: Lineage) -> None:
    gate = Gate()
    with CheckpointWriter(home, lineage, gate, never) as writer:
        step(lineage)
        writer.begin()
        assert gate.reached.wait(PATIENCE_S)
        step(lineage)
        second = threading.Thread(target=writer.begin)
        second.start()
        second.join(0.2)
        assert second.is_alive(), "it is held back"
        assert gate.steps == [1]
        gate.opened.set()
        second.join(PATIENCE_S)
        writer.wait()
    assert gate.steps == [1, 2]
    assert [(c.step, c.parent) for c in checkpoints.list_checkpoints(home)] == [(1, None), (2, "step_000000001")]


def test_what_is_on_disk_already_is_not_written_again(home: Home, lineage: Lineage) -> None:
    gate = Gate()
    gate.opened.set()
    with CheckpointWriter(home, lineage, gate, never) as writer:
        step(lineage)
        first = writer.finish()
        assert writer.finish() is first is lineage.saved
    assert gate.steps == [1]


def test_a_full_disk_is_asked_about_until_there_is_room(home: Home, lineage: Lineage, quick: None) -> None:
    asked: list[DiskFullError] = []
    with CheckpointWriter(home, lineage, lambda *_: None, asked.append) as writer:
        step(lineage)
        failpoints.arm("checkpoint.optimizer:full@1")
        assert writer.finish().step == 1
    assert [error.what for error in asked] == ["no space left on the disk"]
    assert [path.name for path in home.checkpoints.iterdir()] == ["step_000000001"]


def test_who_leaves_while_the_disk_is_full_leaves_nothing_half_written(
    home: Home, lineage: Lineage, quick: None
) -> None:
    def leave(error: DiskFullError) -> None:
        raise error

    step(lineage)
    failpoints.arm("publish.manifest:full@1")
    with pytest.raises(DiskFullError), CheckpointWriter(home, lineage, lambda *_: None, leave) as writer:
        writer.finish()
    assert list(home.checkpoints.iterdir()) == []


def test_an_error_of_the_thread_is_the_loops(home: Home, lineage: Lineage) -> None:
    def refuse(_snapshot: Snapshot, _checkpoint: Checkpoint) -> None:
        raise StokeholdError("retention failed")

    step(lineage)
    writer = CheckpointWriter(home, lineage, refuse, never)
    with pytest.raises(StokeholdError, match="retention failed"), writer:
        writer.finish()
