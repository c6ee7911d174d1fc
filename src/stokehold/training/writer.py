"""Checkpoints written beside training: the loop stops to copy the state to host memory, a thread does the rest.

One at a time: the next snapshot waits for the one before, so that two are never half written and host memory holds one
copy. A full disk stops training, not the run: the copy stays in memory and is written when there is room.
"""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from stokehold.core.errors import DiskFullError
from stokehold.core.records import Checkpoint
from stokehold.store.failpoints import reach
from stokehold.store.home import Home
from stokehold.store.models.checkpoints import publish_checkpoint
from stokehold.training.state import Lineage, Snapshot, take_snapshot, write_snapshot

ROOM_POLL_S = 1.0
"""How soon a run that waits for room looks again."""


class CheckpointWriter:
    """Writes the checkpoints of one lineage. Use as a context manager: at its end nothing is being written.

    `published(snapshot, checkpoint)` runs on the writer's thread after each; `waiting(error)` is asked again and again
    while the disk is full, and raises to give up.
    """

    def __init__(
        self,
        home: Home,
        lineage: Lineage,
        published: Callable[[Snapshot, Checkpoint], None],
        waiting: Callable[[DiskFullError], None],
    ) -> None:
        self._home, self._lineage = home, lineage
        self._published, self._waiting = published, waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._snapshot: Snapshot | None = None
        self._writing: Future[Checkpoint] | None = None

    def __enter__(self) -> "CheckpointWriter":
        self._lineage.give_up_writing = self.give_up
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lineage.give_up_writing = lambda: None
        self._thread.shutdown(wait=True)

    def begin(self) -> None:
        """Copies the present state and has it written; returns when it is copied. Nothing where it is on disk."""
        self.wait()
        if self._lineage.saved is None:
            self._snapshot = take_snapshot(self._lineage)
            reach("snapshot.taken")
            self._writing = self._thread.submit(self._write, self._snapshot)

    def finish(self) -> Checkpoint:
        """The checkpoint of the present state, published."""
        self.begin()
        self.wait()
        assert self._lineage.saved is not None
        return self._lineage.saved

    def collect(self) -> None:
        """Takes note of what was finished meanwhile, without waiting unless the disk is full."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written; raises what went wrong."""
        while self._writing is not None and self._snapshot is not None:
            try:
                checkpoint = self._writing.result()
            except DiskFullError as error:
                self._wait_for_room(self._snapshot, error)
                self._writing = self._thread.submit(self._write, self._snapshot)
                continue
            self._snapshot = self._writing = None
            self._lineage.parent = Path(checkpoint.path).name
            if self._lineage.step == checkpoint.step:
                self._lineage.saved = checkpoint

    def give_up(self) -> None:
        """Returns when nothing is being written; a checkpoint that found no room is not wanted any more."""
        if self._writing is not None:
            with suppress(DiskFullError):
                self._writing.result()
        self._snapshot = self._writing = None

    def _write(self, snapshot: Snapshot) -> Checkpoint:
        facts = {key: snapshot.facts[key] for key in ("parent", "branch", "base")}
        facts["datasets"] = sorted({run["dataset"] for run in snapshot.facts["runs"].values()})
        step = snapshot.facts["step"]
        before = self._home.checkpoints / facts["parent"] if facts["parent"] else None
        linked: dict[str, str] = {}

        def write(folder: Path) -> None:
            linked.update(write_snapshot(snapshot, folder, before, self._home.disk))

        checkpoint = publish_checkpoint(self._home, step, write, facts, linked)
        reach("checkpoint.published")
        self._published(snapshot, checkpoint)
        return checkpoint

    def _wait_for_room(self, snapshot: Snapshot, error: DiskFullError) -> None:
        wanted = sum(tensor.nbytes for part in (snapshot.weights, snapshot.optimizer) for tensor in part.values())
        self._waiting(error)
        time.sleep(ROOM_POLL_S)
        while shutil.disk_usage(self._home.root).free < wanted:
            self._waiting(error)
            time.sleep(ROOM_POLL_S)
