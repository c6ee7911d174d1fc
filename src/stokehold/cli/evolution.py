"""`stoke evolution`: what each file taught, the curve over versions, and whether the model still learns."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption
from stokehold.cli.output import console, emit, table
from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.records import Comparison, Evaluation, Trained
from stokehold.evaluation.evolution import (
    MARGIN,
    WINDOW_EVALUATIONS,
    Direction,
    Pair,
    Trend,
    around,
    readings_of,
    shared_curve,
    taught,
    trend,
)
from stokehold.evaluation.verdict import ItemReading
from stokehold.store.db.database import connect
from stokehold.store.files import write_atomic
from stokehold.store.home import Home
from stokehold.store.judged import items
from stokehold.store.models import lineage, versions

COLUMNS = ("file", "steps", "tokens", "joules", "Δ exact, points", "Δ nats/token", "items", "verdict")
BARS = "▁▂▃▄▅▆▇█"
WIDEST_CURVE = 60
"""Points of a curve in a terminal; of longer ones every so many-th is drawn."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one file taught, as far as evaluations tell: `comparison` is None where one of the two is missing."""

    file: Trained
    pair: Pair
    comparison: Comparison | None


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation on the curve: over all its items, and over those that every evaluation of the window judged."""

    step: int
    ref: str
    version: str | None
    n: int
    exact: float | None
    nll: float | None
    shared_exact: float | None = None
    shared_nll: float | None = None


@dataclass(frozen=True, slots=True)
class Evolution:
    """Everything the command tells. `shared` items were judged by all evaluations of the trends' window."""

    lessons: tuple[Lesson, ...]
    points: tuple[Point, ...]
    shared: int
    exact: Trend
    nll: Trend


def add_to(app: typer.Typer) -> None:
    app.command()(evolution)


