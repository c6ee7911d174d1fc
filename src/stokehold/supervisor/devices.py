"""The devices that train and judge, as far as they can be seen without opening them: how much memory is left."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from stokehold.core.config import Config
from stokehold.telemetry.nvidia import close_nvidia, nvidia_devices
from stokehold.telemetry.readings import DeviceReadings, Faults, LiveSensors, Metric

GROUP = Path("/sys/fs/cgroup")
"""Where a container finds its own limits (cgroup v2)."""

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Room:
    """Memory of a device in bytes."""

    device: str
    free: int
    total: int


def main_memory(group: Path = GROUP) -> Room:
    """What a new process could have of main memory, within the limit of the container, if there is one."""
    memory = psutil.virtual_memory()
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None or limit >= memory.total:
        return Room("cpu", int(memory.available), int(memory.total))
    return Room("cpu", min(int(memory.available), max(0, limit - used)), limit)


def room(device: str, cards: Mapping[int, DeviceReadings]) -> Room | None:
    """Memory of `cpu` or `cuda:N`; None for a card that is not among `cards`, or does not tell."""
    if device == "cpu":
        return main_memory()
    reading = cards.get(card_number(device))
    if reading is None:
        return None
    used, total = reading.value(Metric.MEMORY_USED_GB), reading.value(Metric.MEMORY_TOTAL_GB)
    if used is None or total is None:
        return None
    return Room(device, round((total - used) * 1e9), round(total * 1e9))


def evaluator_room(config: Config, cards: Mapping[int, DeviceReadings]) -> Room | None:
    """Memory of the device of an evaluator in a process of its own here; None where there is none, as in `room`."""
    wanted = config.devices.evaluator
    return room(wanted, cards) if wanted == "cpu" or wanted.startswith("cuda") else None


def same_device(one: str, other: str) -> bool:
    """Whether two names mean one device: the CPU, or one card."""
    return (one == "cpu") == (other == "cpu") and (one == "cpu" or card_number(one) == card_number(other))


def cards(config: Config) -> dict[int, DeviceReadings]:
    """One reading of each NVIDIA card, by the number that the driver gives it; empty without a driver."""
    faults = Faults()
    devices = nvidia_devices(config.telemetry, faults)
    try:
        return dict(enumerate(LiveSensors(devices, faults).read()))
    finally:
        close_nvidia()


def card_number(device: str) -> int:
    """The driver's number of `cuda:N`, which counts the cards that this process may see."""
    index = int(device.partition(":")[2] or 0)
    visible = [part.strip() for part in os.environ.get(VISIBLE, "").split(",") if part.strip()]
    if index < len(visible) and visible[index].isdigit():
        return int(visible[index])
    return index


def _number(path: Path) -> int | None:
    """The number in a file of the kernel; None where there is no such file, or no limit."""
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None
