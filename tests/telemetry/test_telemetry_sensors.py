"""Probes of this machine, RAPL from a counter tree, NVIDIA cards from recorded driver answers, and failing ones."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from stokehold.core.config import TelemetryConfig
from stokehold.core.errors import NotFoundError
from stokehold.core.records import Reading, Source
from stokehold.telemetry.host import CpuUtilisation, cpu_device
from stokehold.telemetry.nvidia import nvidia_devices
from stokehold.telemetry.rapl import RaplPower
from stokehold.telemetry.readings import (
    UNAVAILABLE,
    Device,
    Faults,
    Limit,
    Limits,
    LimitSource,
    LiveSensors,
    Metric,
)

CONFIG = TelemetryConfig()
LIMITS = Limits(Limit(100.0, LimitSource.CONFIG), Limit(80.0, LimitSource.CONFIG))


def test_this_machine_tells_what_it_has_and_nothing_else() -> None:
    faults = Faults()
    sensors = LiveSensors([cpu_device(CONFIG)], faults)
    cpu = sensors.read()[0]
    assert cpu.value(Metric.MEMORY_TOTAL_GB) == pytest.approx(psutil.virtual_memory().total / 1e9)
    assert 0 < cpu.value(Metric.PROCESS_MEMORY_GB) < cpu.value(Metric.MEMORY_TOTAL_GB)
    assert cpu.reading(Metric.UTILISATION_PCT) == UNAVAILABLE
    assert cpu.reading(Metric.MEMORY_TEMPERATURE_C) == UNAVAILABLE
    for metric in Metric:
        assert (cpu.value(metric) is None) == (cpu.reading(metric).source is Source.UNAVAILABLE)
    silent = {f"cpu {m}" for m in (Metric.POWER_W, Metric.TEMPERATURE_C) if cpu.value(m) is None}
    assert silent - {"cpu power_w"} <= {fault.where for fault in faults.all()}


def test_utilisation_is_of_the_time_between_two_looks() -> None:
    probe = CpuUtilisation()
    assert probe() is None
    before = time.monotonic()
    while time.monotonic() - before < 0.3:
        sum(range(10_000))
    busy = probe()
    assert busy is not None
    assert 0.2 * 100 / (os.cpu_count() or 1) < busy <= 100.0


def test_a_raising_probe_is_unavailable_and_its_reason_is_kept_once() -> None:
    def broken() -> float:
        raise OSError("sensor unplugged")

    faults = Faults()
    probes = {Metric.POWER_W: broken, Metric.TEMPERATURE_C: lambda: 41.0, Metric.UTILISATION_PCT: lambda: float("nan")}
    sensors = LiveSensors([Device("gpu0", "gpu", probes, LIMITS)], faults)
    for _ in range(5):
        device = sensors.read()[0]
        assert device.reading(Metric.POWER_W) == UNAVAILABLE
        assert device.reading(Metric.UTILISATION_PCT) == UNAVAILABLE
        assert device.reading(Metric.TEMPERATURE_C) == Reading(41.0, Source.MEASURED)
    told = {fault.where: fault for fault in faults.all()}
    assert told["gpu0 power_w"].reason == "OSError: sensor unplugged"
    assert told["gpu0 power_w"].count == 5
    assert "nan" in told["gpu0 utilisation_pct"].reason
    assert len(told) == 2


def package(root: Path, zone: str, name: str, energy_uj: int) -> Path:
    folder = root / zone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    return folder / "energy_uj"


def test_rapl_is_joules_over_seconds_of_packages_only_and_survives_the_wrap(tmp_path: Path) -> None:
    first = package(tmp_path, "intel-rapl:0", "package-0", 262143328850 - 10_000_000)
    second = package(tmp_path, "intel-rapl:1", "package-1", 0)
    for zone, name in (("intel-rapl:0:0", "core"), ("intel-rapl:2", "psys")):
        package(tmp_path, zone, name, 0)
    now = iter([100.0, 102.0, 102.001, 104.0])
    power = RaplPower(tmp_path, clock=lambda: next(now))
    assert power() is None
    first.write_text("20000000")
    second.write_text("70000000")
    package(tmp_path, "intel-rapl:2", "psys", 10**9)
    assert power() == pytest.approx((30.0 + 70.0) / 2.0)
    assert power() is None
    second.write_text("80000000")
    assert power() == pytest.approx(10.0 / 2.0)


def test_no_counter_is_an_error_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no RAPL package counter"):
        RaplPower(tmp_path)()


class RecordedDriver:
    """The driver's answers in pynvml's shapes (units as NVML gives them); everything else is the real binding."""

    def __init__(self, cards: list[dict[str, Any]]) -> None:
        self.cards = cards

    def __getattr__(self, name: str) -> Any:
        return getattr(pynvml, name)

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        if self.cards[index].get("lost"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.cards[index]

    def _answer(self, card: dict[str, Any], key: str) -> Any:
        if key not in card:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return card[key]

    def nvmlDeviceGetUtilizationRates(self, card: dict[str, Any]) -> Any:
        return SimpleNamespace(gpu=self._answer(card, "utilisation"), memory=0)

    def nvmlDeviceGetPowerUsage(self, card: dict[str, Any]) -> Any:
        return self._answer(card, "milliwatts")

    def nvmlDeviceGetTemperature(self, card: dict[str, Any], which: int) -> Any:
        assert which == pynvml.NVML_TEMPERATURE_GPU
        return self._answer(card, "celsius")

    def nvmlDeviceGetMemoryInfo(self, card: dict[str, Any]) -> Any:
        return self._answer(card, "memory")

    def nvmlDeviceGetFieldValues(self, card: dict[str, Any], fields: list[int]) -> Any:
        assert fields == [pynvml.NVML_FI_DEV_MEMORY_TEMP]
        if "vram_celsius" not in card:
            return [SimpleNamespace(nvmlReturn=pynvml.NVML_ERROR_NOT_SUPPORTED)]
        return [SimpleNamespace(nvmlReturn=pynvml.NVML_SUCCESS, value=SimpleNamespace(uiVal=card["vram_celsius"]))]

    def nvmlDeviceGetPowerManagementDefaultLimit(self, card: dict[str, Any]) -> Any:
        return self._answer(card, "default_limit")

    def nvmlDeviceGetEnforcedPowerLimit(self, card: dict[str, Any]) -> Any:
        return self._answer(card, "enforced_limit")

    def nvmlDeviceGetTemperatureThreshold(self, card: dict[str, Any], which: int) -> Any:
        return self._answer(card, f"threshold {which}")

    def nvmlDeviceGetName(self, card: dict[str, Any]) -> Any:
        return self._answer(card, "name")

    def nvmlDeviceGetUUID(self, card: dict[str, Any]) -> Any:
        return self._answer(card, "uuid")

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.65"


FULL_CARD = {
    "utilisation": 97,
    "milliwatts": 241_500,
    "celsius": 71,
    "vram_celsius": 82,
    "memory": SimpleNamespace(used=20_000_000_000, total=24_000_000_000),
    "default_limit": 350_000,
    "enforced_limit": 280_000,
    f"threshold {pynvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX}": 88,
    f"threshold {pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX}": 105,
    "name": "Card A",
    "uuid": b"GPU-1",
}


def test_a_card_that_tells_everything() -> None:
    faults = Faults()
    devices = nvidia_devices(CONFIG, faults, RecordedDriver([FULL_CARD]))
    gpu = LiveSensors(devices, faults).read()[0]
    assert {metric: gpu.value(metric) for metric in Metric} == {
        Metric.UTILISATION_PCT: 97.0,
        Metric.POWER_W: 241.5,
        Metric.TEMPERATURE_C: 71.0,
        Metric.MEMORY_TEMPERATURE_C: 82.0,
        Metric.MEMORY_USED_GB: 20.0,
        Metric.MEMORY_TOTAL_GB: 24.0,
        Metric.PROCESS_MEMORY_GB: None,
    }
    assert gpu.limits.rated_power_w == Limit(350.0, LimitSource.DEVICE)
    assert gpu.limits.temperature_c == Limit(88.0, LimitSource.DEVICE)
    assert gpu.limits.memory_temperature_c == Limit(105.0, LimitSource.DEVICE)
    assert devices[0].facts == {"name": "Card A", "uuid": "GPU-1", "driver": "580.65", "power_limit_w": 280.0}
    assert faults.all() == ()


def test_a_card_that_tells_little_gives_nulls_and_configured_limits() -> None:
    faults = Faults()
    devices = nvidia_devices(CONFIG, faults, RecordedDriver([{"lost": True}, {"celsius": 50}, FULL_CARD]))
    assert [d.name for d in devices] == ["gpu1", "gpu2"]
    gpu = LiveSensors(devices, faults).read()[0]
    assert {m for m in Metric if gpu.value(m) is not None} == {Metric.TEMPERATURE_C}
    assert gpu.limits.rated_power_w == Limit(200.0, LimitSource.CONFIG)
    assert gpu.limits.temperature_c == Limit(83.0, LimitSource.CONFIG)
    assert gpu.limits.memory_temperature_c == Limit(90.0, LimitSource.CONFIG)
    reasons = {fault.where: fault.reason for fault in faults.all()}
    assert "NotSupported" in reasons["gpu1 power_w"]
    assert "NotSupported" in reasons["gpu1 memory_temperature_c"]
    assert "gpu0" in reasons


def test_the_real_binding_never_raises_for_want_of_a_card() -> None:
    faults = Faults()
    devices = nvidia_devices(CONFIG, faults)
    assert devices or any(fault.where == "nvidia" for fault in faults.all())
    LiveSensors(devices, faults).read()
