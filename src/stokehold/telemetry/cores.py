"""How many cores there are for us; a module of its own, because processes that live for a second ask it too."""

import os


def core_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
