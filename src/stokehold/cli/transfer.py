"""How far a transfer is: a bar on a terminal, a line now and then elsewhere; both on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from stokehold.cli.output import errors

LINE_SHARE = 0.1
"""Where there is no terminal, a line is written each time this share more has come."""

Report = Callable[[int, int], None]
"""Told (bytes that have come, bytes that had to come)."""


@contextmanager
def transferring(title: str) -> Iterator[Report]:
    """Shows what is reported inside the block."""
    if not errors.is_terminal:
        yield _lines(title)
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(title, *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, wanted: bar.update(task, completed=done, total=wanted)


def _lines(title: str) -> Report:
    told = 0.0

    def report(done: int, wanted: int) -> None:
        nonlocal told
        share = done / wanted if wanted else 1.0
        if share >= told + LINE_SHARE or share >= 1.0 > told:
            told = share
            errors.print(f"{title}: {done / 1e6:,.1f} of {wanted / 1e6:,.1f} MB")

    return report
