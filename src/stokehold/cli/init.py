"""`stoke init`: a new home, its settings, and the base model in it, from a folder, a hub, or made on the spot."""

import dataclasses
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from stokehold.cli.options import JsonOption
from stokehold.cli.output import console, emit
from stokehold.cli.transfer import transferring
from stokehold.core.config import Config, describe, parse_config
from stokehold.core.errors import InputError, StokeholdError, UsageError
from stokehold.core.memory import Memory, estimate
from stokehold.store.home import Home
from stokehold.store.models import bases, hub
from stokehold.store.models.weights import read_shape
from stokehold.supervisor.devices import Room, cards, room

TINY = "tiny"
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Source:
    """A model folder, and what the settings say of where it came from."""

    folder: Path
    name: str
    revision: str = ""


def add_to(app: typer.Typer) -> None:
    app.command()(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Where the home is made.")],
    model: Annotated[str, typer.Option(help="A model folder, a hub id (owner/name), or `tiny`.")] = TINY,
    method: Annotated[str, typer.Option(help="What is trained: full, lora or qlora.")] = "full",
    revision: Annotated[str, typer.Option(help="Branch, tag or commit on the hub; default: the newest commit.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Makes a home with a commented stoke.toml and its base model."""
    home = make_home(folder, model, parse_config({"model": {"method": method}}, "--method"), revision)
    config = home.config()
    base = home.root / config.model.base
    parameters = read_shape(base).parameters
    memory = estimate(read_shape(base), config)
    device = room(config.devices.trainer, cards(config))
    facts = {"home": str(home.root), "base": config.model.base, "model": config.model.architecture}
    facts |= config.model.model_dump(include={"source", "revision", "licence", "method", "dtype"})
    sizes = {**dataclasses.asdict(memory), "device_bytes": memory.device}
    if not emit({**facts, "parameters": parameters, "memory": sizes}, as_json):
        _tell(home, config, parameters, memory, device)


def make_home(folder: Path, model: str, config: Config, revision: str = "") -> Home:
    """A new home around a model folder, a model of the hub, or the embedded one; nothing is left when that fails."""
    if (folder / "stoke.toml").exists():
        raise StokeholdError("a home is here already", str(folder.absolute()), "use it as it is, or choose another")
    found = _find(model, revision)
    fresh = not folder.exists()
    home = Home.create(folder, config)
    try:
        source = found or Source(make_tiny(home), TINY)
        base = bases.import_base(home, source.folder, source.name, source.revision)
        licence = bases.licence(source.folder)
    except BaseException:
        home.config_path.unlink()
        if fresh:
            shutil.rmtree(home.root)
        raise
    facts = {"base": base.path, "architecture": base.architecture, "vocabulary": base.vocabulary, "licence": licence}
    facts |= {"source": source.name, "revision": source.revision}
    tree = config.model_dump(mode="json")
    longest = min(config.data.max_length, base.context_tokens or config.data.max_length)
    tree |= {"model": {**tree["model"], **facts}, "data": {**tree["data"], "max_length": longest}}
    home.write_config(describe(parse_config(tree)))
    return home


def _find(model: str, revision: str) -> Source | None:
    """Where the model is, fetched if a hub has it; None for the embedded one. A folder of that name comes first."""
    folder = Path(model)
    on_hub = model != TINY and not folder.is_dir() and hub.HUB_ID.fullmatch(model)
    if revision and not on_hub:
        raise UsageError("only a model of the hub has revisions", f"--revision {revision}", "leave it out")
    if on_hub:
        with transferring(f"fetching {model}") as report:
            fetched = hub.fetch(model, revision or hub.DEFAULT_REVISION, report)
        return Source(fetched.folder, model, fetched.revision)
    if model == TINY:
        return None
    if not folder.is_dir():
        fix = "give the folder that save_pretrained wrote, a hub id (owner/name), or `tiny`"
        raise InputError("no such model folder", model, fix)
    return Source(folder, str(folder.absolute()))


def make_tiny(home: Home) -> Path:
    """Makes the embedded model in a process of its own: this one stays without torch."""
    folder = home.base / ".tiny"
    command = [sys.executable, "-m", "stokehold.pipeline.tiny", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StokeholdError("the tiny model could not be made", done.stderr[-800:], "see the lines above")
    return folder


def _tell(home: Home, config: Config, parameters: int, memory: Memory, device: Room | None) -> None:
    """What there is now, what it will need, and what to do next."""
    model = config.model
    at = f" at {model.revision[:12]}" if model.revision else ""
    rows: list[tuple[str, Any]] = [
        ("model", f"{model.source}{at}, {_millions(parameters)} parameters"),
        ("licence", model.licence or "not named by the model's card: ask its owners"),
        ("training", f"{model.method} in {model.dtype} on {config.devices.trainer}"),
        ("memory", _memory(memory, device)),
        ("next", f"stoke preflight --home {home.root}"),
        ("", f"drop a JSONL file into {home.inbox}"),
        ("", f"stoke up --home {home.root}"),
    ]
    console.print(f"home {home.root}: {model.architecture}, base {model.base}")
    for name, value in rows:
        console.print(f"  {name:<9} {value}")
    if model.method == "qlora" and config.devices.trainer == "cpu":
        fix = 'set `trainer = "cuda:0"` under [devices], on a machine with a card'
        console.print(f"  {'note':<9} qlora trains on CUDA only: {fix}")


def _memory(memory: Memory, device: Room | None) -> str:
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimizer,
        "batch": memory.activations + memory.logits,
        "checkpoint": 0 if memory.cuda else memory.snapshot,
    }
    listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    of = f" of {_size(device.free)} free" if device else ""
    return f"about {_size(memory.training)}{of}: {listed}"


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def _millions(parameters: int) -> str:
    if parameters < 1_000_000:
        return f"{parameters:,}"
    return f"{parameters / 1e9:.2f} billion" if parameters >= 10**9 else f"{parameters / 1e6:.1f} million"
