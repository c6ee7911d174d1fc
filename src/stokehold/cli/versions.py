"""Checkpoints and versions: listed, made, checked, promoted."""

import time
from typing import Annotated

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption
from stokehold.cli.output import console, emit, table
from stokehold.core.errors import NotFoundError
from stokehold.store import checkpoints, events, versions
from stokehold.store.database import connect
from stokehold.store.files import read_manifest
from stokehold.store.home import Home

group = typer.Typer(help="Weights that may be served.", no_args_is_help=True)
RefArgument = Annotated[str, typer.Argument(help="latest, champion, base, v0007 or step:1200.")]


def add_to(app: typer.Typer) -> None:
    app.command("checkpoints")(list_checkpoints)
    app.command()(promote)
    app.command()(rollback)
    app.add_typer(group, name="versions")


def list_checkpoints(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Checkpoints on disk."""
    found = checkpoints.list_checkpoints(Home.open(home_path))
    if not emit(found, as_json):
        table(("step", "weights", "created", "path"), [(c.step, c.weights_hash[:12], c.created, c.path) for c in found])


@group.command("list")
def list_versions(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Every version; the champion is starred."""
    home = Home.open(home_path)
    found, champion = versions.list_versions(home), versions.alias(connect(home))
    if not emit(found, as_json):
        rows = [(v.name + (" *" if v.name == champion else ""), v.step, v.parent, v.created, v.note) for v in found]
        table(("version", "step", "parent", "created", "note"), rows)


@group.command()
def create(
    ref: Annotated[str, typer.Option("--from", help="latest, step:1200 or a version.")] = "latest",
    note: Annotated[str, typer.Option(help="Why.")] = "",
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Makes a version without reading or copying its weights."""
    home = Home.open(home_path)
    db, started = connect(home), time.perf_counter()
    source = versions.resolve(home, db, ref)
    made = versions.create(home, db, source, parent=versions.alias(db), note=note)
    entries = read_manifest(home.versions / made.name)["files"]
    added = sum(e["bytes"] for e in entries if (home.versions / made.name / e["path"]).stat().st_nlink == 1)
    facts = {"version": made.name, "seconds": time.perf_counter() - started, "bytes_added": added}
    if not emit(facts, as_json):
        console.print(f"{made.name} from {ref} in {facts['seconds']:.3f} s, {added} bytes added")


@group.command()
def show(ref: RefArgument, home_path: HomeOption = HERE) -> None:
    """The manifest of a version or checkpoint, as JSON."""
    home = Home.open(home_path)
    emit(read_manifest(versions.resolve(home, connect(home), ref)), True)


@group.command()
def verify(ref: RefArgument = "champion", home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Reads every byte of a version and compares it with its manifest; exit 1 when something is off."""
    home = Home.open(home_path)
    folder = versions.resolve(home, connect(home), ref)
    bad = versions.verify(home, folder)
    entries = [] if any(fault.path == "manifest.json" for fault in bad) else read_manifest(folder)["files"]
    facts = {"ok": not bad, "files": len(entries), "bytes": sum(e["bytes"] for e in entries), "bad": bad}
    if not emit(facts, as_json):
        console.print(f"{folder.name}: {'ok' if not bad else 'DAMAGED'}, {len(entries)} files, {facts['bytes']} bytes")
        for fault in bad:
            console.print(f"  {fault.path}: {fault.reason}", markup=False)
    if bad:
        raise SystemExit(1)


@group.command()
def delete(name: str, home_path: HomeOption = HERE) -> None:
    """Moves a version to the trash; the champion is refused."""
    home = Home.open(home_path)
    console.print(f"moved to {versions.delete(home, connect(home), name)}", markup=False)


def promote(ref: RefArgument, home_path: HomeOption = HERE) -> None:
    """Makes a version the champion by hand; a checkpoint becomes a version first."""
    home = Home.open(home_path)
    db = connect(home)
    folder = versions.resolve(home, db, ref)
    known = folder.parent == home.versions
    name = folder.name if known else versions.create(home, db, folder, parent=versions.alias(db), note="by hand").name
    before = versions.set_alias(home, db, versions.CHAMPION, name)
    events.record(db, "promote", f"{name} by hand, before it {before or 'none'}")
    console.print(f"champion: {name} (before: {before or 'none'})")


def rollback(home_path: HomeOption = HERE) -> None:
    """Makes the champion before this one the champion again."""
    home = Home.open(home_path)
    db = connect(home)
    before = versions.previous(db)
    if before is None:
        raise NotFoundError("there is no earlier champion", str(home.root), "`stoke versions list`, `stoke promote`")
    versions.set_alias(home, db, versions.CHAMPION, before)
    events.record(db, "rollback", f"{before} by hand")
    console.print(f"champion: {before}")
