"""Checkpoints and versions: listed, made, checked, promoted."""

import time
from pathlib import Path
from typing import Annotated

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption
from stokehold.cli.output import console, emit, table, when
from stokehold.core.config import config_json
from stokehold.core.errors import NotFoundError
from stokehold.core.identity import content_hash
from stokehold.core.records import Version
from stokehold.store import checkpoints, evaluations, events, versions
from stokehold.store.database import Database, connect
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
        rows = [(c.step, c.weights_hash[:12], when(c.created), c.path) for c in found]
        table(("step", "weights", "created (UTC)", "path"), rows, "no checkpoint yet")


@group.command("list")
def list_versions(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Every version; the champion is starred."""
    home = Home.open(home_path)
    found, champion = versions.list_versions(home), versions.alias(connect(home))
    if not emit(found, as_json):
        starred = [v.name + (" *" if v.name == champion else "") for v in found]
        rows = [(n, v.step, v.parent, when(v.created), v.note) for n, v in zip(starred, found, strict=True)]
        table(("version", "step", "parent", "created (UTC)", "note"), rows, "no version yet")


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
    made = _make(home, db, source, note)
    entries = read_manifest(home.versions / made.name)["files"]
    added = sum(e["bytes"] for e in entries if (home.versions / made.name / e["path"]).stat().st_nlink == 1)
    facts = {"version": made.name, "seconds": time.perf_counter() - started, "bytes_added": added}
    if not emit(facts, as_json):
        console.print(f"{made.name} from {ref} in {facts['seconds']:.3f} s, {added} bytes added")


@group.command()
def show(ref: RefArgument, home_path: HomeOption = HERE, _as_json: JsonOption = True) -> None:
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
            console.print(f"  {fault.path}: {fault.reason}")
    if bad:
        raise SystemExit(1)


@group.command()
def delete(name: str, home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Moves a version to the trash; the champion is refused."""
    home = Home.open(home_path)
    moved = versions.delete(home, connect(home), name)
    if not emit({"deleted": name, "moved_to": str(moved)}, as_json):
        console.print(f"{name} is in the trash for a week: {moved}")


def promote(ref: RefArgument, home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Makes a version the champion by hand; a checkpoint becomes a version first."""
    home = Home.open(home_path)
    db = connect(home)
    folder = versions.resolve(home, db, ref)
    if folder.parent == home.versions:
        name = folder.name
    else:
        weights = checkpoints.weights_hash(read_manifest(folder)["files"])
        made = next((v.name for v in versions.list_versions(home) if v.weights_hash == weights), None)
        name = made or _make(home, db, folder, "by hand").name
    before = versions.set_alias(home, db, versions.CHAMPION, name)
    events.record(db, "promote", f"{name} by hand, before it {before or 'none'}")
    if not emit({"champion": name, "before": before}, as_json):
        console.print(f"champion: {name} (before: {before or 'none'})")


def rollback(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Makes the champion before this one the champion again."""
    home = Home.open(home_path)
    db = connect(home)
    previous = versions.previous(db)
    if previous is None:
        raise NotFoundError("there is no earlier champion", str(home.root), "`stoke versions list`, `stoke promote`")
    before = versions.set_alias(home, db, versions.CHAMPION, previous)
    events.record(db, "rollback", f"{previous} by hand")
    if not emit({"champion": previous, "before": before}, as_json):
        console.print(f"champion: {previous} (before: {before or 'none'})")


def _make(home: Home, db: Database, source: Path, note: str) -> Version:
    """A version with the lineage that its source and its evaluation tell."""
    origin = read_manifest(source)
    judged = evaluations.latest_for(home, db, checkpoints.weights_hash(origin["files"]))
    return versions.create(
        home,
        db,
        source,
        parent=versions.alias(db),
        datasets=origin.get("datasets", []),
        evaluation=judged.id if judged else None,
        note=note,
        config_hash=content_hash(config_json(home.config())),
    )
