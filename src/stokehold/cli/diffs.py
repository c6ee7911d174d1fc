"""`stoke versions diff`: what lies between two versions, as a person reads it."""

from typing import Any

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption, RefArgument
from stokehold.cli.output import console, emit, share, table
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.models import diffs
from stokehold.store.models.references import resolve

SHOWN_VALUE_CHARS = 40
SHOWN_TENSORS = 8


def add_to(group: typer.Typer) -> None:
    group.command("diff")(diff)


def diff(a: RefArgument, b: RefArgument, home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """What changed from A to B: weights by layer, settings, data, evaluation."""
    home = Home.open(home_path)
    db = connect(home)
    found = diffs.diff(home, db, resolve(home, db, a), resolve(home, db, b))
    if not emit(found, as_json):
        _print(found)


def _print(found: diffs.Difference) -> None:
    console.print(f"from {found.a} (step {_known(found.steps[0])}) to {found.b} (step {_known(found.steps[1])})")
    console.print("\nweights" + (": the same" if found.weights.same else ""))
    if not found.weights.same:
        groups = [
            (g.name, _scientific(g.relative), _scientific(g.largest), f"{g.changed}/{g.tensors}")
            for g in found.weights.groups
        ]
        table(("layer", "relative change", "largest", "tensors changed"), groups, "no tensor in both")
    for title, names in (
        (f"only in {found.a}", found.weights.only_a),
        (f"only in {found.b}", found.weights.only_b),
        ("of another shape or type", found.weights.reshaped),
    ):
        if names:
            more = f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else ""
            console.print(f"  {title}: {', '.join(names[:SHOWN_TENSORS])}{more}")
    console.print("\nsettings")
    table(("key", found.a, found.b), [(s.key, _cut(s.a), _cut(s.b)) for s in found.settings], "the same")
    console.print("\ndata")
    rows = [
        (d["file"] or d["dataset"], d["rows"], found.a if side == "only_a" else found.b)
        for side, listed in found.datasets.items()
        for d in listed
    ]
    table(("file", "rows", "only in"), rows, "the same")
    console.print("\nevaluation" + ("" if found.comparable is not False else ", not made alike: do not compare"))
    readings = [(r.suite, share(r.exact_a), share(r.exact_b), _nll(r.nll_a), _nll(r.nll_b)) for r in found.evaluation]
    heads = ("suite", f"exact {found.a}", f"exact {found.b}", f"nats {found.a}", f"nats {found.b}")
    table(heads, readings, "neither was judged")


def _known(step: int | None) -> str:
    return "-" if step is None else str(step)


def _scientific(value: float | None) -> str | None:
    return None if value is None else f"{value:.2e}"


def _nll(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _cut(value: Any) -> str | None:
    text = None if value is None else str(value)
    return text if text is None or len(text) <= SHOWN_VALUE_CHARS else text[: SHOWN_VALUE_CHARS - 1] + "…"
