"""One thread owns the device. Workflows run on threads of their own and hand model work over here.

The worker's main thread calls `serve`: it is the process's one visible loop, and because nothing else touches the
model, training, evaluation and samples can never overlap. Torch's thread pool also stays with one caller.
"""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
POLL_S = 0.1


class Leaving(Exception):
    """The process was asked to leave in the middle of a task that can be done again at the next start."""


class DeviceQueue:
    """First come, first served; a task's exception goes to whoever handed the task over."""

    def __init__(self) -> None:
        self._tasks: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()

    def run(self, task: Callable[[], T]) -> T:
        """Blocks until the device's thread has run `task`; returns or raises what it did.

        Never returns when the process leaves first: the workflow stays unfinished and is taken up at the next start.
        """
        future: Future[T] = Future()
        self._tasks.put((task, future))
        return future.result()

    def serve(self, leaving: Callable[[], bool], idle: Callable[[], None] = lambda: None) -> None:
        """Runs tasks until `leaving` says so; a task that is running ends first. `idle` is called between tasks."""
        while not leaving():
            try:
                task, future = self._tasks.get(timeout=POLL_S)
            except queue.Empty:
                idle()
                continue
            try:
                result = task()
            except Leaving:
                continue  # unfinished, as if we had been killed
            except Exception as error:  # noqa: BLE001 - handed to the caller, who decides
                future.set_exception(error)
            else:
                if not leaving():
                    future.set_result(result)
