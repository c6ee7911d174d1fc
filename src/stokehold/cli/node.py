"""This machine as a node of another: it follows the champion there and serves it here, or judges for that home."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption, become, flag
from stokehold.cli.output import console, emit, errors
from stokehold.cli.transfer import transferring
from stokehold.core.errors import UsageError
from stokehold.store.home import CONFIG_NAME, Home
from stokehold.store.transfer import sync
from stokehold.store.transfer.remote import Remote
from stokehold.supervisor import node

group = typer.Typer(help="This machine follows another one's champion, or judges for it.", no_args_is_help=True)
UrlArgument = Annotated[str, typer.Argument(help="The page of the other home: http://host:8080; default: as before.")]
TokenOption = Annotated[
    str, typer.Option("--token", envvar="STOKE_NODE_TOKEN", help="HOME/status/token there; default: as before.")
]


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="node")


@group.callback()
def nodes() -> None:
    """This machine follows another one's champion, or judges for it."""


@group.command()
def join(
    url: UrlArgument = "",
    token: TokenOption = "",
    once: Annotated[bool, typer.Option("--once", help="Pull the champion and end.")] = False,
    serve: Annotated[bool, typer.Option(help="Answer the OpenAI API with the champion.")] = True,
    judge: Annotated[bool, typer.Option("--judge", help="Answer evaluations too, as `stoke node judge` does.")] = False,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Pulls the champion of another home, follows it from then on, and serves it."""
    if as_json and not once:
        raise UsageError("one JSON document has an end", "--json", "use it with --once")
    if once and judge:
        raise UsageError("evaluations have no end", "--judge", "leave out --once, or `stoke node judge --once`")
    server = _server(home_path, url, token)
    with Remote(server.url, server.token, errors.print) as remote:
        home = node.open_home(home_path, remote, server, node.servers_settings if judge else node.champions_settings)
        if not once:
            _follow(home, remote, serve, judge)
            return
        with transferring(f"pulling from {remote.url}") as report:
            version = sync.pull(home, server.url, server.token, report=report, tell=errors.print)
    answer = {"home": str(home.root), "champion": version.name, "weights_hash": version.weights_hash}
    if not emit(answer, as_json):
        console.print(f"champion: {version.name} ({version.weights_hash[:12]}) in {home.root}")


@group.command("judge")
def judge_for(
    url: UrlArgument = "",
    token: TokenOption = "",
    once: Annotated[bool, typer.Option("--once", help="Answer what is asked now and end.")] = False,
    home_path: HomeOption = HERE,
) -> None:
    """Answers the evaluations of another home whose `devices.evaluator` is "node"."""
    server = _server(home_path, url, token)
    with Remote(server.url, server.token, errors.print) as remote:
        home = node.open_home(home_path, remote, server, node.servers_settings)
    become(home, "stokehold.pipeline.answering", flag("--once", once))


def _server(root: Path, url: str, token: str) -> sync.Server:
    """The server that was named, completed by what the home remembers."""
    known = sync.remembered(Home.open(root)) if (root / CONFIG_NAME).is_file() else None
    found = sync.Server(url or (known.url if known else ""), token or (known.token if known else ""))
    if not found.url or not found.token:
        missing = "address" if not found.url else "token"
        fix = "give both the first time: http://host:8080 --token T; T is in HOME/status/token there"
        raise UsageError(f"no {missing} of a server", str(root.absolute()), fix)
    return found


def _follow(home: Home, remote: Remote, serve: bool, judge: bool) -> None:
    # Either signal may come in the middle of a pull: what is half done then is what a kill leaves, and is gone on with.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.print(f"node {home.root} follows {remote.url}")
    if serve:
        settings = home.config().serve
        console.print(f"serving on http://{settings.host}:{settings.port} once there is a champion; log: {home.logs}")
    if judge:
        console.print(f"judging on {home.config().devices.trainer}; log: {home.logs}")
    follower = node.Follower(home, remote, transferring, console.print)
    try:
        node.follow(home, follower, node.roles(home, serve, judge), console.print)
    except KeyboardInterrupt:
        console.print("left; `stoke node join` goes on")
