"""`stoke gc`: what may go, why, and what that frees."""

from typing import Annotated

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption
from stokehold.cli.output import console, emit, errors, table
from stokehold.core.errors import UsageError
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.housekeeping import retention
from stokehold.store.housekeeping.retention import Packed, Report

UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def add_to(app: typer.Typer) -> None:
    app.command("gc")(collect)


def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go, and why.")] = False,
    compact: Annotated[bool, typer.Option("--compact", help="Pack old versions against their parents.")] = False,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Removes what the retention policy lets go, and frees its space; docs/retention.md has the policy."""
    if dry_run and compact:
        raise UsageError("--compact packs, and has no dry run", "stoke gc", "give one of the two")
    home = Home.open(home_path)
    if compact:
        packed = retention.compact(home, connect(home), tell=lambda name: errors.print(f"packing {name} …"))
        if not emit(packed, as_json):
            _show_packed(packed)
        return
    report = retention.run(home, connect(home), dry_run=dry_run)
    if not emit(report, as_json):
        _show(report)


def size(count: int) -> str:
    """Bytes for people, in powers of ten."""
    return next((f"{count / unit:.1f} {name}" for unit, name in UNITS if count >= unit), f"{count} B")


def _show(report: Report) -> None:
    rows = []
    for line in report.lines:
        fate, bytes_ = ("stays", None) if line.keep else ("goes", size(line.bytes))
        rows.append((line.kind, line.name, fate, bytes_, line.why))
    table(("what", "name", "", "size", "why"), rows, "nothing here that retention looks at")
    thinned, word = report.rows, "would be" if report.dry_run else "were"
    if thinned.steps:
        console.print(f"{thinned.steps} old journal rows {word} thinned to {thinned.aggregates}")
    for count, what in (
        (thinned.samples, "old samples"),
        (thinned.events, "old events"),
        (report.runs, "records of finished workflows"),
    ):
        if count:
            console.print(f"{count} {what} {word} dropped")
    for note in report.notes:
        console.print(note)
    verb = "would be free" if report.dry_run else "are free again"
    console.print(
        f"{size(report.freed)} {verb}; {size(report.freed_later)} more when the trash lets go: an hour, or 7 days"
    )
    if report.dry_run and report.freed_later:
        console.print("a version is verified before it goes, and one that is damaged stays")


def _show_packed(packed: Packed) -> None:
    rows = []
    for one in packed.savings:
        share = f"{100 * (1 - one.after / one.before):.1f} %"
        rows.append((one.name, size(one.before), size(one.after), share, one.against or "itself"))
    table(("version", "before", "packed", "saved", "against"), rows, "no version was packed")
    for line in packed.left:
        console.print(f"{line.name} was left: {line.why}")
    before, after = (sum(getattr(one, name) for one in packed.savings) for name in ("before", "after"))
    if before:
        console.print(f"{size(before)} of weights are {size(after)} now, {100 * (1 - after / before):.1f} % less")
        back = size(packed.freed_later)
        console.print(f"{back} come back when the trash lets go of the whole files, in an hour")
