"""One thread that reads the sensors at a steady interval and hands each tick on. A failing sensor never ends it."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from stokehold.telemetry.readings import Faults, Sensors, Tick

STOP_TIMEOUT_S = 10.0
"""A driver call that hangs holds the thread; it is a daemon, so the process can still leave."""


class Sampler:
    """Reads `sensors` every `interval_s` seconds. Reasons of failures, of the sink's too, are kept in `faults`."""

    def __init__(self, sensors: Sensors, interval_s: float, sink: Callable[[Tick], None], faults: Faults) -> None:
        self._sensors, self._interval_s, self._sink = sensors, interval_s, sink
        self.faults = faults
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        """Takes the first tick before it returns, so that there is something to show at once."""
        self.tick()
        self._thread.start()

    def stop(self) -> None:
        """No tick begins after this. Safe to call twice, and without a start."""
        self._leave.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
            if self._thread.is_alive():
                self.faults.note("sampler", f"a sensor did not return within {STOP_TIMEOUT_S} s")

    def tick(self) -> None:
        """One reading of everything, stamped when the reading began."""
        try:
            monotonic_s, utc = time.monotonic(), datetime.now(UTC)
            tick = Tick(monotonic_s, utc, self._sensors.read())
        except Exception as error:  # noqa: BLE001 (the trainer must not fall with a sensor; the reason is reported)
            self.faults.note("sensors", error)
            return
        try:
            self._sink(tick)
        except Exception as error:  # noqa: BLE001 (a full disk must not end the readings; the reason is reported)
            self.faults.note("sink", error)

    def _run(self) -> None:
        """Due times lie on a grid, so that the interval does not drift; those missed by a slow sensor are left out."""
        due_s = time.monotonic() + self._interval_s
        while not self._leave.wait(max(0.0, due_s - time.monotonic())):
            self.tick()
            missed = max(0.0, time.monotonic() - due_s) // self._interval_s
            due_s += self._interval_s * (1.0 + missed)