def evolution(
    suite: Annotated[str | None, typer.Option(help="One suite; default: every item that was judged.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the same as a page that needs no network.")] = None,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """What each file taught, and whether the model still learns, from the evaluations there are."""
    home = Home.open(home_path)
    found = read_evolution(home, suite)
    if html:
        from stokehold.cli.evolution_page import page  # plotly costs a while, and only this needs it

        write_atomic(html.absolute(), page(found, home.root.name, suite))
    if not emit(document(found), as_json):
        show(found)
        if html:
            console.print(f"written to {html}")


def read_evolution(home: Home, suite: str | None = None) -> Evolution:
    """From stored evaluations and the journal; nothing is measured. NotFoundError where no evaluation has the suite."""
    db, margin = connect(home), home.config().evaluation.equivalence_margin
    judged = lineage.judged(home, db)
    if suite is not None and not any(suite in one.suites for one in judged):
        there = sorted({name for one in judged for name in one.suites})
        raise NotFoundError("no evaluation has this suite", suite, f"there are: {', '.join(there) or 'none yet'}")
    known: dict[str, list[ItemReading]] = {}

    def readings(evaluation: Evaluation) -> list[ItemReading]:
        if evaluation.id not in known:
            try:
                known[evaluation.id] = readings_of(items.read_items(home, evaluation.id), suite)
            except (NotFoundError, IntegrityError):
                known[evaluation.id] = []  # its row says that there is nothing to compare
        return known[evaluation.id]

    lessons = []
    for file in lineage.trained_files(db):
        pair = around(file, judged, suite)
        both = pair.before is not None and pair.after is not None
        comparison = taught(readings(pair.before), readings(pair.after), margin) if both else None  # type: ignore[arg-type]
        lessons.append(Lesson(file, pair, comparison))
    curve = _one_engine([one for one in judged if suite is None or suite in one.suites])
    names = {version.weights_hash: version.name for version in versions.list_versions(home)}
    window = curve[-WINDOW_EVALUATIONS:]
    shared, exact, nll = shared_curve([readings(one) for one in window])
    before = len(curve) - len(window)
    points = [_point(one, suite, names) for one in curve[:before]]
    points += [_point(one, suite, names, *values) for one, *values in zip(window, exact, nll, strict=True)]
    steps = [float(one.step or 0) for one in window]
    return Evolution(tuple(lessons), tuple(points), shared, _trend(steps, exact, True), _trend(steps, nll, False))


def document(found: Evolution) -> dict[str, Any]:
    """What scripts rely on."""
    files = [
        {
            **asdict(lesson.file),
            "before": lesson.pair.before.id if lesson.pair.before else None,
            "after": lesson.pair.after.id if lesson.pair.after else None,
            "foreign_steps": lesson.pair.foreign,
            "taught": asdict(lesson.comparison) if lesson.comparison else None,
        }
        for lesson in found.lessons
    ]
    trends: dict[str, Any] = {"window": WINDOW_EVALUATIONS, "margin": MARGIN, "items": found.shared}
    trends |= {"exact": asdict(found.exact), "nll_per_token": asdict(found.nll)}
    return {"files": files, "curve": [asdict(point) for point in found.points], "trend": trends}


def show(found: Evolution) -> None:
    """Tables and curves for a terminal."""
    table(COLUMNS, [row(lesson) for lesson in found.lessons], "no file was trained yet")
    if not found.points:
        console.print("nothing was evaluated yet: `stoke evaluate`, or let training do it at the end of each file")
        return
    console.print()
    first, last = found.points[0], found.points[-1]
    over = f"step {first.step} to {last.step}, {len(found.points)} evaluations"
    for name, unit, values in (
        ("exact", 100.0, [point.exact for point in found.points]),
        ("nats/token", 1.0, [point.nll for point in found.points]),
    ):
        there = [value * unit for value in values if value is not None]
        ends = f"{there[0]:.4g} → {there[-1]:.4g}" if there else "-"
        console.print(f"{name:<11} {sparkline(values)}  {ends}  ({over})")
    for name, one in (("exact", found.exact), ("nats/token", found.nll)):
        console.print(f"{name:<11} {told(one, found.shared)}")


def told(one: Trend, shared: int) -> str:
    """A trend in a line."""
    said = f"{one.direction.value}: {one.reason}"
    if one.change is None or one.change_ci is None:
        return said
    low, high = one.change_ci
    window = f"window of the newest {WINDOW_EVALUATIONS} set beforehand, {shared} shared items"
    return f"{said}; change {one.change:+.4g} [{low:+.4g}, {high:+.4g}] (Theil-Sen, 95 %; {window})"


def sparkline(values: Sequence[float | None]) -> str:
    """Bars from the least to the greatest value; a dot where there is none."""
    every = -(-len(values) // WIDEST_CURVE)
    drawn = list(values)[::-1][:: max(1, every)][::-1]  # the newest is always among them
    there = [value for value in drawn if value is not None]
    low, span = min(there, default=0.0), (max(there, default=0.0) - min(there, default=0.0)) or 1.0
    top = len(BARS) - 1
    return "".join("·" if value is None else BARS[round((value - low) / span * top)] for value in drawn)


def row(lesson: Lesson) -> tuple[Any, ...]:
    """Cells under `COLUMNS`, None where unknown."""
    file, one = lesson.file, lesson.comparison
    joules = None if file.joules is None else f"{file.joules:.0f}"
    head = (file.file, file.steps, file.tokens, joules)
    if one is None:
        missing = "before it: `stoke evaluate base`" if lesson.pair.before is None else "in it or after it"
        return (*head, None, None, None, f"no evaluation {missing}")
    foreign = f", with {lesson.pair.foreign} steps of other files" if lesson.pair.foreign else ""
    exact = _interval(one.delta_exact, one.delta_exact_ci, 100, 1)
    nll = _interval(one.delta_nll_per_token, one.delta_nll_ci, 1, 4)
    return (*head, exact, nll, one.items, f"{one.verdict.value}{foreign}")


def _interval(value: float | None, ends: tuple[float, float] | None, unit: float, digits: int) -> str | None:
    if value is None:
        return None
    said = f"{unit * value:+.{digits}f}"
    return said if ends is None else f"{said} [{unit * ends[0]:+.{digits}f}, {unit * ends[1]:+.{digits}f}]"


def _one_engine(judged: Sequence[Evaluation]) -> list[Evaluation]:
    """The newest evaluation of each step, of those judged as the newest of all was."""
    newest = max(judged, key=lambda one: one.created, default=None)
    alike = [one for one in judged if newest is not None and one.how == newest.how]
    return list({one.step: one for one in alike}.values())


def _point(
    one: Evaluation,
    suite: str | None,
    names: dict[str, str],
    shared_exact: float | None = None,
    shared_nll: float | None = None,
) -> Point:
    results = [result for name, result in one.suites.items() if suite in (None, name)]

    def pooled(values: Sequence[tuple[float | None, int]]) -> float | None:
        read = [(value, n) for value, n in values if value is not None and n]
        total = sum(n for _, n in read)
        return sum(value * n for value, n in read) / total if total else None

    return Point(
        step=one.step or 0,
        ref=one.ref,
        version=names.get(one.weights_hash),
        n=sum(result.n for result in results),
        exact=pooled([(result.exact, result.n) for result in results]),
        nll=pooled([(result.nll_per_token, result.n) for result in results]),
        shared_exact=shared_exact,
        shared_nll=shared_nll,
    )


def _trend(steps: Sequence[float], values: Sequence[float | None], exact: bool) -> Trend:
    read = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    if not read:
        return Trend(Direction.INSUFFICIENT, 0, "no item was judged by all of them")
    x, y = zip(*read, strict=True)
    return trend(x, y, relative=not exact, rising=exact)
