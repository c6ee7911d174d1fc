"""Homes: made, started, stopped, looked at."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import orjson
import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption, become
from stokehold.cli.output import console, emit, table
from stokehold.core.config import Config, describe, parse_config
from stokehold.core.errors import BusyError, InputError, StokeholdError, UsageError
from stokehold.store.bases import import_base
from stokehold.store.database import connect
from stokehold.store.home import Home
from stokehold.supervisor.processes import holder
from stokehold.supervisor.status import payload

TINY = "tiny"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
LOCK = ("supervisor",)
START_S = 30.0
STOP_S = 180.0
POLL_S = 0.1


def add_to(app: typer.Typer) -> None:
    for command in (init, up, down, status):
        app.command()(command)


def init(
    folder: Annotated[Path, typer.Argument(help="Where the home is made.")],
    model: Annotated[str, typer.Option(help="A model folder, or `tiny` for the embedded one.")] = TINY,
    method: Annotated[str, typer.Option(help="What is trained: full trains every weight.")] = "full",
    as_json: JsonOption = False,
) -> None:
    """Makes a home with a commented stoke.toml and its base model."""
    home = make_home(folder, model, parse_config({"model": {"method": method}}, "--method"))
    config = home.config()
    if not emit({"home": str(home.root), "base": config.model.base, "model": config.model.architecture}, as_json):
        console.print(f"home {home.root}: {config.model.architecture}, base {config.model.base}")
        console.print(f"next: drop a JSONL file into {home.inbox}, then `stoke up --home {home.root}`")


def make_home(folder: Path, model: str, config: Config) -> Home:
    """A new home whose base is a model folder or the embedded tiny one; nothing is left behind when that fails."""
    source = Path(model)
    if model != TINY and not source.is_dir():
        raise InputError("no such model folder", model, _how_to_bring(model))
    fresh = not folder.exists()
    home = Home.create(folder, config)
    try:
        if model == TINY:
            source = make_tiny(home)
        base = import_base(home, source)
    except BaseException:
        home.config_path.unlink()
        if fresh:
            shutil.rmtree(home.root)
        raise
    facts = {"base": base.path, "architecture": base.architecture, "vocabulary": base.vocabulary}
    tree = config.model_dump(mode="json")
    longest = min(config.data.max_length, base.context_tokens or config.data.max_length)
    tree |= {"model": {**tree["model"], **facts}, "data": {**tree["data"], "max_length": longest}}
    home.write_config(describe(parse_config(tree)))
    return home


def _how_to_bring(model: str) -> str:
    """Nothing is downloaded here, so that nothing leaves the machine unasked."""
    if not HUB_ID.fullmatch(model):
        return "give the folder that save_pretrained wrote, or `tiny`"
    folder = model.rpartition("/")[2]
    return (
        "nothing is downloaded here: where there is a network, `hf download "
        f"{model} --local-dir {folder}`, bring that folder, then `stoke init DIR --model {folder}`"
    )


def make_tiny(home: Home) -> Path:
    """Makes the embedded model in a process of its own: this one stays without torch."""
    folder = home.base / ".tiny"
    command = [sys.executable, "-m", "stokehold.pipeline.tiny", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StokeholdError("the tiny model could not be made", done.stderr[-800:], "see the lines above")
    return folder


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


SHOWN = (
    ("status", "status"),
    ("step", "current_step"),
    ("of", "total_steps"),
    ("loss", "loss"),
    ("tokens/s", "tokens_per_sec"),
    ("file", "current_file"),
    ("held-out exact", "fixed_eval_em"),
    ("queue", "batch_queue_size"),
)


def status(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """How things stand: the status payload."""
    home = Home.open(home_path)
    db = connect(home)
    facts = payload(home, db)
    if not emit(facts, as_json):
        rows = [(name, _short(facts.get(key))) for name, key in SHOWN]
        table(("", str(home.root)), rows)
        for alert in facts["active_alerts"]:
            console.print(f"! {alert['kind']}: {alert['text']}")


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
