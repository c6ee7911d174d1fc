"""One file's whole journey in a process that may be killed at a named place: the crash matrix runs it many times.

Children come from a fork server that has the modules loaded and has never run any of them.
"""

import multiprocessing
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from bench import Bench

from stokehold.core.records import JobState
from stokehold.pipeline import workflows
from stokehold.store import failpoints
from stokehold.store.home import Home
from stokehold.training import loop, writer

ROOM_POLL_S = 0.01
PATIENCE_S = 180.0
"""A bound on hanging, not on speed."""


def travel(root: Path, rows: list[dict[str, Any]], failpoint: str) -> None:
    """Submits the rows where they were not, takes up what was interrupted, and goes on until nothing is left to do."""
    torch.set_num_threads(1)
    workflows.ROOM_POLL_S = loop.ROOM_POLL_S = writer.ROOM_POLL_S = ROOM_POLL_S
    home = Home.open(root)
    home.sweep()
    one = Bench(home)
    if not one.client.list_jobs():
        one.submit("one.jsonl", rows)
    failpoints.arm(failpoint)
    for job in one.client.list_jobs([JobState.RUNNING]):
        one.run(job)
    one.drain()
    one.close()


def context() -> ForkServerContext:
    """Processes that need no time to load torch."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["journey", "stokehold.training.model", "transformers.models.qwen3.modeling_qwen3"])
    return made


def process(root: Path, rows: list[dict[str, Any]], failpoint: str = "") -> int | None:
    """The exit code of a journey in a process of its own; negative is the signal that ended it."""
    child = context().Process(target=travel, args=(root, rows, failpoint))
    child.start()
    child.join(PATIENCE_S)
    if child.is_alive():
        child.kill()
        child.join()
        return None
    return child.exitcode
