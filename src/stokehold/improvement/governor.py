"""Whether another file may be generated: the loop that feeds itself stays within bounds that a person set."""

from stokehold.core.config import ImprovementConfig

MIN_FREE_BYTES = 2 * 1024**3
"""Below this, room is for checkpoints."""


def refusal(config: ImprovementConfig, queued: int, written: int, free_bytes: int) -> str | None:
    """Why no file may be generated now, or None.

    `queued` files wait, `written` were generated so far, `free_bytes` are left on the home's disk.
    """
    if not config.enabled:
        return "improvement.enabled is false"
    if config.max_files and written >= config.max_files:
        return f"{written} files were generated, improvement.max_files is {config.max_files}"
    if queued > config.max_depth:
        return f"{queued} files wait, improvement.max_depth is {config.max_depth}"
    if free_bytes < MIN_FREE_BYTES:
        return f"{free_bytes / 1024**3:.1f} GiB are free, {MIN_FREE_BYTES / 1024**3:.0f} GiB are kept for checkpoints"
    return None
