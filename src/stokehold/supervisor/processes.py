"""The children of `stoke up`: how each is started, how it learns that we are gone, and what is kept of its end.

Every child holds the read end of a pipe of its own. When we close the other end, or die in any way, it reads end of
file: the trainer finishes its step, checkpoints and leaves; the page closes. Children have a session of their own,
so that Ctrl-C in our terminal reaches only us, and their output goes to `logs/<role>.log`.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stokehold.core.config import Config
from stokehold.store.files import utc_now
from stokehold.store.home import Home
from stokehold.supervisor.restarts import SIGKILL, Exit, Restarts

TRAINER_EXECUTOR = "trainer-0"
LOG_BYTES = 10 * 1024 * 1024
"""A log that has grown past this is put aside when its role starts."""

LOGS_KEPT = 3
LAST_WORDS_BYTES = 4096
LAST_WORDS_LINES = 12
RESTARTS_KEPT = 20
VMSTAT = Path("/proc/vmstat")

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
"""glibc keeps what a step frees for the next step. Given back to the kernel, every page of it is faulted in anew."""


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of child: the module it runs, its arguments, its environment beside ours.

    `locks` name the locks of the home that an orphan of an earlier supervisor, or `stoke train`, may still hold.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    locks: tuple[str, ...] = ()


def worker_environment(config: Config) -> dict[str, str]:
    """What must be in the environment before a process loads torch; `stoke train` sets the same.

    The thread count is part of exactness on a CPU, so nothing may change it at run time. Tokenising runs on one
    thread beside training, which has every core.
    """
    return {
        "OMP_NUM_THREADS": str(config.training.threads or core_count()),
        "OMP_DYNAMIC": "FALSE",
        "MKL_DYNAMIC": "FALSE",
        "TOKENIZERS_PARALLELISM": "false",
        **KEEP_MEMORY,
        **({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if config.training.deterministic else {}),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }


def core_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def roles(home: Home) -> tuple[Role, ...]:
    """The children of a home, in the order they are stopped: the page stays up while the trainer saves its work."""
    arguments = ("--home", str(home.root))
    locks = ("trainer", f"executor-{TRAINER_EXECUTOR}")
    trainer = Role("trainer", "stokehold.pipeline.worker", arguments, worker_environment(home.config()), locks)
    return (trainer, Role("web", "stokehold.web.main", arguments, {"DO_NOT_TRACK": "1"}))


class Child:
    """One role and its present process, if any. Nothing here waits: the supervisor's loop asks again."""

    def __init__(self, role: Role, logs: Path) -> None:
        self.role, self.log = role, logs / f"{role.name}.log"
        self.restarts = Restarts()
        self.history: list[dict[str, object]] = []
        self.given_up = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._started_s = self._ended_s = 0.0
        self._log_start = self._memory_kills = 0

    @property
    def pid(self) -> int | None:
        """The living process, or None."""
        return None if self._process is None else self._process.pid

    @property
    def state(self) -> str:
        """running, waiting (for its next start) or stopped (given up)."""
        if self._process is not None:
            return "running"
        return "stopped" if self.given_up else "waiting"

    def due(self, now_s: float) -> float:
        """Seconds until it may be started (0: now), by `time.monotonic`; infinity when it runs or was given up."""
        if self._process is not None or self.given_up:
            return float("inf")
        return max(0.0, self._ended_s + self.restarts.delay_s - now_s) if self.restarts.exits else 0.0

    def start(self) -> None:
        """Starts the process. Raises OSError when the machine refuses (no memory, no file handles)."""
        rotate(self.log)
        reading, writing = os.pipe()
        command = [sys.executable, "-m", self.role.module, *self.role.arguments, "--parent-fd", str(reading)]
        try:
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(reading,),
                    env={**os.environ, **self.role.environment},
                    start_new_session=True,
                )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        self._pipe, self._started_s, self._memory_kills = writing, time.monotonic(), memory_kills()

    def reap(self) -> Exit | None:
        """What the process ended with, once; None while it lives or when there is none.

        An end that we asked for is no reason for a restart, and is not remembered.
        """
        if self._process is None or (code := self._process.poll()) is None:
            return None
        now = time.monotonic()
        for_memory = code == SIGKILL and memory_kills() > self._memory_kills
        ended = Exit(code, now, now - self._started_s, for_memory)
        self._process, self._ended_s = None, now
        if self._pipe < 0:  # it left because it was told to
            return ended
        self.let_go()
        self.restarts = self.restarts.after(ended)
        self.given_up = self.restarts.looping
        self.history = [*self.history, {"at": utc_now(), "exit": code}][-RESTARTS_KEPT:]
        return ended

    def let_go(self) -> None:
        """Closes our end of the pipe: the process finishes what it is at and leaves."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def kill(self) -> None:
        """SIGKILL, and waits: everything it holds survives that."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """The last lines the process wrote, at most `LAST_WORDS_BYTES`."""
        return tail(self.log, self._log_start)


def told(ended: Exit) -> str:
    """An end in words."""
    if ended.for_memory:
        return "was killed by the system because memory ran out"
    if ended.code >= 0:
        return f"ended with exit code {ended.code}"
    return f"was ended by {signal.Signals(-ended.code).name}"


def tail(log: Path, start: int = 0) -> str:
    """The last `LAST_WORDS_LINES` lines of a log, not reaching back beyond the byte `start`."""
    with log.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(min(start, size), size - LAST_WORDS_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-LAST_WORDS_LINES:])


def rotate(log: Path, limit_bytes: int = LOG_BYTES) -> None:
    """Puts a grown log aside as `.1`, the older ones further, at most `LOGS_KEPT` of them."""
    if not log.exists() or log.stat().st_size < limit_bytes:
        return
    for number in range(LOGS_KEPT - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.rename(log.with_name(f"{log.name}.{number + 1}"))
    log.rename(log.with_name(f"{log.name}.1"))


def memory_kills() -> int:
    """Processes the kernel has killed for memory since it started; 0 where it does not tell."""
    if not VMSTAT.exists():
        return 0
    found = (line.split() for line in VMSTAT.read_text().splitlines())
    return next((int(words[1]) for words in found if words[0] == "oom_kill"), 0)


def holder(home: Home, names: tuple[str, ...]) -> str | None:
    """Who holds one of these locks of the home, without taking it; None when all are free."""
    for name in names:
        path = home.status / f"{name}.lock"
        if not path.exists():
            continue
        with path.open("rb") as stream:
            try:
                # Shared and let go at once: it meets no other probe, and only an exclusive holder refuses it.
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return stream.read(4096).decode(errors="replace").strip() or "another process"
    return None
