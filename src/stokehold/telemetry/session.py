"""Records a telemetry session: a CSV that grows row by row and a metadata file, written at the start and at the end.

A crash leaves both readable: the CSV up to its last whole row, the metadata without a summary, which `load_session`
then works out from the CSV.
"""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from stokehold.core.config import TelemetryConfig
from stokehold.core.errors import DiskFullError, InputError, StokeholdError, UsageError, is_full
from stokehold.core.records import Session
from stokehold.telemetry.analysis import SessionAnalysis
from stokehold.telemetry.collapse import MAX_GAP_S, CollapseRule
from stokehold.telemetry.host import cpu_device
from stokehold.telemetry.nvidia import close_nvidia, nvidia_devices
from stokehold.telemetry.readings import GIGABYTE, DeviceReadings, Faults, LiveSensors, Metric, Sensors, Tick
from stokehold.telemetry.replay import ReplayedSensors
from stokehold.telemetry.sampler import Sampler
from stokehold.telemetry.table import SCHEMA, header, read_table, row
from stokehold.telemetry.workload import Workload, guessed, told

METADATA_SUFFIX = "_metadata.json"
MAX_GAP_INTERVALS = 3.0
"""Missing this many ticks in a row is a hole that neither energy nor a collapse is carried across."""


def live_sensors(config: TelemetryConfig, faults: Faults) -> LiveSensors:
    """The CPU and every NVIDIA card of this machine."""
    return LiveSensors([cpu_device(config), *nvidia_devices(config, faults)], faults)


