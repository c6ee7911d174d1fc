"""`stoke evaluations export`: stored evaluations leave the home as other evaluators log theirs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption, become, flag
from stokehold.store.home import Home

group = typer.Typer(help="What was judged, and how it turned out.", no_args_is_help=True)


class LogFormat(StrEnum):
    lm_eval = "lm-eval"
    inspect = "inspect"


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="evaluations")


@group.callback()
def evaluations() -> None:
    """What was judged, and how it turned out."""


@group.command("export")
def export(
    ref: Annotated[str, typer.Argument(help="latest, champion, base, v0007, step:1200 or the evaluation's id.")],
    folder: Annotated[Path, typer.Argument(help="Where the logs go; made where it is missing.")],
    form: Annotated[LogFormat, typer.Option("--format", help="Whose logs.")] = LogFormat.lm_eval,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Writes the newest evaluation of these weights as logs that lm-evaluation-harness or Inspect read."""
    arguments = [ref, str(folder.absolute()), *flag("--format", form), *flag("--json", as_json)]
    become(Home.open(home_path), "stokehold.pipeline.neighbours", arguments)
