"""Backups: taken, copied to a second place, listed, checked, and a home made anew from one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption
from stokehold.cli.output import console, emit, errors, table, when
from stokehold.cli.transfer import transferring
from stokehold.core.errors import UsageError
from stokehold.store.backup import backups, offsite, restoring
from stokehold.store.backup.locations import open_location
from stokehold.store.db.database import connect
from stokehold.store.db.rebuild import Rebuilt
from stokehold.store.files import Bad
from stokehold.store.home import Home

group = typer.Typer(help="Copies of a whole home, and homes made from them.", no_args_is_help=True)
AtOption = Annotated[
    str | None, typer.Option("--at", help="A second place: a path or a URL; default: the snapshots in the home.")
]
IdArgument = Annotated[str | None, typer.Argument(metavar="ID", help="A snapshot; default: the newest.")]


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="backup")


@group.command()
def run(
    to: Annotated[
        str | None, typer.Option(help="Second place: a path or a URL, '' for none; default: store.backup_to.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why it is taken; kept with it.")] = "by hand",
    anew: Annotated[
        bool, typer.Option("--anew", help="Begin anew, though the place held a backup and is empty now.")
    ] = False,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Takes a snapshot of the home and copies what a second place lacks of it."""
    home = Home.open(home_path)
    place = home.config().store.backup_to if to is None else to
    db = connect(home)
    with _progress() as progress:
        taken, copied = offsite.run(home, db, reason, place, progress, anew)
    if emit({"snapshot": taken, "location": place or None, "copied": copied}, as_json):
        return
    console.print(f"{taken.id}: {taken.folders} folders, {taken.files} files, {_size(taken.bytes)}")
    for missing in taken.missing:
        console.print(f"  not in it: {missing}")
    if copied is None:
        console.print("no second place is set: `--to`, or store.backup_to")
        return
    there = f"{copied.skipped_objects} ({_size(copied.skipped_bytes)}) were there"
    console.print(f"copied to {place}: {copied.objects} objects ({_size(copied.bytes)}), each read back; {there}")


@group.command("list")
def list_backups(at: AtOption = None, home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Snapshots, oldest first."""
    damaged: list[str] = []
    if at is None:
        found = backups.list_snapshots(Home.open(home_path))
    else:
        found, damaged = offsite.listing(open_location(at))
    if not emit({"snapshots": found, "damaged": damaged}, as_json):
        rows = [(s.id, when(s.created), _size(s.bytes), s.files, s.home, s.reason) for s in found]
        columns = ("snapshot", "taken (UTC)", "content", "files", "home", "reason")
        table(columns, rows, "no snapshot yet: `stoke backup run`")
        for name in damaged:
            console.print(f"cannot be read: {name}")


@group.command()
def verify(
    name: IdArgument = None, at: AtOption = None, home_path: HomeOption = HERE, as_json: JsonOption = False
) -> None:
    """Reads every byte of a snapshot; exit 1 when something is off."""
    with _progress() as progress:
        if at is None:
            home = Home.open(home_path)
            found = backups.find_snapshot(home, name)
            bad = backups.verify_snapshot(home, found, progress)
        else:
            location = open_location(at)
            found = offsite.find(location, name)
            bad = offsite.verify(location, found, progress)
    _report(found, bad, as_json)


@group.command()
def restore(
    name: IdArgument = None,
    source: Annotated[
        str | None, typer.Option("--from", help="Required: a path or a URL, or another home's folder.")
    ] = None,
    database_url: Annotated[
        str, typer.Option(help="An empty PostgreSQL database, for a snapshot of one.", show_default=False)
    ] = "",
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Makes a home in an empty folder, or one that is not there; it starts paused."""
    if source is None:
        raise UsageError("where is the backup?", "stoke backup restore", "name its place: --from LOCATION")
    with _progress() as progress:
        made = restoring.restore(open_location(source), home_path, name, database_url, progress)
    if emit(made, as_json):
        return
    console.print(f"{made.home}: restored from {made.snapshot.id} of {when(made.snapshot.created)} (UTC)")
    console.print(f"{made.files} files, {_size(made.bytes)}, each one verified")
    for left_out in made.left_out:
        console.print(f"  not in it: {left_out}")
    console.print(f"it is paused, and {made.unfinished} jobs wait: `stoke up`, then `stoke resume`")


def tell_rebuilt(made: Rebuilt, as_json: bool) -> None:
    """What `stoke doctor --rebuild` found, and what it could not."""
    if emit(made, as_json):
        return
    console.print(f"the database was remade{f' from snapshot {made.snapshot}' if made.snapshot else ''}")
    counted = f"{made.datasets} datasets, {made.checkpoints} checkpoints, {made.versions} versions"
    console.print(f"  {counted}, {made.evaluations} evaluations; champion: {made.champion or 'none'}")
    if made.damaged:
        console.print(f"  the old one is in {made.damaged}")
    for note in made.notes:
        console.print(f"  {note}")


def _report(found: backups.Snapshot, bad: list[Bad], as_json: bool) -> None:
    if not emit({"snapshot": found, "ok": not bad, "bad": bad}, as_json):
        state = "ok" if not bad else "DAMAGED"
        console.print(f"{found.id}: {state}, {found.files} files, {_size(found.bytes)}")
        for fault in bad:
            console.print(f"  {fault.path}: {fault.reason}")
    if bad:
        raise SystemExit(1)


@contextmanager
def _progress() -> Iterator[backups.Progress]:
    """Bytes as a transfer shows them; what is counted otherwise is named once, on a terminal."""
    with transferring("backup") as report:
        told: list[str] = []

        def progress(what: str, done: int, total: int) -> None:
            if what in COUNTED_IN_BYTES:
                report(done, total)
            elif what not in told and errors.is_terminal:
                told.append(what)
                errors.print(f"backup: {what}")

        yield progress


COUNTED_IN_BYTES = ("copy", "verify", "blobs")


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
