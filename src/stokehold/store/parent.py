"""What a supervisor tells its children, a byte each, through the pipe whose end also tells that it is gone."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from stokehold.store.logs import reopen

GO, LOG = b"g", b"l"
"""Begin to work; the log was put aside."""


def listen(descriptor: int, log: Path, gone: Callable[[], None]) -> None:
    """Obeys from a thread of its own; calls `gone` when the other end closes, however that process ended."""

    def obey() -> None:
        while order := os.read(descriptor, 1):
            _obey(order, log)
        gone()

    threading.Thread(target=obey, name="parent", daemon=True).start()


def wait_for_go(descriptor: int, log: Path) -> bool:
    """Blocks until told to begin; False when the other end closed first."""
    while (order := os.read(descriptor, 1)) != GO:
        if not order:
            return False
        _obey(order, log)
    return True


def _obey(order: bytes, log: Path) -> None:
    if order != LOG:
        return
    try:
        reopen(log)
    except OSError as error:  # no room for a new file: the old one goes on taking our lines
        print(f"{log} could not be opened afresh: {error}", file=sys.stderr, flush=True)
