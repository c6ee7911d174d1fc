"""Checks of the machine: code and packages, cores and who else uses them, limits, clock, heat, power."""

import ctypes
import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

import stokehold
from stokehold.core.config import Config
from stokehold.core.errors import NotFoundError
from stokehold.store import datasets
from stokehold.store.home import Home
from stokehold.store.models import checkpoints
from stokehold.supervisor.checks import Check, bad, good, look, size
from stokehold.supervisor.devices import GROUP, card_number
from stokehold.telemetry.cores import core_count
from stokehold.telemetry.host import cpu_temperature_c
from stokehold.telemetry.readings import DeviceReadings, Metric

PYTHON = (3, 11)
PACKAGES = ("torch", "transformers", "safetensors", "peft", "dbos", "SQLAlchemy", "numpy")
CUDA_PACKAGES = ("bitsandbytes",)
SAMPLE_S = 0.4
"""Over which the use of the CPU is taken."""

BUSY_SHARE = 0.25
"""Share of the cores that others may use before it is told."""

BUSY_GPU_PCT = 20.0
OPEN_FILES = 1024
FEW_OPEN_FILES = 256
SWAPPED_SHARE = 0.25
NEAR_LIMIT_C = 10.0
UNSYNCHRONISED = 5
"""What adjtimex(2) returns (TIME_ERROR) when nothing keeps the clock right."""

TIMEX_BYTES = 512
"""More than struct timex takes anywhere; all zero, it asks and sets nothing."""

EARLIEST = datetime(2025, 1, 1, tzinfo=UTC)


def code(root: Path | None = None) -> Check:
    """Which state of the code this is: a commit, or a released version."""
    root = root or Path(stokehold.__file__).parents[2]
    released = f"stokehold {stokehold.__version__}"
    if not (root / ".git").exists() or shutil.which("git") is None:
        return good("code", released)
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
    if not commit:
        return look("code", f"{released}, of no commit", "commit it, so that the run can be told by its code")
    if changed:
        files = "1 file" if len(changed) == 1 else f"{len(changed)} files"
        found = f"{released} at {commit}, {files} changed since"
        return look("code", found, "commit them, so that the run can be told by its code")
    return good("code", f"{released} at {commit}")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def packages(config: Config, names: Sequence[str] = PACKAGES) -> Check:
    """Python and what training rests on."""
    if sys.version_info < PYTHON:
        return bad("packages", f"Python {platform.python_version()}", "use Python 3.11 or newer")
    cuda = config.model.method == "qlora" or config.training.optimizer in ("adamw_8bit", "paged_adamw")
    found, missing = [f"Python {platform.python_version()}"], []
    for name in (*names, *(CUDA_PACKAGES if cuda else ())):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        extra = "'stokehold[cuda]'" if set(missing) <= set(CUDA_PACKAGES) else "stokehold"
        return bad("packages", f"missing: {', '.join(missing)}", f"`pip install {extra}`")
    return good("packages", ", ".join(found))


def threads(config: Config, group: Path = GROUP) -> Check:
    """Threads against the cores that this process may use, and the share of them that its container gives."""
    cores = core_count()
    wanted = config.training.threads or cores
    quota = _quota(group)
    if wanted > cores:
        return look("threads", f"{wanted} on {cores} cores", f"set training.threads = {cores}, or 0 for all")
    if quota is not None and wanted > quota:
        fix = f"set training.threads = {max(1, int(quota))}"
        return look("threads", f"{wanted}, and the container gets {quota:.1f} cores", fix)
    return good("threads", f"{wanted} on {cores} cores")


