"""The crash matrix: an action is broken off at each change it makes to a disk, by each fault that there is.

    def prepare(root: Path) -> None: ...            # makes the home at `root` and closes its database
    def act(home: Home) -> None: ...                # what is tried; opens what it needs, and changes by `home.disk`
    def judge(home: Home, told: str | None) -> str: # "old" or "new"; raises AssertionError for anything between

    def test_it(tmp_path: Path) -> None:
        counts = every_fault(prepare, act, judge, tmp_path)
        assert counts["kill"]["old"] and counts["kill"]["new"]

`act` is a function at the top level of a module that can be imported by its name (the test file itself will do; from
another folder than tests/store write `from store.matrix import every_fault`). It is run in a child forked from a server
that has the module loaded and has never run anything, so a child costs milliseconds and forks no thread. Each fault
meets a fresh copy of the prepared home, with its hard links, in memory where the machine has a file system there. (What
`prepare` puts into `root.parent` is beside the copy too, and stays as it is.) Then, after `Home.sweep`, the judge looks
at the home with `told`, the text of the error that the action gave, None when it was killed or ended well. The rules:

- `full` and `io`: an error that the action gives must be a `StokeholdError`; one that says "nothing was changed" is
  held to it; a state that is still the old one with no error is a silent failure.
- `flip` turns a bit and goes on: the judge returns "named" where a verification names the damaged file; only then
  may it. A judge of an action that writes files needs to verify them before it says "new".
- Afterwards the action is run again, without a fault, and must end in "new" without an error: so it has to mind what
  is there already, as the command that a person repeats would. After "named" it is not run again.
- `torn` and `flip` are tried where the change writes a file, `kill`, `full`, `io` everywhere.

Where each try is dear, `every` tries one place of so many, others for each kind; MATRIX_EVERY=1 in the environment
tries them all.
"""

import atexit
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from stokehold.core.errors import StokeholdError
from stokehold.store.disk import Fault, FaultKind, FaultyDisk, T
from stokehold.store.home import Home

MEMORY = Path("/dev/shm")
PATIENCE_S = 120
"""A bound on hanging, not on speed."""

KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
UNCHANGED = "nothing was changed"
FIRST = b"\n"
"""What a child says at its first change."""

