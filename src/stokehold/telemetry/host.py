"""The CPU and its memory as a device: utilisation, temperature, power, RAM of the system and of this process."""

import os
import platform
from typing import Any

import psutil

from stokehold.core.config import TelemetryConfig
from stokehold.core.errors import NotFoundError
from stokehold.telemetry.rapl import RaplPower
from stokehold.telemetry.readings import GIGABYTE, Device, Limit, Limits, LimitSource, Metric

CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
"""Drivers whose sensors sit in the CPU; others (`acpitz`, `nvme`) measure some other place."""

PACKAGE_LABELS = ("package", "tctl", "tdie")


class CpuUtilisation:
    """Busy share of all cores in percent since the previous call; None on the first, when there is no interval."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def __call__(self) -> float | None:
        busy, total = _cpu_seconds(psutil.cpu_times())
        last, self._last = self._last, (busy, total)
        if last is None or total <= last[1]:
            return None
        return min(100.0, max(0.0, 100.0 * (busy - last[0]) / (total - last[1])))


def _cpu_seconds(times: Any) -> tuple[float, float]:
    """(busy, total) since boot. Linux counts guest time inside user time, so it is taken out of the total."""
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def cpu_temperature_c() -> float:
    """The hottest package sensor of the CPU; `NotFoundError` where this machine shows none."""
    chips = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    for chip in CPU_CHIPS:
        entries = [entry for entry in chips.get(chip, ()) if entry.current is not None]
        packages = [entry for entry in entries if entry.label.lower().startswith(PACKAGE_LABELS)]
        if entries:
            return float(max(entry.current for entry in packages or entries))
    raise NotFoundError("no CPU temperature sensor", platform.system())


def memory_used_gb() -> float:
    """RAM that a new process could not have: total less available (page cache counts as available)."""
    memory = psutil.virtual_memory()
    return float(memory.total - memory.available) / GIGABYTE


def memory_total_gb() -> float:
    return float(psutil.virtual_memory().total) / GIGABYTE


def process_memory_gb() -> float:
    """Resident memory of this process."""
    return float(psutil.Process().memory_info().rss) / GIGABYTE


def cpu_device(config: TelemetryConfig) -> Device:
    """The device `cpu`. Its rated power and limit come from the configuration: no counter tells them reliably."""
    return Device(
        name="cpu",
        kind="cpu",
        probes={
            Metric.UTILISATION_PCT: CpuUtilisation(),
            Metric.POWER_W: RaplPower(),
            Metric.TEMPERATURE_C: cpu_temperature_c,
            Metric.MEMORY_USED_GB: memory_used_gb,
            Metric.MEMORY_TOTAL_GB: memory_total_gb,
            Metric.PROCESS_MEMORY_GB: process_memory_gb,
        },
        limits=Limits(
            rated_power_w=Limit(config.cpu_rated_w, LimitSource.CONFIG),
            temperature_c=Limit(config.cpu_limit_c, LimitSource.CONFIG),
        ),
        facts={
            "name": platform.processor() or platform.machine(),
            "logical_cores": os.cpu_count(),
            "system": platform.platform(),
        },
    )
