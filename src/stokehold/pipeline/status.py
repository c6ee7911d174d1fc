"""What a trainer tells while it works: `status/trainer.json`, the workload state of telemetry, events, the watchdog.

Telling must never stop training: on a full disk the file stays as it was and events go to the log.
"""

import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from stokehold.core.config import Config
from stokehold.core.errors import DiskFullError
from stokehold.pipeline import watchdog
from stokehold.store.db import events
from stokehold.store.db.database import Database
from stokehold.store.files import utc_now, write_atomic
from stokehold.store.home import Home
from stokehold.telemetry import clock
from stokehold.telemetry.session import Recorder

LOG = logging.getLogger(__name__)
STATUS_EVERY_S = 0.5

WORKLOAD = {
    "training_step": "training_step",
    "checkpoint": "checkpoint",
    "eval": "eval",
    "paused": "idle",
    "disk_full": "idle",
}
SHOWN = {"training_step": "training", "checkpoint": "training", "eval": "evaluating", "disk_full": "paused"}

WATCHED = ("training_step", "checkpoint", "eval")
"""States in which something must happen within `training.hang_s`."""


@dataclass
class TrainerStatus:
    """`facts` are told beside what is known here: job, file, epoch, layer activity, …; set to None what ended."""

    home: Home
    config: Config
    db: Database
    recorder: Recorder | None = None
    state: str = "idle"
    facts: dict[str, Any] = field(default_factory=dict)
    _told: float = 0.0

    def tell(self, state: str, step: int | None) -> None:
        """Writes `status/trainer.json`, at most every STATUS_EVERY_S unless the state changed."""
        now = time.monotonic()
        if self.recorder:
            self.recorder.mark(WORKLOAD.get(state), step)
        if state == self.state and now - self._told < STATUS_EVERY_S:
            return
        if state == "disk_full" != self.state:
            self.record("disk_full", f"step {step}: no space left; training waits until there is room")
        if self.state == "disk_full" != state:
            self.record("disk_room", f"step {step}: there is room again")
        self.state, self._told = state, now
        self._write(step)
        watchdog.expect(self.config.training.hang_s if state in WATCHED else 0.0)

    def record(self, kind: str, text: str) -> None:
        """An event, in the database if there is room and in the log in any case."""
        LOG.warning("%s: %s", kind, text)
        with suppress(DiskFullError):  # it is in the log
            events.record(self.db, kind, text)

    def _write(self, step: int | None) -> None:
        facts: dict[str, Any] = {
            "pid": os.getpid(),
            "state": SHOWN.get(self.state, self.state),
            "step": step,
            "model_name": self.config.model.architecture or None,
            "max_output_tokens": self.config.evaluation.max_new_tokens,
            "context_window": self.config.data.max_length,
            "total_steps": self.config.training.total_steps or None,
            "telemetry": self.recorder.latest() if self.recorder else {},
            "updated": utc_now(),
            **asdict(clock.stamp()),
            **self.facts,
        }
        try:
            write_atomic(self.home.status / "trainer.json", orjson.dumps(facts))
        except DiskFullError:
            if self.state != "disk_full":  # which is told by then
                self.record("disk_full", "no room for the status file")