class SessionFile:
    """The CSV being written. Unbuffered, so that a killed process loses no row that was taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb", buffering=0)
        self._torn = False
        try:
            self.append(header())
        except OSError:
            self._file.close()
            raise

    def append(self, text: str) -> None:
        """Writes whole lines; after a failed write (a full disk) the next one begins on a line of its own."""
        data = (b"\n" if self._torn else b"") + text.encode()
        self._torn = True
        if self._file.write(data) != len(data):
            raise OSError(errno.ENOSPC, "only part of a row could be written", str(self.path))
        self._torn = False

    def close(self) -> None:
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()


class Recorder:
    """Samples this machine into `folder` from `start` to `stop`; safe to call from any thread; used once.

    `sensors` replaces the live machine (a `ReplayedSensors`, say). Its cost is one reading per `config.interval_s`.
    """

    def __init__(
        self,
        folder: Path,
        config: TelemetryConfig,
        model_name: str | None = None,
        training_mode: str | None = None,
        *,
        sensors: Sensors | None = None,
        ambient_c: float | None = None,
        notes: str = "",
    ) -> None:
        self.folder, self.config, self.faults = folder, config, Faults()
        self._facts = {"model_name": model_name, "training_mode": training_mode}
        self._conditions = {"ambient_c": ambient_c, "notes": notes}
        self._owns_sensors = sensors is None
        self._sensors = live_sensors(config, self.faults) if sensors is None else sensors
        self._analysis = SessionAnalysis(_rule(config.interval_s))
        self._lock = threading.Lock()
        self._tick: Tick | None = None
        self._told: Workload | None = None
        self._tokens = 0
        self._file: SessionFile | None = None
        self._sampler = Sampler(self._sensors, config.interval_s, self._take, self.faults)
        self._started = datetime.now(UTC)
        self._started_s = time.monotonic()
        self._session: Session | None = None
        self._made_folder = False

    def __enter__(self) -> "Recorder":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._tokens == 0 and error is not None and is_full(error):
            self._forget()  # whoever waits for room tries again, and each try would leave one

    def start(self) -> None:
        """Opens the CSV, takes the first tick, begins sampling.

        Raises DiskFullError where there is no room and StokeholdError where the folder cannot be written otherwise;
        then nothing of the session stays.
        """
        if self._file is not None:
            raise UsageError("the recorder is already started", str(self.folder), "make a new one")
        self._started, self._started_s = datetime.now(UTC), time.monotonic()
        self._made_folder = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = SessionFile(self._csv_path())
            self._sampler.start()
            self._write_metadata(self._file.path, self._metadata(complete=False))
        except OSError as error:
            self._sampler.stop()
            if self._owns_sensors:
                close_nvidia()
            self._forget()
            refusal = DiskFullError if is_full(error) else StokeholdError
            raise refusal(
                f"cannot record telemetry ({error.strerror or error})", str(self.folder), "free space or choose another"
            ) from error

    def mark(self, state: str | None, step: int | None = None) -> None:
        """What the trainer is doing from now on (a `WorkloadState`); None hands the word back to utilisation."""
        workload = None if state is None else told(state, step)
        with self._lock:
            self._told = workload

    def count(self, tokens: int) -> None:
        """Adds trained tokens, for joules per token."""
        with self._lock:
            self._tokens += tokens

    def energy_j(self) -> float | None:
        """Measured joules since `start` up to the last tick; None without a power sensor."""
        with self._lock:
            return self._analysis.joules()

    def latest(self) -> dict[str, Any]:
        """`gpu` (the first card), `ram` and `disk` of the status payload; every unknown number is None."""
        with self._lock:
            devices = {} if self._tick is None else {d.device: d for d in self._tick.devices}
        gpu = next((d for d in devices.values() if d.kind == "gpu"), None)
        return {"gpu": _gpu(gpu), "ram": _ram(devices.get("cpu")), "disk": {"free_gb": self._free_gb()}}

    def devices(self) -> tuple[DeviceReadings, ...]:
        """The last tick's readings of every device; empty before the first."""
        with self._lock:
            return () if self._tick is None else self._tick.devices

    def stop(self) -> Session:
        """Ends the sampling and writes the whole metadata; a second call gives the same session.

        A disk that refuses the last write is noted in `faults` and fails nobody: `load_session` repairs that.
        """
        if self._file is None:
            raise UsageError("the recorder was never started", str(self.folder), "call start first")
        if self._session is None:
            self._sampler.stop()
            metadata = self._metadata(complete=True)
            try:
                with self._lock:
                    self._file.close()
                self._write_metadata(self._file.path, metadata)
            except OSError as error:
                self.faults.note("session", error)
            if self._owns_sensors:
                close_nvidia()
            self._session = _session(self._file.path, metadata)
        return self._session

    def _take(self, tick: Tick) -> None:
        """The sampler's sink: analyse, remember, write one row per device."""
        with self._lock:
            derived = self._analysis.observe(tick)
            self._tick = tick
            workload = self._told or _guess(tick)
            pairs = zip(tick.devices, derived, strict=True)
            text = "".join(row(tick, device, now, workload, self._tokens) for device, now in pairs)
            if self._file is not None:
                self._file.append(text)

    def _forget(self) -> None:
        """Removes what was written of this session, and the folder where it was made for it."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        with suppress(OSError):
            for path in self.folder.glob(f"{self._csv_path().stem}*"):
                path.unlink()
            if self._made_folder:
                self.folder.rmdir()

    def _csv_path(self) -> Path:
        return self.folder / f"rle_{self._started:%Y%m%dT%H%M%S.%fZ}.csv"

    def _free_gb(self) -> float | None:
        try:
            return shutil.disk_usage(self.folder).free / GIGABYTE
        except OSError as error:
            self.faults.note("disk", error)
            return None

    def _metadata(self, *, complete: bool) -> dict[str, Any]:
        live = self._sensors.devices if isinstance(self._sensors, LiveSensors) else ()
        with self._lock:
            summary = self._analysis.summary(self._tokens) if complete else None
        return {
            "format": SCHEMA,
            "complete": complete,
            "session_start": self._started.isoformat(),
            **self._facts,
            "session_length_s": time.monotonic() - self._started_s if complete else None,
            **self._conditions,
            "hardware": {device.name: {"kind": device.kind, **device.facts} for device in live},
            "monitoring": {
                "interval_s": self.config.interval_s,
                "max_gap_s": self._analysis.rule.max_gap_s,
                "sensors": type(self._sensors).__name__,
                "faults": [asdict(fault) for fault in self.faults.all()],
            },
            "summary": summary,
        }

    def _write_metadata(self, csv_path: Path, metadata: Mapping[str, Any]) -> None:
        _replace(_metadata_path(csv_path), json.dumps(metadata, indent=1, allow_nan=False) + "\n")


def load_session(csv_path: Path) -> Session:
    """A recorded session. One that was cut off gets its summary and length from the rows, `complete` False."""
    path = _metadata_path(csv_path)
    if not path.is_file():
        raise InputError("a session without its metadata", str(path), "the recording never began")
    metadata = json.loads(path.read_text())
    if metadata["summary"] is None:
        analysis = SessionAnalysis(CollapseRule(max_gap_s=metadata["monitoring"]["max_gap_s"]))
        for tick in ReplayedSensors.from_csv(csv_path).ticks():
            analysis.observe(tick)
        rows = read_table(csv_path).rows
        metadata["summary"] = analysis.summary(int(rows[-1]["tokens"]) if rows else 0)
        metadata["session_length_s"] = (analysis.last_s or 0.0) - (analysis.first_s or 0.0)
    return _session(csv_path, metadata)


def _session(csv_path: Path, metadata: Mapping[str, Any]) -> Session:
    return Session(
        id=csv_path.stem,
        path=str(csv_path),
        started=metadata["session_start"],
        seconds=metadata["session_length_s"],
        model_name=metadata["model_name"],
        training_mode=metadata["training_mode"],
        hardware=metadata["hardware"],
        summary={**metadata["summary"], "complete": metadata["complete"]},
    )


def _metadata_path(csv_path: Path) -> Path:
    return csv_path.with_name(csv_path.stem + METADATA_SUFFIX)


def _replace(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of it."""
    staged = path.with_name(path.name + ".staging")
    with staged.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def _rule(interval_s: float) -> CollapseRule:
    return CollapseRule(max_gap_s=max(MAX_GAP_S, MAX_GAP_INTERVALS * interval_s))


def _guess(tick: Tick) -> Workload:
    by_kind: dict[str, list[float]] = {"cpu": [], "gpu": []}
    for device in tick.devices:
        value = device.value(Metric.UTILISATION_PCT)
        if value is not None:
            by_kind.setdefault(device.kind, []).append(value)
    return guessed(max(by_kind["cpu"], default=None), max(by_kind["gpu"], default=None))


def _gpu(device: DeviceReadings | None) -> dict[str, float | None]:
    names = {
        "temperature_c": Metric.TEMPERATURE_C,
        "vram_used_gb": Metric.MEMORY_USED_GB,
        "vram_total_gb": Metric.MEMORY_TOTAL_GB,
        "power_w": Metric.POWER_W,
    }
    return {name: None if device is None else device.value(metric) for name, metric in names.items()}


def _ram(cpu: DeviceReadings | None) -> dict[str, float | None]:
    used = None if cpu is None else cpu.value(Metric.MEMORY_USED_GB)
    total = None if cpu is None else cpu.value(Metric.MEMORY_TOTAL_GB)
    percent = 100.0 * used / total if used is not None and total else None
    return {"used_gb": used, "total_gb": total, "percent": percent}
