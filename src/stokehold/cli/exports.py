"""`stoke versions export` and `import`: weights leave the home as others load them, and come into it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption, RefArgument, become, flag
from stokehold.cli.output import console, emit
from stokehold.core.errors import UsageError
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.models import imports


class GgufType(StrEnum):
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


def add_to(group: typer.Typer) -> None:
    group.command("export")(export)
    group.command("import")(import_version)


def export(
    ref: RefArgument,
    folder: Annotated[Path, typer.Argument(help="Where the model goes: a new or an empty folder.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="Adapters added to their base: so it is unless --adapter is given.")
    ] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapters alone, as PEFT reads them.")] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="Also one GGUF file, for llama.cpp.")] = False,
    gguf_type: Annotated[GgufType | None, typer.Option("--type", help="Type of its matrices; default: f16.")] = None,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Writes a model folder that transformers, PEFT or llama.cpp load, with a card that tells where it comes from."""
    if merged and adapter:
        raise UsageError("one form at a time", "--merged --adapter", "leave one out")
    if gguf_type and not gguf:
        raise UsageError("only a GGUF has a type", f"--type {gguf_type}", "add --gguf, or leave it out")
    arguments = [ref, str(folder.absolute()), *flag("--merged", merged), *flag("--adapter", adapter)]
    arguments += [*flag("--gguf", gguf), *flag("--type", gguf_type), *flag("--json", as_json)]
    become(Home.open(home_path), "stokehold.pipeline.exporting", arguments)


def import_version(
    folder: Annotated[Path, typer.Argument(help="A folder that an export, or save_pretrained, wrote.")],
    note: Annotated[str, typer.Option(help="Why it is brought in; kept with it.")] = "",
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Makes a version of a model folder from outside, once its files, shapes and tokens are checked."""
    home = Home.open(home_path)
    made = imports.import_folder(home, connect(home), folder, note)
    if not emit({"version": made.name, "weights_hash": made.weights_hash, "path": made.path}, as_json):
        console.print(f"{made.name} from {folder}, weights {made.weights_hash[:12]}")
        console.print(f"`stoke evaluate {made.name}` judges it, `stoke promote {made.name}` makes it the champion")
