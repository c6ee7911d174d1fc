"""Homes: started, stopped, looked at."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import orjson
import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption, become
from stokehold.cli.output import console, emit
from stokehold.cli.status import status_lines
from stokehold.core.errors import BusyError, StokeholdError, UsageError
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.supervisor import service
from stokehold.supervisor.facts import read_children
from stokehold.supervisor.processes import holder
from stokehold.supervisor.status import payload

LOCK = ("supervisor",)
PROCESS = re.compile(r"process (\d+)")
START_S = 120.0
STOP_S = 180.0
POLL_S = 0.1


def add_to(app: typer.Typer) -> None:
    for command in (up, down, status):
        app.command()(command)


def up(
    home_path: HomeOption = HERE,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the dashboard answers.")] = False,
    install: Annotated[bool, typer.Option("--install", help="Write a systemd user unit for every start.")] = False,
    uninstall: Annotated[bool, typer.Option("--uninstall", help="Remove that unit.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Starts supervisor, trainer and dashboard; where they are up, what was given up is tried again."""
    home = Home.open(home_path)
    if install or uninstall:
        _unit(home, install, uninstall, as_json)
        return
    if (held := holder(home, LOCK)) is not None:
        _try_again(home, held)
        return
    if not detach:
        if as_json:
            raise UsageError("one JSON document has an end", "--json", "use it with --detach")
        become(home, "stokehold.supervisor.main", [])
    start_detached(home)
    if not emit({"home": str(home.root), "url": dashboard(home)}, as_json):
        console.print(f"up: {dashboard(home)}")


def _unit(home: Home, install: bool, uninstall: bool, as_json: bool) -> None:
    """Writes or removes the unit and says what makes systemd heed it; running systemctl is left to its owner."""
    if install and uninstall:
        raise UsageError("one of the two", "--install --uninstall", "choose")
    name = service.unit_name(home)
    path = service.install(home) if install else service.uninstall(home)
    if path is None:
        raise StokeholdError("there is no unit of this home", name, "`stoke up --install` writes one")
    shown = shlex.quote(name)
    following = (
        ["systemctl --user daemon-reload", f"systemctl --user enable --now {shown}", "loginctl enable-linger"]
        if install
        else [f"systemctl --user disable --now {shown}", "systemctl --user daemon-reload"]
    )
    if emit({"unit": str(path), "installed": install, "commands": following}, as_json):
        return
    console.print(f"{'written' if install else 'removed'}: {path}\n\nNow run:")
    for command in following:
        console.print(f"    {command}")
    if install:
        console.print("\nThe last keeps it up when you are logged out, and brings it up with the machine.")


def _try_again(home: Home, held: str) -> None:
    """Asks the supervisor to start again what it has given up; `BusyError` where there is nothing like that."""
    given_up = [str(child["role"]) for child in read_children(home) if child["state"] == "stopped"]
    if not given_up or (found := PROCESS.search(held)) is None:
        raise BusyError(f"this home is up already, by {held}", str(home.root), "`stoke down` stops it")
    os.kill(int(found[1]), signal.SIGUSR1)
    console.print(f"{', '.join(given_up)}: was given up, and is started again")


def start_detached(home: Home) -> None:
    """Starts the supervisor in a session of its own and waits until the page tells its address."""
    address = home.status / "web.json"
    address.unlink(missing_ok=True)
    command = [sys.executable, "-m", "stokehold.supervisor.main", "--home", str(home.root)]
    with (home.logs / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=dict(os.environ)
        )
    end = time.monotonic() + START_S
    while not address.exists():
        if process.poll() is not None or time.monotonic() > end:
            process.terminate()
            said = _last_line(home.logs / ("web.log" if process.poll() is None else "supervisor.log"))
            raise StokeholdError(f"it did not come up: {said}", str(home.root), "`stoke logs` tells more")
        time.sleep(POLL_S)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "it said nothing").strip()


def dashboard(home: Home) -> str:
    """The page's address with its token, as a browser takes it."""
    url = orjson.loads((home.status / "web.json").read_bytes())["url"]
    return f"{url.rstrip('/')}/?token={home.token()}"


def down(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Stops what `up` started, after the present step, with a checkpoint."""
    home = Home.open(home_path)
    if not stop(home):
        raise StokeholdError("this home is not up", str(home.root), "`stoke up` starts it")
    if not emit({"home": str(home.root), "down": True}, as_json):
        console.print("down: the trainer left its last step in a checkpoint")


def stop(home: Home) -> bool:
    """Asks the supervisor to leave and waits for it; False when there was none."""
    held = holder(home, LOCK)
    found = PROCESS.search(held or "")
    if found is None:
        return False
    os.kill(int(found[1]), signal.SIGTERM)
    end = time.monotonic() + STOP_S
    while holder(home, LOCK) is not None:
        if time.monotonic() > end:
            raise StokeholdError("it did not leave", held or "", f"after {STOP_S:.0f} s; see {home.logs}")
        time.sleep(POLL_S)
    return True


def status(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """How things stand: the file in training, pace, loss, held-out results, alerts."""
    home = Home.open(home_path)
    db = connect(home)
    facts = payload(home, db)
    if not emit(facts, as_json):
        for line in status_lines(home, facts):
            console.print(line)
