"""The whole of retention in one call: files, rows, answers, samples and logs; and the packing of old versions.

`run` is what `stoke gc` does and what runs every night; `compact` is for when a person asks. Both hold the lock `gc`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from stokehold.core.errors import StokeholdError
from stokehold.store.db import events, jobs
from stokehold.store.db.database import Database
from stokehold.store.home import Home
from stokehold.store.housekeeping import ages, aging, compaction, gc, space, thinning
from stokehold.store.housekeeping.compaction import Saving
from stokehold.store.housekeeping.gc import Line
from stokehold.store.housekeeping.policy import WHOLE_DAYS
from stokehold.store.housekeeping.thinning import Thinned
from stokehold.store.models import versions


@dataclass(frozen=True, slots=True)
class Report:
    """What went, or would go. `freed` bytes are back now, `freed_later` when the trash lets go of what went there."""

    dry_run: bool
    lines: tuple[Line, ...]
    freed: int
    freed_later: int
    rows: Thinned
    runs: int
    """Records of finished workflows."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing did to each version that was looked at, and why the others were left."""

    savings: tuple[Saving, ...]
    left: tuple[Line, ...]
    freed_later: int
    """Bytes that come back when the trash lets go of the whole files; those that a snapshot names come back later."""


def run(home: Home, db: Database, now: datetime | None = None, dry_run: bool = False) -> Report:
    """Applies the policy as of `now` (with its time zone; the present by default).

    Raises `BusyError` where another process is at it, `StokeholdError` where the disk refuses; repeating it goes on.
    """
    moment, kept = now or ages.present(home), home.config().retention
    old = (moment - timedelta(days=kept.rows_days)).astimezone(UTC).isoformat()
    with _alone(home):
        done = gc.plan(home, db, moment) if dry_run else gc.carry_out(home, db, moment)
        aged = aging.age(home, moment, kept, dry_run)
        rows = thinning.thin(home, db, moment, kept.rows_days, dry_run)
        with jobs.client(home) as client:
            runs = client.forget(old, dry_run)
        report = Report(dry_run, (*done.lines, *aged), done.freed, done.freed_later, rows, runs, done.notes)
        if not dry_run and (gone := [line for line in report.lines if not line.keep]):
            names = ", ".join(f"{line.kind} {line.name}" for line in gone[:5])
            text = f"{len(gone)} things went, {report.freed} bytes are free again: {names}"
            events.record(db, "retention", text + (", …" if len(gone) > 5 else ""))
    return report


def compact(
    home: Home, db: Database, now: datetime | None = None, tell: Callable[[str], None] = lambda _name: None
) -> Packed:
    """Packs every old version that nobody needs whole; `tell` is given the name of each before it is packed."""
    moment = now or ages.present(home)
    savings: list[Saving] = []
    left: list[Line] = []
    replaced: list[Path] = []
    with _alone(home):
        there = versions.list_versions(home)
        kept = gc.wanted(db, there)
        for one in there:
            folder = Path(one.path)
            if why := _whole_because(folder, one.created, kept.get(one.name), moment):
                left.append(Line("version", one.name, True, why))
                continue
            tell(one.name)
            before = set(home.trash.iterdir())
            try:
                saving = compaction.pack(home, folder, compaction.against(home, folder))
            except StokeholdError as error:
                left.append(Line("version", one.name, True, str(error)))
                continue
            if saving is None:
                left.append(Line("version", one.name, True, "packing would save too little"))
            else:
                savings.append(saving)
                replaced += [path for path in set(home.trash.iterdir()) - before if path.is_dir()]
                text = f"{one.name} is packed: {saving.before} bytes of weights are {saving.after} now"
                events.record(db, "packed", text, version=one.name)
        back = space.freed([*replaced, *gc.orphans(home, db, set(replaced), of_any_age=True)])
    return Packed(tuple(savings), tuple(left), back)


def _whole_because(folder: Path, created: str, needed: str | None, now: datetime) -> str | None:
    """Why a version stays whole, None where it may be packed."""
    if needed is not None:
        return needed
    if compaction.used_s(folder) < compaction.FRESH_S:
        return "asked for within the last hour"
    made = datetime.fromisoformat(created).astimezone(now.tzinfo).date()
    if (now.date() - made).days < WHOLE_DAYS:
        return "of today or yesterday"
    return "packed already" if compaction.is_packed(compaction.manifest_of(folder)) else None


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    with home.lock("gc", "collecting what may go"):
        yield