def _quota(group: Path) -> float | None:
    """Cores that the container may use on average; None without such a limit."""
    path = group / "cpu.max"
    words = path.read_text().split() if path.is_file() else []
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def load(home: Home, seconds: float = SAMPLE_S) -> Check:
    """Who else uses the cores, over `seconds`; the workers of this home are not others."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    running = [process for process in psutil.process_iter(["name", "cmdline"]) if process.pid not in own]
    others = [process for process in running if str(home.root) not in (process.info["cmdline"] or ())]
    for process in others:
        _use(process)
    psutil.cpu_percent(interval=seconds)
    used = sorted(((_use(process), process) for process in others), key=lambda pair: -pair[0])
    total = sum(share for share, _ in used) / core_count()
    if total <= BUSY_SHARE:
        return good("other programs", f"use {100 * total:.0f} % of the cores")
    share, first = used[0]
    found = f"use {100 * total:.0f} % of the cores, most of it {first.info['name']} (process {first.pid}, {share:.1f})"
    return look("other programs", found, "stop them, or leave them cores with training.threads")


def _use(process: psutil.Process) -> float:
    """Cores that a process has used since the last call; one that has gone, or is closed to us, uses none."""
    try:
        return float(process.cpu_percent()) / 100
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0


def gpu_load(config: Config, cards: Mapping[int, DeviceReadings]) -> Check | None:
    """Who else uses the card; None on a CPU."""
    card = None if config.devices.trainer == "cpu" else cards.get(card_number(config.devices.trainer))
    if card is None:
        return None
    busy, used = card.value(Metric.UTILISATION_PCT), card.value(Metric.MEMORY_USED_GB)
    if busy is None:
        return look("GPU", "does not tell how busy it is", "`nvidia-smi` may tell who uses it")
    found = f"{busy:.0f} % busy" + ("" if used is None else f", {used:.1f} GB in use")
    if busy > BUSY_GPU_PCT:
        return look("GPU", found, "`nvidia-smi` tells who uses it: stop them, or take another card")
    return good("GPU", found)


def swap() -> Check:
    """Memory that already lies on a disk: training steps would wait for it."""
    memory = psutil.swap_memory()
    if not memory.total:
        return good("swap", "none")
    found = f"{size(memory.used)} of {size(memory.total)} in use"
    if memory.used > SWAPPED_SHARE * memory.total:
        return look("swap", found, "close programs that hold memory; steps slow down while they wait for a disk")
    return good("swap", found)


def open_files() -> Check:
    """File descriptors that a process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = "any number" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    possible = 4 * OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, 4 * OPEN_FILES)
    fix = f"`ulimit -n {possible}` before `stoke up`"
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return good("open files", limit)
    return bad("open files", limit, fix) if soft < FEW_OPEN_FILES else look("open files", limit, fix)


def clock(home: Home, now: datetime | None = None) -> Check:
    """Times are what orders a run's history: the clock must not stand before what was already written."""
    now = now or datetime.now(UTC)
    written = [one.created for one in checkpoints.list_checkpoints(home)]
    written += [one.created for one in datasets.list_datasets(home)]
    newest = max((datetime.fromisoformat(text) for text in written), default=EARLIEST)
    found = f"{now:%Y-%m-%d %H:%M} UTC"
    if now < newest:
        fix = "set the clock: `timedatectl set-ntp true`"
        return bad("clock", f"{found}, and this home was written to at {newest:%Y-%m-%d %H:%M}", fix)
    if _unsynchronised():
        return look("clock", f"{found}, kept right by nothing", "`timedatectl set-ntp true`")
    return good("clock", found)


def _unsynchronised() -> bool:
    """Whether the kernel says that nothing corrects its clock; False where it does not say."""
    ask = getattr(ctypes.CDLL(None), "adjtimex", None)
    return ask is not None and ask(ctypes.create_string_buffer(TIMEX_BYTES)) == UNSYNCHRONISED


def temperature(config: Config, cards: Mapping[int, DeviceReadings]) -> Check:
    """The hottest device before it has done anything."""
    readings = [
        (card.device, value, card.limits.temperature_c.value)
        for card in cards.values()
        if (value := card.value(Metric.TEMPERATURE_C)) is not None
    ]
    try:
        readings.append(("cpu", cpu_temperature_c(), config.telemetry.cpu_limit_c))
    except NotFoundError:
        if not readings:
            fix = "load its driver (coretemp, k10temp), or watch it by other means: no alert will come"
            return look("temperature", "no sensor on this machine", fix)
    name, value, limit = min(readings, key=lambda reading: reading[2] - reading[1])
    found = f"{name} {value:.0f} °C, limit {limit:.0f}"
    if value >= limit:
        return bad("temperature", found, "let it cool; clean its fans and filters")
    if value > limit - NEAR_LIMIT_C:
        return look("temperature", found, "see to its cooling: it will get hotter")
    return good("temperature", found)


def power() -> Check:
    """A long run wants the mains."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is None:
        return good("power", "no battery")
    found = f"battery {battery.percent:.0f} %"
    if battery.power_plugged is False:
        return look("power", f"{found}, and not plugged in", "plug it in")
    return good("power", f"{found}, plugged in")


def port(config: Config, held: bool) -> Check:
    """The dashboard's port is free; `held` says that this home is up and has it."""
    host, number = config.web.host, config.web.port
    if not number:
        return good("dashboard", f"{host}, any free port")
    if held:
        return good("dashboard", f"http://{host}:{number}, this home's")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            return bad("dashboard", f"{host}:{number}: {reason}", "set web.port to another one, or to 0 for any")
    return good("dashboard", f"http://{host}:{number}")
