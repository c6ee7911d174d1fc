"""A node: a home that follows the champion of another one and, if asked, serves it.

The server is asked every few seconds whether its champion is still the one that is here; another one is pulled beside
the one that serves, and switched to when it is whole. Once it has begun, nothing ends the node but a signal.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

from stokehold.core.config import Config, parse_config
from stokehold.core.errors import StokeholdError
from stokehold.store.home import CONFIG_NAME, Home
from stokehold.store.models import checkpoints, versions
from stokehold.store.transfer import evaluation_requests, sync
from stokehold.store.transfer.offers import parse
from stokehold.store.transfer.remote import Remote, Repeated, Tell
from stokehold.supervisor.processes import Child, Role, told, worker_environment

ASK_S = 5.0
"""Seconds between two questions whether the champion is still the same."""

TICK_S = 0.2
LEAVE_S = 10.0
SERVER, ANSWERING = "server", "answering"
NAMES = {SERVER: ("the inference server", "stoke serve"), ANSWERING: ("judging", "stoke node judge")}
"""What people know a role by, and the command that is the same."""

Transfer = Callable[[str], AbstractContextManager[sync.Report]]
"""Shows, under a title, how far what is reported inside the block is."""


def champions_settings(remote: Remote) -> Config:
    """The settings under which the champion's weights answer as they do at the server."""
    document = remote.retrying(lambda: sync.ask(remote, versions.CHAMPION))
    offer = parse(document.body if document else b"", remote.url)
    tree = offer.settings.model_dump(mode="json")
    if offer.base is not None:
        tree["model"]["base"] = f"base/{offer.base.name}"
    return parse_config(tree)


def servers_settings(remote: Remote) -> Config:
    """The same of whatever weights of the server, also where nothing was promoted yet."""
    found = remote.retrying(lambda: evaluation_requests.ask_server(remote))["settings"]
    return parse_config(found, f"the settings of {remote.url}")


def open_home(
    root: Path, remote: Remote, server: sync.Server, settings: Callable[[Remote], Config] = champions_settings
) -> Home:
    """The node's home at `root`, made with these settings where there is none, with the server written down in it.

    Raises StokeholdError for a home that trains by itself and for a folder with other things in it; what a server that
    is new to it refuses (token, no champion yet) is raised before anything is written.
    """
    if (root / CONFIG_NAME).is_file():
        home = Home.open(root)
        known = sync.remembered(home)
        if known is None and (versions.list_versions(home) or checkpoints.list_checkpoints(home)):
            fix = "name a new folder with --home"
            raise StokeholdError("this home has models of its own, and is no node", str(home.root), fix)
        if known != server:
            settings(remote)
    elif root.is_dir() and any(root.iterdir()):
        raise StokeholdError(
            "this folder is not empty, and no home", str(root.absolute()), "name a new one: --home DIR"
        )
    else:
        home = Home.create(root, settings(remote))
    sync.remember(home, server)
    return home


class Follower:
    """Follows the champion of `remote` in `home`; `look` as of `Repeated`."""

    def __init__(self, home: Home, remote: Remote, transfer: Transfer, tell: Tell, ask_s: float = ASK_S) -> None:
        self._home, self._remote, self._transfer, self._tell = home, remote, transfer, tell
        self._etag = ""
        self.look = Repeated(self._take, tell, ask_s).look

    def _take(self) -> None:
        document = sync.ask(self._remote, versions.CHAMPION, self._etag)
        if document is None:
            return
        offer = parse(document.body, self._remote.url)
        with self._transfer(f"pulling {offer.version.name}") as report:
            version = sync.receive(self._home, self._remote, offer, versions.CHAMPION, report)
        self._etag = document.etag
        self._tell(f"champion: {version.name} ({version.weights_hash[:12]})")


def roles(home: Home, serve: bool, judge: bool) -> list[Role]:
    """What may run beside the following: the inference server, and the process that answers what is to be judged."""
    arguments, environment = ("--home", str(home.root)), worker_environment(home.config())
    server = Role(SERVER, "stokehold.inference.server", arguments, environment)
    answering = Role(ANSWERING, "stokehold.pipeline.answering", arguments, environment, ("judging",))
    return [*([server] if serve else []), *([answering] if judge else [])]


def follow(home: Home, follower: Follower, beside: Sequence[Role], tell: Tell) -> NoReturn:
    """Follows until an exception; the processes beside it are started again."""
    children = [Child(role, home.logs) for role in beside]
    try:
        while True:
            follower.look()
            for child in children:
                _tend(child, tell)
            time.sleep(TICK_S)
    finally:
        for child in children:
            child.let_go()
        for child in children:
            _see_off(child)


def _tend(child: Child, tell: Tell) -> None:
    name, again = NAMES[child.role.name]
    if (ended := child.reap()) is not None:
        words = child.last_words().strip().rpartition("\n")[2]
        tell(f"{name} {told(ended)}: {words or 'it said nothing'} · see {child.log}")
        if child.given_up:
            tell(f"{name} is given up: correct the cause, then `{again}` in this home")
    if child.due(time.monotonic()) == 0.0:
        child.start()


def _see_off(child: Child) -> None:
    end_s = time.monotonic() + LEAVE_S
    while child.pid is not None and child.reap() is None:
        if time.monotonic() > end_s:
            child.kill()
        time.sleep(TICK_S)
