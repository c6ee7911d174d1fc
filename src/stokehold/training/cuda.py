"""What only a CUDA device gives: asked for when it is needed, refused with the fix where there is none.

Also the state of torch's random generators, of which a CUDA device has one of its own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import torch

from stokehold.core.config import Config
from stokehold.core.errors import ConfigError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
QUANTISED_OPTIMIZERS = ("adamw_8bit", "paged_adamw")
WORKSPACES = (":4096:8", ":16:8")
"""Settings under which cuBLAS gives the same bits every time."""


def bitsandbytes(setting: str, device: torch.device) -> ModuleType:
    """The library of quantised weights and moments; ConfigError where `setting` cannot be had on this machine."""
    if device.type != "cuda":
        fix = 'set `trainer = "cuda:0"` under [devices] where there is such a card, or take another one'
        raise ConfigError("this needs a CUDA device", f"{setting} on {device}", fix)
    try:
        return import_module("bitsandbytes")  # not installed where nothing needs it
    except ImportError as error:
        raise ConfigError("this needs bitsandbytes", setting, "pip install 'stokehold[cuda]'") from error


def check_device(config: Config) -> None:
    """Raises ConfigError where the config asks for what this machine, or this process, cannot do."""
    device = torch.device(config.devices.trainer)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device here", f"devices.trainer = {config.devices.trainer!r}", 'set it to "cpu"')
    if config.model.method == "qlora":
        bitsandbytes('model.method = "qlora"', device)
        if config.adapter.merge_files:
            fix = "set it to 0, or take the method lora in another home"
            raise ConfigError("merging rounds 4-bit weights anew each time", "adapter.merge_files with qlora", fix)
    if config.training.optimizer in QUANTISED_OPTIMIZERS:
        bitsandbytes(f'training.optimizer = "{config.training.optimizer}"', device)
    if wants_determinism(config) and os.environ.get(WORKSPACE) not in WORKSPACES:
        fix = f"start the process with {WORKSPACE}={WORKSPACES[0]}"
        raise ConfigError(f"{WORKSPACE} is not set", "training.deterministic = true", fix)


def wants_determinism(config: Config) -> bool:
    """Whether kernels must be chosen that give the same bits every time; a CPU's always do."""
    return config.training.deterministic and config.devices.trainer.startswith("cuda")


def random_states(device: torch.device) -> dict[str, bytes]:
    """The states of torch's random generators: of the CPU, and of the device where it has one of its own."""
    states = {"rng": torch.get_rng_state().numpy().tobytes()}
    if device.type == "cuda":
        states["rng_cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return states


def set_random_states(states: dict[str, bytes], device: torch.device) -> None:
    """Puts the generators where `random_states` found them; one of a device that is not there any more is left."""
    torch.set_rng_state(torch.frombuffer(bytearray(states["rng"]), dtype=torch.uint8))
    if device.type == "cuda" and "rng_cuda" in states:
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(states["rng_cuda"]), dtype=torch.uint8), device)


@contextmanager
def random_kept(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside the block, the generators are afterwards where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
