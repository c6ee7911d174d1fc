"""`stoke versions restore`: a damaged version made whole, a copy of it elsewhere, or training that goes on from it."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption
from stokehold.cli.output import console, emit, size
from stokehold.core.errors import UsageError
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.models import going_back, restores
from stokehold.store.models.references import resolve


def add_to(group: typer.Typer) -> None:
    group.command()(restore)


def restore(
    ref: Annotated[str, typer.Argument(help="v0007, champion, or step:1200.")],
    to: Annotated[Path | None, typer.Option("--to", help="Copy it to this new folder, each byte verified.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Training goes on from it, in a new branch.")] = False,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Makes a version or checkpoint whole again from its blobs; the damaged one is kept in the trash for a week.

    Nothing is removed before what replaces it was verified.
    """
    if to is not None and train:
        raise UsageError("one of the two", "--to --train", "copy it first, then train from it")
    home = Home.open(home_path)
    db = connect(home)
    made = restores.restore(home, db, ref)
    facts: dict[str, Any] = {"restored": made.name, "kept_previous": made.kept_previous}
    facts |= {"was": made.was, "still_damaged": made.still_damaged}
    if to is not None:
        facts |= {"copied_to": str(to), "bytes": restores.copy_to(home, resolve(home, db, ref), to.absolute())}
    if train:
        facts["training"] = dataclasses.asdict(going_back.train_from(home, db, made.name))
    if not emit(facts, as_json):
        for line in _told(facts):
            console.print(line)


def _told(facts: dict[str, Any]) -> list[str]:
    name = facts["restored"]
    kept = f"{name} is whole again; the damaged one is kept: {facts['kept_previous']}"
    lines = [kept if facts["kept_previous"] else f"{name} is whole"]
    if facts["was"] and not facts["kept_previous"]:
        lines = [f"{name} is there again"]
    lines += [f"  {fault.path} was: {fault.reason}" for fault in facts["was"]]
    lines += [f"  {other} shares what was damaged: restore it too" for other in facts["still_damaged"]]
    if "copied_to" in facts:
        lines.append(f"copied to {facts['copied_to']}: {size(facts['bytes'])}, verified")
    if training := facts.get("training"):
        began = f"training goes on from {name}, step {training['step']}, in branch {training['branch']}"
        lines.append(f"{began}, with {'its' if training['optimiser'] == 'kept' else 'a fresh'} optimiser")
        lines += [f"  {folder} is in the trash for a week" for folder in training["set_aside"]]
    return lines
