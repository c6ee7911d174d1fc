"""What the trainer tells of itself: `status/trainer.json`, which the worker replaces atomically.

    {"pid": 4711, "state": "training", "step": 1200, "job": "train-…", "updated": "2026-01-31T03:00:00.000Z",
     "boot": "6f1c…", "boot_s": 86400.5, "model_name": "…",
     "telemetry": {"gpu": {"temperature_c", "vram_used_gb", "vram_total_gb", "power_w"}, …}, …}

`state` is idle, training, paused, stopping or completed; other words name what it is busy with (`evaluating`,
`ingesting`). Any further key named like one of the status payload is shown there. `boot` and `boot_s` say when it was
written by a clock that nobody sets: what follows from its age is right whatever happens to the time of day.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil

from stokehold.telemetry import clock

FILE = "trainer.json"
AT_REST = ("idle", "completed", "stopped", "stopping")
"""States in which a trainer may go without having crashed."""

REUSED_PID_S = 60.0
"""A process that began this long after the trainer last wrote is another one with its number."""


@dataclass(frozen=True, slots=True)
class Trainer:
    """The file's content, typed where it is known; `alive`: that process lives now. `age_s`: seconds since it wrote."""

    state: str
    pid: int | None
    job: str | None
    alive: bool
    age_s: float | None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def crashed(self) -> bool:
        """Whether it was at work when it went."""
        return not self.alive and self.state not in AT_REST


def read_trainer(folder: Path) -> Trainer | None:
    """The trainer of the home whose `status/` this is; None before the first one wrote, or when the file is not JSON.

    A file that is not JSON was written by something else: the worker writes it whole.
    """
    try:
        facts = orjson.loads((folder / FILE).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    if not isinstance(facts, dict):
        return None
    written = _stamp(facts)
    pid = facts.get("pid") if isinstance(facts.get("pid"), int) else None
    return Trainer(
        state=str(facts.get("state", "idle")),
        pid=pid,
        job=facts.get("job"),
        alive=is_alive(pid, written),
        age_s=None if written is None else written.age_s(clock.stamp()),
        facts=facts,
    )


def is_alive(pid: int | None, written: clock.Stamp | None) -> bool:
    """Whether the process that wrote then under this number still runs; never after a restart of the machine."""
    if pid is None or (written is not None and written.boot != clock.boot()):
        return False
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # Both move with the time of day; their difference does not.
        began_s = process.create_time() - psutil.boot_time()
        return written is None or bool(began_s <= written.boot_s + REUSED_PID_S)
    except psutil.NoSuchProcess:
        return False


def _stamp(facts: Mapping[str, Any]) -> clock.Stamp | None:
    boot, boot_s = facts.get("boot"), facts.get("boot_s")
    return clock.Stamp(boot, boot_s) if isinstance(boot, str) and isinstance(boot_s, float) else None