Prepare = Callable[[Path], None]
Act = Callable[[Home], None]
Judge = Callable[[Home, str | None], str]
Counts = dict[str, Counter[str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended: what it was asked to change, the places that wrote a file, its error, the signal."""

    changes: list[str]
    written: list[int]
    told: str | None
    expected: bool
    """Whether the error is one of ours."""
    signal: int | None
    changing_s: float | None
    """From its first change to its end; None where it made none."""

    @property
    def ended_well(self) -> bool:
        return self.told is None and self.signal is None


def places(prepare: Prepare, act: Act, tmp: Path, disk: type[FaultyDisk] = FaultyDisk) -> list[str]:
    """The changes that the action makes when nothing fails, in order: `rename /…/v0001`."""
    with _world(prepare, tmp) as world:
        return world.run(act, None, disk).changes


def every_fault(
    prepare: Prepare,
    act: Act,
    judge: Judge,
    tmp: Path,
    kinds: Sequence[FaultKind] = KINDS,
    disk: type[FaultyDisk] = FaultyDisk,
    every: int = 1,
) -> Counts:
    """How often each kind of fault ended in which state; AssertionError names the place that broke a rule."""
    with _world(prepare, tmp) as world:
        whole = world.run(act, None, disk)
        assert whole.ended_well, f"without a fault: {whole.told or whole.signal}"
        assert (state := world.judged(judge, None)) == "new", f"without a fault the state is {state}"
        counts: Counts = {kind: Counter() for kind in kinds}
        step = int(os.environ.get("MATRIX_EVERY", every))
        for number, kind in enumerate(kinds):
            places = whole.written if kind in ("torn", "flip") else range(len(whole.changes))
            for at in places[number % step :: step]:
                try:
                    counts[kind][_try(world, act, judge, Fault(kind, at), disk)] += 1
                except Exception as error:
                    place = f"{kind} at change {at} of {len(whole.changes)}, {whole.changes[at]}"
                    raise AssertionError(f"{place}: {error or type(error).__name__}") from error
        return counts


@dataclass(frozen=True, slots=True)
class World:
    """A prepared home, and the copy of it that is acted on."""

    prepared: Path
    root: Path

    def renew(self) -> None:
        """A fresh copy."""
        shutil.rmtree(self.root, ignore_errors=True)
        subprocess.run(["cp", "-a", str(self.prepared), str(self.root)], check=True)

    def run(self, act: Act, fault: Fault | None, disk: type[FaultyDisk], kill_after_s: float | None = None) -> Outcome:
        """The action in a process of its own, which may be killed from outside, so long after its first change."""
        return _server().run(act, self.root, fault, disk, kill_after_s)

    def judged(self, judge: Judge, told: str | None) -> str:
        home = Home.open(self.root)
        home.sweep()
        return judge(home, told)


def killed_at_random(
    prepare: Prepare, act: Act, judge: Judge, tmp: Path, kills: int, rng: random.Random
) -> Counter[str]:
    """How often the action, killed from outside at a random moment, ended in which state; then it is repeated.

    The moments lie after the action's first change, as long as it takes from there to its end when nobody kills it. A
    process that ended before its kill came does not count.
    """
    ended: Counter[str] = Counter()
    with _world(prepare, tmp) as world:
        longest_s = max(_unkilled_s(world, act) for _ in range(3))
        while ended.total() < kills:
            world.renew()
            if world.run(act, None, FaultyDisk, rng.uniform(0.0, longest_s)).signal != signal.SIGKILL:
                continue
            state = world.judged(judge, None)
            assert state in ("old", "new"), f"the state is {state}"
            again = world.run(act, None, FaultyDisk)
            assert again.ended_well, f"{state}; not repeatable: {again.told or again.signal}"
            after = world.judged(judge, None)
            assert after == "new", f"{state}; after a repetition {after}"
            ended[state] += 1
    return ended


def _unkilled_s(world: World, act: Act) -> float:
    """Seconds from the action's first change to its end."""
    world.renew()
    whole = world.run(act, None, FaultyDisk)
    assert whole.ended_well, f"without a kill: {whole.told or whole.signal}"
    assert whole.changing_s is not None, "it changes nothing"
    return whole.changing_s


def _try(world: World, act: Act, judge: Judge, fault: Fault, disk: type[FaultyDisk]) -> str:
    world.renew()
    outcome = world.run(act, fault, disk)
    state = world.judged(judge, outcome.told)
    if fault.kind in ("kill", "torn"):
        assert outcome.signal == signal.SIGKILL, f"never reached; {outcome.told or 'it ended well'}"
    else:
        assert outcome.signal is None, f"died of signal {outcome.signal}"
        assert fault.at < len(outcome.changes), "never reached: each run must make the same changes"
    if outcome.told is not None:
        assert outcome.expected, f"an error that is not ours: {outcome.told}"
        assert state == "old" or UNCHANGED not in outcome.told, f"the state is {state}, told was: {outcome.told}"
    elif fault.kind in ("full", "io"):
        assert state == "new", "the state is the old one and nothing was told"
    assert state in ("old", "new") or (state == "named" and fault.kind == "flip"), f"the state is {state}"
    if state != "named":
        again = world.run(act, None, disk)
        assert again.ended_well, f"{state}; not repeatable: {again.told or again.signal}"
        after = world.judged(judge, None)
        assert after == "new", f"{state}; after a repetition {after}"
    return state


@contextmanager
def _world(prepare: Prepare, tmp: Path) -> Iterator[World]:
    fast = MEMORY if os.access(MEMORY, os.W_OK) else tmp
    with TemporaryDirectory(dir=fast, prefix="matrix-") as folder:
        world = World(Path(folder) / "prepared", Path(folder) / "home")
        prepare(world.prepared)
        world.renew()
        yield world


class Server:
    """A process that imports what it is asked to run, runs nothing itself, and forks a child for each request."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._ask(sys.path)

    def run(
        self, act: Act, root: Path, fault: Fault | None, disk: type[FaultyDisk], kill_after_s: float | None
    ) -> Outcome:
        names = [act.__module__, act.__qualname__, disk.__module__, disk.__qualname__]
        reply = self._ask([*names, str(root), *((fault.kind, fault.at) if fault else (None, 0)), kill_after_s])
        return Outcome(**reply)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the server of the crash matrix died"
        return json.loads(line)


_servers: list[Server] = []


def _server() -> Server:
    if not _servers:
        _servers.append(Server())
        atexit.register(_servers[0].close)
    return _servers[0]


def _serve() -> None:
    sys.path[:] = json.loads(sys.stdin.readline())
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a child prints must not be taken for a reply
    print("null", file=replies, flush=True)
    for line in sys.stdin:
        module, function, disk_module, disk_class, root, kind, at, kill_after_s = json.loads(line)
        act, disk = getattr(import_module(module), function), getattr(import_module(disk_module), disk_class)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            signal.alarm(PATIENCE_S)
            _act(act, _announcing(disk, writing)(Fault(kind, at) if kind else None), Path(root), writing)
        os.close(writing)
        said, changing_s = _listen(child, reading, kill_after_s)
        _, status = os.waitpid(child, 0)
        ended = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None, "changing_s": changing_s}
        nothing = {"changes": [], "written": [], "told": None, "expected": True}
        print(json.dumps({**(json.loads(said) if said else nothing), **ended}), file=replies, flush=True)


def _announcing(disk: type[FaultyDisk], pipe: int) -> type[FaultyDisk]:
    """The disk, which also says on a pipe when its first change comes."""

    class Announcing(disk):  # type: ignore[misc, valid-type]
        def _do(self, name: str, file: Path | None, change: Callable[..., T], *given: Any) -> T:
            if not self.changes:
                os.write(pipe, FIRST)
            done: T = super()._do(name, file, change, *given)
            return done

    return Announcing


def _listen(child: int, reading: int, kill_after_s: float | None) -> tuple[bytes, float | None]:
    """What the child says at its end, and the seconds from its first change; kills it so long after that change."""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        if (said := pipe.read(len(FIRST))) != FIRST:
            return said + pipe.read(), None
        began = time.perf_counter()
        if kill_after_s is not None and not select.select([pipe], [], [], kill_after_s)[0]:
            os.kill(child, signal.SIGKILL)
        return pipe.read(), time.perf_counter() - began


def _act(act: Act, disk: FaultyDisk, root: Path, writing: int) -> None:
    """The child: never returns."""
    told, expected = None, True
    try:
        act(Home.open(root, disk))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
        told, expected = str(error) or type(error).__name__, isinstance(error, StokeholdError)
        told = told if expected else f"{type(error).__name__}: {told}"
    said = {"changes": disk.changes, "written": disk.written, "told": told, "expected": expected}
    os.write(writing, json.dumps(said).encode())
    os._exit(0)


if __name__ == "__main__":
    _serve()
