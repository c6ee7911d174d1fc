"""What the order of floating-point sums depends on, beside the weights and the rows: equal facts, equal bits."""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch

CPU_FACTS = Path("/proc/cpuinfo")


def arithmetic(device: torch.device) -> dict[str, Any]:
    """The facts of this process for what it computes on `device`; JSON."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": device.type,
        "cpu": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cuda": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


@cache
def _processor() -> str:
    """The processor's model name, as the kernel tells it."""
    lines = CPU_FACTS.read_text(errors="replace").splitlines() if CPU_FACTS.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
