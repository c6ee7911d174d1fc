"""The children of `stoke up`: how each is started, how it learns that we are gone, and what is kept of its end.

Every child holds the read end of a pipe of its own. When we close the other end, or die in any way, it reads end of
file: the trainer finishes its step, checkpoints and leaves; the page closes. Children have a session of their own,
so that Ctrl-C in our terminal reaches only us, and their output goes to `logs/<role>.log`.

Loading torch takes seconds, and is most of what a crash costs. So beside a trainer that is at work a spare stands by,
with everything loaded and nothing begun; when the trainer goes, the spare is told to begin.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from stokehold.core.config import Config
from stokehold.store import parent
from stokehold.store.files import utc_now
from stokehold.store.home import Home
from stokehold.store.logs import Log
from stokehold.supervisor.restarts import SIGKILL, Exit, Restarts
from stokehold.telemetry import clock
from stokehold.telemetry.cores import core_count

TRAINER_EXECUTOR = "trainer-0"
EVALUATOR_EXECUTOR = "evaluator-0"
TRAINER_LOCKS = ("trainer", f"executor-{TRAINER_EXECUTOR}")
EVALUATOR_LOCKS = ("evaluator", f"executor-{EVALUATOR_EXECUTOR}")
WORKER_LOCKS = (*TRAINER_LOCKS, *EVALUATOR_LOCKS)
SPARE_AFTER_S = 10.0
"""A spare is started when its role has lived so long: two that load at once only delay the one that is needed."""

SPARE_AGAIN_S = 600.0
"""Wait before another when a spare went by itself: the system may have wanted its memory."""

SPARE_MEMORY_BYTES = 2 * 2**30
"""Memory that must be free for a spare, which takes a fraction of it."""

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
    `spare`: it knows `--stand-by`, and one stands by.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    locks: tuple[str, ...] = ()
    spare: bool = False


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


def roles(home: Home) -> tuple[Role, ...]:
    """The children of a home, in the order they are stopped: the page stays up while the trainer saves its work."""
    arguments, config = ("--home", str(home.root)), home.config()
    environment = worker_environment(config)
    trainer = Role("trainer", "stokehold.pipeline.worker", arguments, environment, TRAINER_LOCKS, spare=True)
    evaluator = Role("evaluator", "stokehold.pipeline.evaluator", arguments, environment, EVALUATOR_LOCKS)
    web = Role("web", "stokehold.web.main", arguments, {"DO_NOT_TRACK": "1"})
    return (trainer, evaluator, web) if config.devices.own_evaluator else (trainer, web)


class Process:
    """A process of a role and our end of its pipe, closed when it was told to leave."""

    def __init__(self, role: Role, log: Path, stand_by: bool = False) -> None:
        """Starts it. Raises OSError when the machine refuses (no memory, no file handles)."""
        reading, writing = os.pipe()
        command = [sys.executable, "-m", role.module, *role.arguments, "--parent-fd", str(reading)]
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [*command, "--stand-by"] if stand_by else command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(reading,),
                    env={**os.environ, **role.environment},
                    start_new_session=True,
                )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        self._pipe = writing

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def told_to_leave(self) -> bool:
        return self._pipe < 0

    def poll(self) -> int | None:
        """Its exit code, None while it lives."""
        return self._process.poll()

    def tell(self, order: bytes) -> bool:
        """Whether the order was passed on: it cannot be when nobody reads any more."""
        try:
            return self._pipe >= 0 and os.write(self._pipe, order) == len(order)
        except BrokenPipeError:  # it is going; `poll` tells the rest
            return False

    def let_go(self) -> None:
        """Closes our end of the pipe: the process finishes what it is at and leaves."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def kill(self) -> None:
        """SIGKILL, and waits."""
        self._process.kill()
        self._process.wait()


