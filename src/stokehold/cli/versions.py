"""Checkpoints and versions: listed, made, checked, promoted."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stokehold.cli import diffs, exports, restores
from stokehold.cli.options import HERE, HomeOption, JsonOption, RefArgument
from stokehold.cli.output import age, console, emit, share, size, table, when
from stokehold.cli.transfer import transferring
from stokehold.core.config import config_json
from stokehold.core.errors import NotFoundError
from stokehold.core.identity import content_hash
from stokehold.core.records import Version
from stokehold.store.db import events
from stokehold.store.db.database import Database, connect
from stokehold.store.disk import Tally
from stokehold.store.files import read_manifest
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, deletions, overview, verification, versions
from stokehold.store.models.references import resolve

group = typer.Typer(help="Weights that may be served.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="v0007, or v7.")]


def add_to(app: typer.Typer) -> None:
    app.command("checkpoints")(list_checkpoints)
    app.command()(promote)
    app.command()(rollback)
    restores.add_to(group)
    diffs.add_to(group)
    exports.add_to(group)
    app.add_typer(group, name="versions")


def list_checkpoints(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Lists the checkpoints on disk."""
    found = checkpoints.list_checkpoints(Home.open(home_path))
    if not emit(found, as_json):
        rows = [(c.step, c.weights_hash[:12], when(c.created), c.path) for c in found]
        table(("step", "weights", "created (UTC)", "path"), rows, "no checkpoint yet")


@group.command("list")
def list_versions(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Every version; the champion is starred, and what only it holds stands in brackets."""
    home = Home.open(home_path)
    found = overview.overview(home, connect(home))
    if emit([_entry(one) for one in found], as_json):
        return
    columns = ("version", "names", "step", "age", "exact", "verdict", "size", "parent", "note")
    table(columns, [_row(one) for one in found], "no version yet")


def _entry(one: overview.Overview) -> dict[str, Any]:
    facts = dataclasses.asdict(one)
    return {**facts.pop("version"), **facts}


def _row(one: overview.Overview) -> tuple[Any, ...]:
    version = one.version
    name = version.name + (" *" if versions.CHAMPION in one.aliases else "")
    names = [alias for alias in one.aliases if alias != versions.CHAMPION]
    names += ["pinned"] * one.pinned + ["packed"] * one.packed
    sizes = f"{size(one.bytes)} ({size(one.bytes_own)})"
    judged = (share(one.exact), one.verdict)
    return (
        name,
        ", ".join(names) or None,
        version.step,
        age(version.created),
        *judged,
        sizes,
        version.parent,
        version.note,
    )


@group.command()
def create(
    ref: Annotated[str, typer.Option("--from", help="latest, step:1200 or a version.")] = "latest",
    note: Annotated[str, typer.Option(help="Why it is made; kept with it.")] = "",
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Makes a version without reading or copying its weights."""
    home = Home.open(home_path)
    db, started, tally = connect(home), time.perf_counter(), Tally()
    source = resolve(home, db, ref, read=False)
    made = _make(dataclasses.replace(home, disk=tally), db, source, note)
    facts = {"version": made.name, "seconds": time.perf_counter() - started, "bytes_added": tally.bytes}
    if not emit(facts, as_json):
        console.print(f"{made.name} from {ref} in {facts['seconds']:.3f} s, {tally.bytes} bytes added")


@group.command()
def show(ref: RefArgument, home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """All that is known of a version or checkpoint; into a pipe, and with --json, as JSON."""
    home = Home.open(home_path)
    db = connect(home)
    folder = resolve(home, db, ref, read=False)
    manifest = read_manifest(folder)
    facts = overview.details(home, db, folder)
    if emit({**manifest, **facts}, as_json or not console.is_terminal):
        return
    console.print(
        f"{folder.name}  {manifest['kind']} of step {manifest.get('step')}, made {when(manifest['created'])} UTC"
    )
    names = [*facts["aliases"], *["pinned"] * facts["pinned"], *["packed"] * facts["packed"]]
    lines = {
        "names": ", ".join(names),
        "made from": " < ".join(str(each["name"]) + ("" if each["there"] else " (gone)") for each in facts["lineage"]),
        "note": manifest.get("note"),
        "datasets": ", ".join(manifest.get("datasets", [])),
        "evaluation": manifest.get("evaluation"),
        "exact": share(facts["exact"]),
        "verdict": facts["verdict"],
        "bytes": f"{size(facts['bytes']['total'])}, {size(facts['bytes']['own'])} of them in no other folder",
        "files": "missing or of another size: " + ", ".join(facts["wrong_size"])
        if facts["wrong_size"]
        else "sizes are right",
    }
    for name, value in lines.items():
        console.print(f"  {name:<12}{value or '-'}")
    table(("file", "bytes", "blake3"), [(e["path"], e["bytes"], e["blake3"][:16]) for e in manifest["files"]])


@group.command()
def verify(
    ref: RefArgument = "champion",
    everything: Annotated[bool, typer.Option("--all", help="Every version and every checkpoint.")] = False,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Reads every byte of a version and compares it with its manifest; exit 1 when something is off."""
    home = Home.open(home_path)
    if everything:
        with transferring("verify") as progress:
            checked = verification.verify_all(home, progress)
    else:
        folder = resolve(home, connect(home), ref, read=False)
        entries = versions.entries(folder)
        total = sum(entry["bytes"] for entry in entries)
        checked = [verification.Checked(folder.name, len(entries), total, tuple(versions.verify(home, folder)))]
    bad = [fault for each in checked for fault in each.bad]
    facts: dict[str, Any] = {"ok": not bad, "files": sum(each.files for each in checked)}
    facts |= {"bytes": sum(each.bytes for each in checked), "bad": bad}
    if not emit({**facts, **({"folders": checked} if everything else {})}, as_json):
        for each in checked:
            console.print(f"{each.name}: {'DAMAGED' if each.bad else 'ok'}, {each.files} files, {each.bytes} bytes")
            for fault in each.bad:
                console.print(f"  {fault.path}: {fault.reason}")
    if bad:
        raise SystemExit(1)


@group.command()
def delete(
    name: NameArgument,
    despite_children: Annotated[
        bool, typer.Option("--despite-children", help="Even where other versions were made from it.")
    ] = False,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Moves a version to the trash for a week, after a snapshot; one that is in use is refused."""
    home = Home.open(home_path)
    moved = deletions.delete(home, connect(home), name, despite_children)
    if not emit({"deleted": name, "moved_to": str(moved)}, as_json):
        console.print(f"{name} is in the trash for a week: `stoke versions undelete {name}` brings it back")


@group.command()
def undelete(name: NameArgument, home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Brings a deleted version back from the trash."""
    home = Home.open(home_path)
    version = deletions.undelete(home, connect(home), name)
    if not emit({"restored": version.name, "path": version.path}, as_json):
        console.print(f"{version.name} is back")


@group.command()
def pin(name: NameArgument, home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Keeps a version whole, whatever retention says, and from being deleted."""
    home = Home.open(home_path)
    pinned = versions.pin(home, connect(home), name)
    if not emit({"pinned": pinned}, as_json):
        console.print(f"{pinned} is pinned")


@group.command()
def unpin(name: NameArgument, home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Takes the pin off."""
    home = Home.open(home_path)
    unpinned = versions.unpin(home, connect(home), name)
    if not emit({"unpinned": unpinned}, as_json):
        console.print(f"{unpinned} is no longer pinned")


def promote(ref: RefArgument, home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Makes a version the champion by hand; a checkpoint becomes a version first."""
    home = Home.open(home_path)
    db = connect(home)
    folder = resolve(home, db, ref)
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
