"""Homes: started, stopped, looked at."""

import os
import re
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
from stokehold.store.database import connect
from stokehold.store.home import Home
from stokehold.supervisor.processes import holder
from stokehold.supervisor.status import payload

LOCK = ("supervisor",)
START_S = 30.0
STOP_S = 180.0
POLL_S = 0.1


def add_to(app: typer.Typer) -> None:
    for command in (up, down, status):
        app.command()(command)


def up(
    home_path: HomeOption = HERE,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the dashboard answers.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Starts supervisor, trainer and dashboard."""
    home = Home.open(home_path)
    if (held := holder(home, LOCK)) is not None:
        raise BusyError(f"this home is up already, by {held}", str(home.root), "`stoke down` stops it")
    if not detach:
        if as_json:
            raise UsageError("one JSON document has an end", "--json", "use it with --detach")
        become(home, "stokehold.supervisor.main", [])
    start_detached(home)
    if not emit({"home": str(home.root), "url": dashboard(home)}, as_json):
        console.print(f"up: {dashboard(home)}")


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
    """Stops at a step boundary, with a checkpoint."""
    home = Home.open(home_path)
    if not stop(home):
        raise StokeholdError("this home is not up", str(home.root), "`stoke up` starts it")
    if not emit({"home": str(home.root), "down": True}, as_json):
        console.print("down: the trainer left its last step in a checkpoint")


def stop(home: Home) -> bool:
    """Asks the supervisor to leave and waits for it; False when there was none."""
    held = holder(home, LOCK)
    found = re.search(r"process (\d+)", held or "")
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
    """How things stand: the status payload."""
    home = Home.open(home_path)
    db = connect(home)
    facts = payload(home, db)
    if not emit(facts, as_json):
        for line in status_lines(home, facts):
            console.print(line)
