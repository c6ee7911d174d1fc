"""Work that needs a model: each of these commands becomes the worker that does it."""

from pathlib import Path
from typing import Annotated

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption, become, check_name, flag
from stokehold.cli.output import shown
from stokehold.core.errors import BusyError, InputError, UsageError
from stokehold.store.home import Home
from stokehold.supervisor.processes import holder


def add_to(app: typer.Typer) -> None:
    for command in (train, evaluate, compare, serve):
        app.command()(command)


def train(
    files: Annotated[list[Path], typer.Argument(help="JSONL files, trained in this order.")],
    steps: Annotated[int | None, typer.Option(help="Stop when the step counter reaches this.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Trains files in the foreground, without a daemon."""
    home = Home.open(home_path)
    if (held := holder(home, ("supervisor",))) is not None:
        raise BusyError(f"this home is up, by {held}", str(home.root), "`stoke submit` them, or `stoke down` first")
    if missing := [path for path in files if not path.is_file()]:
        raise InputError("no such file", shown(missing[0]), "check the path")
    for path in files:
        check_name(path, path.name)
    arguments = [str(path.absolute()) for path in files]
    arguments += [*flag("--steps", steps), *flag("--resume", resume), *flag("--json", as_json)]
    become(home, "stokehold.pipeline.foreground", arguments)


def evaluate(
    ref: Annotated[str, typer.Argument(help="latest, champion, base, v0007, step:1200 or a model folder.")] = "latest",
    suite: Annotated[
        list[str] | None, typer.Option(help="A suite's name, may be repeated; default: evaluation.suites.")
    ] = None,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Judges weights on held-out suites."""
    named = [part for name in suite or [] for part in ("--suite", name)]
    become(Home.open(home_path), "stokehold.pipeline.judge", ["evaluate", ref, *named, *flag("--json", as_json)])


def compare(
    a: Annotated[str, typer.Argument(help="The reference: champion, base, v0007, step:1200 or a folder.")],
    b: Annotated[str, typer.Argument(help="What is judged against it, named likewise.")],
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Draw fresh problems until the evidence is enough.")
    ] = False,
    max_items: Annotated[int | None, typer.Option(help="Problems drawn at most; default: 2000.", min=1)] = None,
    noise: Annotated[
        int | None,
        typer.Option(help="Read A so often first, batched otherwise; what that moves is no difference.", min=2),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page that needs no network.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a table for a paper.")] = None,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Says whether B is better than A, by paired statistics on shared items."""
    written = [*flag("--html", html and html.absolute()), *flag("--markdown", markdown and markdown.absolute())]
    if until_decided and written:
        raise UsageError("drawn problems have no report", "--until-decided", "leave out --html and --markdown")
    if until_decided and noise:
        raise UsageError("drawn problems have no noise floor", "--until-decided", "leave out --noise")
    if max_items and not until_decided:
        raise UsageError("only drawn problems have a bound", "--max-items", "add --until-decided")
    drawn = [*flag("--until-decided", until_decided), *flag("--max-items", max_items)]
    options = [*drawn, *flag("--noise", noise), *written, *flag("--json", as_json)]
    become(Home.open(home_path), "stokehold.pipeline.judge", ["compare", a, b, *options])


def serve(
    ref: Annotated[
        str | None, typer.Argument(help="What to serve; default: whatever champion names, also when that changes.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one; default: serve.port.")] = None,
    home_path: HomeOption = HERE,
) -> None:
    """Answers the OpenAI API with a version of this home."""
    become(Home.open(home_path), "stokehold.inference.server", [*flag("--ref", ref), *flag("--port", port)])
