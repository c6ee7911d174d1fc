"""What the trainer tells of itself: `status/trainer.json`, which the worker replaces atomically.

    {"pid": 4711, "state": "training", "step": 1200, "job": "train-…", "updated": "2026-01-31T03:00:00.000Z",
     "model_name": "…", "telemetry": {"gpu": {"temperature_c", "vram_used_gb", "vram_total_gb", "power_w"}, …}, …}

`state` is idle, training, paused, stopping or completed; other words name what it is busy with (`evaluating`,
`ingesting`). Any further key named like one of the status payload is shown there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import psutil

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
    written_s = _seconds(facts.get("updated"))
    pid = facts.get("pid") if isinstance(facts.get("pid"), int) else None
    return Trainer(
        state=str(facts.get("state", "idle")),
        pid=pid,
        job=facts.get("job"),
        alive=is_alive(pid, written_s),
        age_s=None if written_s is None else max(0.0, datetime.now(UTC).timestamp() - written_s),
        facts=facts,
    )


def is_alive(pid: int | None, written_s: float | None) -> bool:
    """Whether the process that wrote at `written_s` (seconds since 1970) under this number still runs."""
    if pid is None:
        return False
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return written_s is None or bool(process.create_time() <= written_s + REUSED_PID_S)
    except psutil.NoSuchProcess:
        return False


def _seconds(stamp: object) -> float | None:
    if not isinstance(stamp, str):
        return None
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return None
