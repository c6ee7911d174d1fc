"""`stoke up` becomes this process: it keeps the trainer and the page alive, watches the inbox, tells how things stand.

One visible loop, in order: children, inbox, status. A duty that fails is reported and tried again at its next turn;
the others go on. SIGTERM, SIGHUP or Ctrl-C leave in order: the trainer finishes its step, checkpoints and goes, then
the page; a second Ctrl-C does not wait. Killed outright, we take the children along: each reads the end of its pipe.
SIGUSR1 gives roles that were given up another chance: `stoke up` sends it where a home is up.
"""

import argparse
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import orjson
import watchfiles

from stokehold.core.errors import StokeholdError
from stokehold.store.backup import nights
from stokehold.store.db import events, jobs
from stokehold.store.db.jobs import JobsClient
from stokehold.store.files import utc_now, write_atomic
from stokehold.store.home import Home
from stokehold.store.logs import STDERR, Log, reopen, thin, writes_to
from stokehold.supervisor.facts import CHILDREN_FILE
from stokehold.supervisor.inbox import Inbox
from stokehold.supervisor.processes import EVALUATOR_EXECUTOR, WORKER_LOCKS, Child, Role, holder, roles, told
from stokehold.supervisor.status import payload, write_status
from stokehold.telemetry import clock

TICK_S = 0.5
"""Longest time between two rounds; a dead child, a signal and a change in the inbox begin one at once."""

SHORTEST_ROUND_S = 0.05
STATUS_S = 1.0
LEAVE_S = 120.0
"""Longest wait for a child to leave in order; a step and a checkpoint of a large model fit in it."""

REMIND_S = 600.0
"""An alert is new when it did not hold for this long: one that stands, or comes and goes, is one event."""

