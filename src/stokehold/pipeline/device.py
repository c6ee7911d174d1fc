"""One thread owns the device. Workflows run on threads of their own and hand model work over here.

The worker's main thread calls `serve`: it is the process's one visible loop, and because nothing else touches the
model, training, evaluation and samples can never overlap. Torch's thread pool also stays with one caller.

Training a file is one task of hours. What must not wait for its end, and what it must not be in the middle of a step
for, is an errand: the task runs those itself, on the same thread, whenever it calls `errands`.
"""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Tasks = queue.Queue[tuple[Callable[[], Any], Callable[[Any], Any], Future[Any]]]
POLL_S = 0.1


class Leaving(Exception):
    """The process was asked to leave in the middle of a task that can be done again at the next start."""


class DeviceQueue:
    """First come, first served, errands before tasks; an exception goes to whoever handed the work over."""

    def __init__(self) -> None:
        self._tasks: Tasks = queue.Queue()
        self._errands: Tasks = queue.Queue()
        self._leaving: Callable[[], bool] = lambda: False

    def run(self, task: Callable[[], T]) -> T:
        """Blocks until the device's thread has run `task`; returns or raises what it did.

        Never returns when the process leaves first: the workflow stays unfinished and is taken up at the next start.
        """
        return self._wait(self._tasks, task, _itself)

    def run_then(self, task: Callable[[], T], then: Callable[[T], R]) -> R:
        """As `run`, and `then` on what the task returned with nothing between the two; not where the process leaves."""
        return self._wait(self._tasks, task, then)

    def run_between(self, errand: Callable[[], T]) -> T:
        """As `run`, before every task that waits, and in the middle of one that calls `errands`."""
        return self._wait(self._errands, errand, _itself)

    def errands(self) -> None:
        """Runs the errands that wait; for the device's thread, where the task that is running can bear it."""
        while not self._errands.empty():
            self._do(*self._errands.get())

    def _wait(self, line: Tasks, task: Callable[[], T], then: Callable[[T], R]) -> R:
        future: Future[R] = Future()
        line.put((task, then, future))
        return future.result()

    def serve(self, leaving: Callable[[], bool], idle: Callable[[], None] = lambda: None) -> None:
        """Runs tasks until `leaving` says so; a task that is running ends first. `idle` is called between tasks."""
        self._leaving = leaving
        while not leaving():
            self.errands()
            try:
                waiting = self._tasks.get(timeout=POLL_S)
            except queue.Empty:
                idle()
                continue
            self._do(*waiting)

    def _do(self, task: Callable[[], T], then: Callable[[T], R], future: Future[R]) -> None:
        try:
            result = task()
            if not self._leaving():
                future.set_result(then(result))
        except Leaving:
            return  # unfinished, as if we had been killed
        except Exception as error:  # noqa: BLE001 - handed to the caller, who decides
            future.set_exception(error)


def _itself(result: T) -> T:
    return result
