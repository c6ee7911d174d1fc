"""Every NVIDIA GPU as a device, through NVML. No driver means no devices and a reason, never an error.

NVML's power is a mean over about a second on many cards; what a card does not tell is unavailable.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pynvml

from stokehold.core.config import TelemetryConfig
from stokehold.telemetry.readings import GIGABYTE, Device, Faults, Limit, Limits, LimitSource, Metric

T = TypeVar("T")

VRAM_LIMIT_C = 90.0
"""Limit of the VRAM temperature where the card tells none."""


def nvidia_devices(config: TelemetryConfig, faults: Faults, nvml: Any = pynvml) -> list[Device]:
    """One device per card, `gpu0`…; an absent driver or a card that cannot be opened is noted in `faults`.

    NVML stays initialised until `close_nvidia`; `nvml` is the binding, any object with pynvml's functions.
    """
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        faults.note("nvidia", error)
        return []
    devices = []
    for index in range(count):
        try:
            devices.append(_device(index, nvml.nvmlDeviceGetHandleByIndex(index), config, nvml))
        except nvml.NVMLError as error:
            faults.note(f"gpu{index}", error)
    return devices


def close_nvidia(nvml: Any = pynvml) -> None:
    """Undoes one `nvmlInit`; quiet when there was none, because NVML counts them and refuses one too many."""
    try:
        nvml.nvmlShutdown()
    except nvml.NVMLError_Uninitialized:
        return


def _device(index: int, handle: Any, config: TelemetryConfig, nvml: Any) -> Device:
    return Device(
        name=f"gpu{index}",
        kind="gpu",
        probes={
            Metric.UTILISATION_PCT: lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            Metric.POWER_W: lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0,
            Metric.TEMPERATURE_C: lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            Metric.MEMORY_TEMPERATURE_C: lambda: _memory_temperature_c(handle, nvml),
            Metric.MEMORY_USED_GB: lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / GIGABYTE,
            Metric.MEMORY_TOTAL_GB: lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total / GIGABYTE,
        },
        limits=_limits(handle, config, nvml),
        facts={
            "name": _told(lambda: _text(nvml.nvmlDeviceGetName(handle)), nvml),
            "uuid": _told(lambda: _text(nvml.nvmlDeviceGetUUID(handle)), nvml),
            "driver": _told(lambda: _text(nvml.nvmlSystemGetDriverVersion()), nvml),
            "power_limit_w": _told(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000.0, nvml),
        },
    )


def _limits(handle: Any, config: TelemetryConfig, nvml: Any) -> Limits:
    """The rated power is the card's default limit: a lowered profile must not make the same watts look like more."""
    rated_w = _told(lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1000.0, nvml)
    limit_c = _threshold_c(handle, ("GPU_MAX", "SLOWDOWN"), nvml)
    memory_limit_c = _threshold_c(handle, ("MEM_MAX",), nvml)
    return Limits(
        rated_power_w=_limit(rated_w, config.gpu_rated_w),
        temperature_c=_limit(limit_c, config.gpu_limit_c),
        memory_temperature_c=_limit(memory_limit_c, VRAM_LIMIT_C),
    )


def _limit(told: float | None, otherwise: float) -> Limit:
    """Some cards answer 0 for a limit they do not know."""
    return Limit(told, LimitSource.DEVICE) if told else Limit(otherwise, LimitSource.CONFIG)


def _threshold_c(handle: Any, names: tuple[str, ...], nvml: Any) -> float | None:
    """The first of the named thresholds that the card tells: GPU_MAX is where clocks begin to fall."""
    for name in names:
        which = getattr(nvml, f"NVML_TEMPERATURE_THRESHOLD_{name}")
        told = _told(partial(nvml.nvmlDeviceGetTemperatureThreshold, handle, which), nvml)
        if told:
            return float(told)
    return None


def _told(question: Callable[[], T], nvml: Any) -> T | None:
    """The card's answer to something it may lack, once at discovery; None is then recorded, so nothing is hidden."""
    try:
        return question()
    except nvml.NVMLError:
        return None


def _memory_temperature_c(handle: Any, nvml: Any) -> float:
    """VRAM temperature; raises NVMLError where the card has no such sensor (most consumer cards)."""
    field = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_MEMORY_TEMP])[0]
    if field.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(field.nvmlReturn)
    return float(field.value.uiVal)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