TRIM_S = 3600.0
LOGS_S = 60.0
LEAVING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Supervisor:
    """The loop and what it remembers between two rounds."""

    def __init__(self, home: Home, client: JobsClient, children: Sequence[Role]) -> None:
        self._home, self._client = home, client
        self._children = [Child(role, home.logs) for role in children]
        self._inbox = Inbox(home, client, self._report)
        self._wake: queue.SimpleQueue[str] = queue.SimpleQueue()  # its put may interrupt itself: safe in handlers
        self._started, self._leaving, self._hurry = utc_now(), False, False
        self._settled, self._waiting_for = False, ""
        self._status_s = self._trim_s = self._logs_s = 0.0
        self._log, self._clocks = Log(home.logs / "supervisor.log"), clock.look()
        self._alerts: dict[str, float] = {}  # when each kind held last
        self._faults: dict[str, str] = {}

    def run(self) -> int:
        """Supervises until a signal; returns the exit code."""
        self._listen()
        stop_watching = self._watch()
        self._report("up", f"supervisor {os.getpid()} is up", {})
        while not self._leaving:
            self._duty("children", self._tend)
            self._duty("inbox", lambda: self._inbox.poll(time.monotonic()))
            self._duty("status", self._tell)
            self._duty("clock", lambda: self._notice(clock.look()))
            self._duty("logs", self._put_logs_aside)
            self._sleep()
        stop_watching.set()
        for child in self._children:
            child.drop_spare()
        for child in self._children:
            self._see_off(child)
        self._duty("status", lambda: self._tell(now=True))
        self._report("down", f"supervisor {os.getpid()} left in order", {})
        for number in LEAVING:
            signal.signal(number, signal.SIG_IGN)  # an impatient key must not make a failure of the last moments
        return 0

    def _tend(self) -> None:
        """Reaps what ended, starts what is due."""
        for child in self._children:
            ended = child.reap()
            if ended is not None:
                facts = {"role": child.role.name, "exit": str(ended.code), "last_words": child.last_words()}
                self._report("worker_exit", f"{child.role.name} {told(ended)} after {ended.lived_s:.0f} s", facts)
                if child.given_up:
                    text = f"{child.role.name} is given up: it {told(ended)} again and again; see {child.log}"
                    self._report("crash_loop", f"{text}; correct the cause, then `stoke up`", facts)
            if child.tend_spare(time.monotonic()):
                self._report("spare", f"the spare {child.role.name} went; the next comes later", {})
            if child.due(time.monotonic()) == 0.0 and self._is_free(child.role):
                child.start()

    def _is_free(self, role: Role) -> bool:
        """Whether nobody from before holds what the role needs; jobs are put in order before the first start.

        For that no worker may live, of whatever role, or of one that this configuration has no more.
        """
        if (held := holder(self._home, role.locks if self._settled or not role.locks else WORKER_LOCKS)) is not None:
            if held != self._waiting_for:
                self._report("waiting", f"{role.name} waits: its place is held by {held}", {"role": role.name})
            self._waiting_for = held
            return False
        if role.locks and not self._settled:
            changed = [*self._client.reconcile(), *self._client.adopt_old_versions()]
            if not any(child.role.name == "evaluator" for child in self._children):
                changed += self._client.adopt_from(EVALUATOR_EXECUTOR)
            if changed:
                self._report("adopted", f"{len(changed)} unfinished jobs were taken up again", {})
            self._settled = True
        return True

    def _tell(self, now: bool = False) -> None:
        """Writes both status files, and an event for each alert that is new."""
        if not now and time.monotonic() < self._status_s:
            return
        self._status_s = time.monotonic() + STATUS_S
        self._tell_children()
        content = payload(self._home, self._client.db)
        write_status(self._home, content)
        self._tell_alerts(content["active_alerts"], time.monotonic())
        if time.monotonic() >= self._trim_s:
            self._trim_s = time.monotonic() + TRIM_S
            events.trim(self._client.db)

    def _tell_alerts(self, active: Sequence[Mapping[str, str]], now_s: float) -> None:
        for alert in active:
            last_s, self._alerts[alert["kind"]] = self._alerts.get(alert["kind"]), now_s
            if last_s is None or now_s - last_s > REMIND_S:
                self._report("alert", f"{alert['kind']}: {alert['text']}", {"severity": alert["severity"]})

    def _tell_children(self) -> None:
        children = [
            {
                "role": c.role.name,
                "pid": c.pid,
                "spare": c.spare_pid,
                "state": c.state,
                "exits": c.history,
                "log": str(c.log),
            }
            for c in self._children
        ]
        content = {"pid": os.getpid(), "started": self._started, "updated": utc_now(), "children": children}
        write_atomic(self._home.status / CHILDREN_FILE, orjson.dumps(content))

    def _notice(self, now: clock.Clocks) -> None:
        """Tells of sleep and of a clock that was set; schedules count anew, and a night slept through is made up."""
        happened, self._clocks = clock.change(self._clocks, now), now
        if happened is not None:
            facts = {"slept_s": f"{happened.slept_s:.0f}", "set_s": f"{happened.set_s:.0f}"}
            self._report("clock", happened.words, facts)
            self._client.restart_schedules(utc_now())
            if (job := nights.make_up(self._home, self._client)) is not None:
                self._report("upkeep", f"{job.id}: the snapshot of the night is made up", {})

    def _put_logs_aside(self) -> None:
        """Once a day, or when they have grown; those of the children and, where it is a file of ours, our own."""
        if time.monotonic() < self._logs_s:
            return
        self._logs_s = time.monotonic() + LOGS_S
        now = datetime.now().astimezone()
        for child in self._children:
            child.put_log_aside(now)
        if writes_to(self._log.path, STDERR) and self._log.put_aside(now):
            reopen(self._log.path)
        thin(self._home.logs, disk=self._home.disk)

    def _see_off(self, child: Child) -> None:
        """Tells a child to leave and waits for it, telling the world meanwhile; kills it when it takes too long."""
        child.let_go()
        end_s = time.monotonic() + LEAVE_S
        while child.pid is not None:
            ended = child.reap()
            if ended is not None and ended.code != 0:
                self._report("worker_exit", f"{child.role.name} {told(ended)} when told to leave", {})
            elif ended is None and (self._hurry or time.monotonic() >= end_s):
                child.kill()
            else:
                self._duty("status", self._tell)
                self._sleep()

    def _duty(self, name: str, work: Callable[[], object]) -> None:
        """Does one piece of a round. What fails is printed, becomes an event once, and is done again next round."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - reported; a full disk must not take the training down
            fault = f"{type(error).__name__}: {error}"
            if self._faults.get(name) != fault:
                self._faults[name] = fault
                traceback.print_exc()
                self._report("fault", f"supervisor could not see to {name}: {fault}", {})
        else:
            self._faults.pop(name, None)

    def _report(self, kind: str, text: str, data: dict[str, str]) -> None:
        """An event, and a line on stderr, which remains when the database does not answer."""
        print(f"{utc_now()} {kind}: {text}", file=sys.stderr, flush=True)
        try:
            events.record(self._client.db, kind, text, **data)
        except Exception as error:  # noqa: BLE001 - the line above is the record
            print(f"{utc_now()} fault: the event could not be written: {error}", file=sys.stderr, flush=True)

    def _listen(self) -> None:
        for number in LEAVING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP, and means it
                signal.signal(number, self._leave)
        signal.signal(signal.SIGCHLD, lambda *_: self._wake.put("child"))
        signal.signal(signal.SIGUSR1, self._try_again)

    def _leave(self, number: int, _frame: object) -> None:
        self._hurry = self._hurry or (self._leaving and number == signal.SIGINT)
        self._leaving = True
        self._wake.put("leave")

    def _try_again(self, _number: int, _frame: object) -> None:
        for child in self._children:
            child.try_again()
        self._wake.put("again")

    def _watch(self) -> threading.Event:
        """A thread that wakes the loop when the inbox changes; a hint only."""
        stop = threading.Event()

        def watch() -> None:
            try:
                for _ in watchfiles.watch(self._home.inbox, stop_event=stop, debounce=200, raise_interrupt=False):
                    self._wake.put("inbox")
            except (OSError, RuntimeError) as error:  # out of inotify watches, a file system without them
                self._report("inbox", f"changes are not announced here ({error}); the inbox is looked at anyway", {})

        threading.Thread(target=watch, name="inbox-hint", daemon=True).start()
        return stop

    def _sleep(self) -> None:
        """Until the next round is due or something wakes us."""
        time.sleep(SHORTEST_ROUND_S)
        now_s = time.monotonic()
        due_s = min((child.due(now_s) for child in self._children), default=TICK_S)
        try:
            self._wake.get(timeout=max(0.0, min(TICK_S, due_s or TICK_S, self._inbox.due(now_s))))
            while True:
                self._wake.get_nowait()
        except queue.Empty:
            return


def main(arguments: Sequence[str] | None = None) -> int:
    """Supervises the home until told to leave; 0 after an orderly end, else the error's exit code."""
    parser = argparse.ArgumentParser(prog="stokehold.supervisor.main")
    parser.add_argument("--home", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        home = Home.open(given.home)
        with home.lock("supervisor", "stoke up"), jobs.client(home) as client:
            return Supervisor(home, client, roles(home)).run()
    except StokeholdError as error:
        print(f"stoke: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