class Child:
    """One role and its present process, if any. Nothing here waits: the supervisor's loop asks again."""

    def __init__(self, role: Role, logs: Path) -> None:
        self.role, self.log = role, logs / f"{role.name}.log"
        self.restarts = Restarts()
        self.history: list[dict[str, object]] = []
        self.given_up = False
        self._process: Process | None = None
        self._spare: Process | None = None
        self._spare_due_s = 0.0
        self._started_s = self._ended_s = 0.0
        self._log, self._log_start, self._memory_kills = Log(self.log), 0, 0

    @property
    def pid(self) -> int | None:
        """The living process, or None."""
        return None if self._process is None else self._process.pid

    @property
    def spare_pid(self) -> int | None:
        """The process that stands by, or None."""
        return None if self._spare is None else self._spare.pid

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
        """Starts the process, or lets the spare begin. Raises OSError when the machine refuses."""
        self.put_log_aside(datetime.now().astimezone())
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        spare, self._spare = self._spare, None
        if spare is not None and not spare.tell(parent.GO):
            spare.kill()
            spare.let_go()
            spare = None
        self._process = spare or Process(self.role, self.log)
        self._started_s, self._memory_kills = time.monotonic(), memory_kills()

    def tend_spare(self, now_s: float) -> bool:
        """Starts a spare where one is due, sees to one that went; whether it went by itself."""
        if self._spare is not None:
            if self._spare.poll() is None:
                return False
            self.drop_spare()
            self._spare_due_s = now_s + SPARE_AGAIN_S
            return True
        due_s = max(self._spare_due_s, self._started_s + SPARE_AFTER_S)
        wanted = self.role.spare and self._process is not None and not self._process.told_to_leave
        if wanted and now_s >= due_s and psutil.virtual_memory().available >= SPARE_MEMORY_BYTES:
            self._spare = Process(self.role, self.log, stand_by=True)
        return False

    def drop_spare(self) -> None:
        """Ends the process that stands by; it has begun nothing."""
        if self._spare is not None:
            self._spare.kill()
            self._spare.let_go()
            self._spare = None

    def put_log_aside(self, now: datetime) -> bool:
        """Puts the log aside where that is due, and lets its writers go on in a new one; whether it did."""
        if not self._log.put_aside(now):
            return False
        self._log_start = 0
        for process in (self._process, self._spare):
            if process is not None:
                process.tell(parent.LOG)
        return True

    def reap(self) -> Exit | None:
        """What the process ended with, once; None while it lives or when there is none.

        An end that we asked for is no reason for a restart, and is not remembered.
        """
        process = self._process
        if process is None or (code := process.poll()) is None:
            return None
        now = time.monotonic()
        for_memory = code == SIGKILL and memory_kills() > self._memory_kills
        ended = Exit(code, now, now - self._started_s, for_memory)
        self._process, self._ended_s = None, now
        if process.told_to_leave:
            return ended
        process.let_go()
        self.restarts = self.restarts.after(ended)
        self.given_up = self.restarts.looping
        said = next(iter(self.last_words().splitlines()[-1:]), "")
        entry = {"at": utc_now(), "boot_s": clock.boot_s(), "exit": code, "how": told(ended), "said": said}
        self.history = [*self.history, entry][-RESTARTS_KEPT:]
        return ended

    def try_again(self) -> None:
        """Forgets the exits of a role that was given up: somebody has seen to the cause."""
        if self.given_up:
            self.given_up, self.restarts = False, Restarts()

    def let_go(self) -> None:
        """Tells the process to finish what it is at and leave."""
        if self._process is not None:
            self._process.let_go()

    def kill(self) -> None:
        """SIGKILL, and waits: everything it holds survives that."""
        if self._process is not None:
            self._process.kill()

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
    """The last `LAST_WORDS_LINES` lines of a log, not reaching back beyond the byte `start`; empty without a log."""
    if not log.exists():
        return ""
    with log.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(min(start, size), size - LAST_WORDS_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-LAST_WORDS_LINES:])


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
