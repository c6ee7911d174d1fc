"""A version restored elsewhere, loaded, and compared with what it answered when it was made."""

from typing import Annotated

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption, become, flag
from stokehold.cli.versions import group
from stokehold.store.home import Home


def add_to(_app: typer.Typer) -> None:
    group.command()(drill)


def drill(
    ref: Annotated[
        str | None, typer.Argument(help="v0007 or champion; default: the champion, else the newest.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:N; default: a CPU.")] = None,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Restores a version to a temporary place, loads it and compares what it answers.

    Exit 1 when it differs, or when nothing was recorded to compare with.
    """
    named = [ref] if ref else []
    become(
        Home.open(home_path), "stokehold.pipeline.drill", [*named, *flag("--device", device), *flag("--json", as_json)]
    )
