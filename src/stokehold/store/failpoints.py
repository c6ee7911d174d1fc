"""Named places where a test may kill the process or fill the disk; without one armed, reaching a place costs a look-up.

`STOKEHOLD_FAILPOINT=checkpoint.staged:kill@2` kills at the second time; `:full` raises "no space left" there once,
`:full@2` the second time it is reached. Nothing else reads this variable, and no product setting arms a place.
"""

import errno
import os
import signal
from collections import Counter
from typing import Literal, get_args

Action = Literal["kill", "full"]

NAMES = (
    "ingest.copied",
    "ingest.split",
    "dataset.published",
    "ingest.enqueued",
    "step.computed",
    "step.updated",
    "step.journalled",
    "snapshot.taken",
    "checkpoint.weights",
    "checkpoint.optimizer",
    "publish.written",
    "publish.manifest",
    "publish.renamed",
    "checkpoint.published",
    "evaluation.judged",
    "promotion.version",
    "promotion.alias",
    "train.ended",
)
"""Every place, in the order in which a file's journey reaches them."""

MERGES = ("consolidation.merged", "consolidation.published", "consolidation.opened", "consolidation.versioned")
"""Places that only a merge of adapters reaches, between two files."""

VARIABLE = "STOKEHOLD_FAILPOINT"
_reached: Counter[str] = Counter()
_armed: dict[str, tuple[Action, int]] = {}


def arm(setting: str) -> None:
    """Arms `name:action[@time]`; an empty setting disarms all. ValueError for a name or action there is not."""
    _armed.clear()
    _reached.clear()
    if not setting:
        return
    name, _, rest = setting.partition(":")
    action, _, time = rest.partition("@")
    if name not in (*NAMES, *MERGES) or action not in get_args(Action):
        raise ValueError(f"no such failpoint: {setting}")
    _armed[name] = (action, int(time or 1))  # type: ignore[assignment]


def reach(name: str) -> None:
    """Says that this place was reached; returns unless it is armed for this time."""
    if name not in _armed:
        return
    _reached[name] += 1
    action, time = _armed[name]
    if _reached[name] != time:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)


arm(os.environ.get(VARIABLE, ""))
