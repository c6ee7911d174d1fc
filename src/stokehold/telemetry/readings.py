"""What one look at the machine gives: per device, each metric with how it was had, and the limits it is judged by.

One gigabyte (`_gb`) is 10^9 bytes everywhere in this room. A metric a device does not have is `UNAVAILABLE`, never 0.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol, TypeAlias

from stokehold.core.records import Reading, Source

GIGABYTE = 1e9
UNAVAILABLE = Reading(None, Source.UNAVAILABLE)


class Metric(StrEnum):
    """Everything that a device may tell, named with its unit. Memory of a GPU is VRAM, of the CPU system RAM."""

    UTILISATION_PCT = "utilisation_pct"
    POWER_W = "power_w"
    TEMPERATURE_C = "temperature_c"
    MEMORY_TEMPERATURE_C = "memory_temperature_c"
    MEMORY_USED_GB = "memory_used_gb"
    MEMORY_TOTAL_GB = "memory_total_gb"
    PROCESS_MEMORY_GB = "process_memory_gb"


class LimitSource(StrEnum):
    """Who said so. A limit is a setting that readings are judged by, never itself a reading."""

    DEVICE = "device"
    CONFIG = "config"


@dataclass(frozen=True, slots=True)
class Limit:
    value: float
    source: LimitSource


@dataclass(frozen=True, slots=True)
class Limits:
    """Rated power in watts, temperature limits in degrees Celsius; `memory_temperature_c` is None without VRAM."""

    rated_power_w: Limit
    temperature_c: Limit
    memory_temperature_c: Limit | None = None


@dataclass(frozen=True, slots=True)
class DeviceReadings:
    """One device (`cpu`, `gpu0`, …; `kind` is cpu or gpu) at one tick."""

    device: str
    kind: str
    readings: Mapping[Metric, Reading]
    limits: Limits

    def reading(self, metric: Metric) -> Reading:
        """The metric's reading; `UNAVAILABLE` where the device has no such sensor."""
        return self.readings.get(metric, UNAVAILABLE)

    def value(self, metric: Metric) -> float | None:
        return self.reading(metric).value


@dataclass(frozen=True, slots=True)
class Tick:
    """All devices at one instant. `monotonic_s` orders and measures; `utc` (aware) only says when it was."""

    monotonic_s: float
    utc: datetime
    devices: tuple[DeviceReadings, ...]


Probe: TypeAlias = Callable[[], float | None]
"""One measurement in the metric's unit; None where the sensor has nothing yet; raises where it cannot."""


@dataclass(frozen=True, slots=True)
class Device:
    """A sensor-bearing device: `probes` are called once a tick, `facts` go into the session's hardware."""

    name: str
    kind: str
    probes: Mapping[Metric, Probe]
    limits: Limits
    facts: Mapping[str, str | int | float | None] = field(default_factory=dict)


class Sensors(Protocol):
    """Where a sampler gets its readings: the live machine or a replayed log."""

    def read(self) -> tuple[DeviceReadings, ...]:
        """One reading of every device, in a fixed order."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why something could not be read or written: the first reason, when it came first, and how often."""

    where: str
    reason: str
    first_utc: str
    count: int


class Faults:
    """Keeps each (place, reason) once with its count, so that a sensor failing every second fills no log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: dict[tuple[str, str], Fault] = {}

    def note(self, where: str, error: Exception | str) -> None:
        reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        with self._lock:
            known = self._faults.get((where, reason))
            first = Fault(where, reason, datetime.now(UTC).isoformat(), 0)
            self._faults[where, reason] = replace(known or first, count=(known or first).count + 1)

    def all(self) -> tuple[Fault, ...]:
        with self._lock:
            return tuple(self._faults.values())


class LiveSensors:
    """Calls every probe of `devices`; one that raises becomes `UNAVAILABLE`, its reason kept in `faults`."""

    def __init__(self, devices: Sequence[Device], faults: Faults) -> None:
        self.devices = tuple(devices)
        self.faults = faults

    def read(self) -> tuple[DeviceReadings, ...]:
        return tuple(
            DeviceReadings(device.name, device.kind, self._read(device), device.limits) for device in self.devices
        )

    def _read(self, device: Device) -> dict[Metric, Reading]:
        readings = {}
        for metric, probe in device.probes.items():
            try:
                readings[metric] = measured(probe())
            except Exception as error:  # noqa: BLE001 (drivers raise anything; the reason is stored and reported)
                self.faults.note(f"{device.name} {metric}", error)
                readings[metric] = UNAVAILABLE
        return readings


def measured(value: float | None) -> Reading:
    """A measured reading; None is unavailable; not-a-number or infinity raises ValueError (a broken sensor)."""
    if value is None:
        return UNAVAILABLE
    if not math.isfinite(value):
        raise ValueError(f"the sensor gave {value}")
    return Reading(float(value), Source.MEASURED)
