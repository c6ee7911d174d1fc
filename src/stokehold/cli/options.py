"""Options that many commands share, and how a command becomes the worker that does the work."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from stokehold.cli.output import shown
from stokehold.core.errors import InputError
from stokehold.store.home import Home
from stokehold.supervisor.processes import worker_environment

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="STOKE_HOME", help="The home folder.", show_default="the current one")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
RefArgument = Annotated[str, typer.Argument(help="latest, champion, base, v0007 or step:1200.")]
HERE = Path()


def become(home: Home, module: str, arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by the worker, so that killing the command kills the work."""
    command = [sys.executable, "-m", module, "--home", str(home.root), *arguments]
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, **worker_environment(home.config())})


def check_name(file: Path, kept: Path | str) -> None:
    """Raises InputError where the database cannot hold what is kept of a file's name."""
    if shown(kept) != str(kept):
        raise InputError("the name is not UTF-8", shown(file), "rename it")


def flag(name: str, value: object) -> list[str]:
    """`--name value` for the worker, nothing where the value is None or False."""
    if value is None or value is False:
        return []
    return [name] if value is True else [name, str(value)]
