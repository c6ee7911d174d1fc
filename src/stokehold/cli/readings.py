"""`stoke readings`: what stored answers say of a model, on one screen; no model is loaded."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import orjson
import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption
from stokehold.cli.output import console, emit, share, table, when
from stokehold.store.home import Home
from stokehold.supervisor.processes import worker_environment

MODULE = "stokehold.pipeline.readings"

SHOWN = 5
"""Rows of long lists; --json has them all."""

Reading = Mapping[str, Any]


def add_to(app: typer.Typer) -> None:
    app.command()(readings)


def readings(
    ref: Annotated[
        str | None,
        typer.Argument(help="latest, champion, base, v0007, step:1200, or an evaluation's id; default: the newest."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="One of these; may be repeated.")] = None,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Reads stored answers anew: curriculum, mining, regression, comparison, calibration, correction."""
    home = Home.open(home_path)
    arguments = [*([ref] if ref else []), *(part for name in only or [] for part in ("--only", name))]
    command = [sys.executable, "-m", MODULE, "--home", str(home.root), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=worker_environment(home.config()), check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    found = orjson.loads(done.stdout)
    if not emit(found, as_json):
        show(found)


def show(found: Mapping[str, Any]) -> None:
    """Everything on a screen for people."""
    console.print(f"{found['ref']}, evaluation {found['evaluation']}, judged {when(found['created'])} UTC")
    for name, reading in found["readings"].items():
        console.print(f"\n{name.upper()}" + ("" if reading["state"] == "ok" else f"  {reading['state']}"))
        if reading["state"] == "ok":
            SCREENS[name](reading)
        else:
            console.print(f"  {reading['reason']}")


def _curriculum(reading: Reading) -> None:
    mix, mixed = reading["mix"], reading["mix_of"]
    rows = [
        (
            kind["family"],
            kind["level"],
            kind["n"],
            share(kind["exact"]),
            _interval(kind["exact_ci"]),
            _number(kind["nll_per_token"]),
            share(mix.get(str(kind["level"])) if kind["family"] == mixed else None),
        )
        for kind in reading["kinds"]
    ]
    table(("family", "level", "items", "exact", "95 %", "nats/token", "next mix"), rows)
    seen = {str(kind["level"]) for kind in reading["kinds"] if kind["family"] == mixed}
    if others := [f"level {level}: {share(part)}" for level, part in mix.items() if level not in seen and part]:
        console.print(f"not judged, but next, of {mixed}: {', '.join(others)}")


def _mining(reading: Reading) -> None:
    below = reading["threshold"]
    doubtful = f"{reading['unsure']} right with less than {below:g}" if below else "right ones are not mined"
    kinds = ", ".join(f"{k['family'] or 'own'} {_level(k['level'])}: {k['items']}" for k in reading["kinds"])
    console.print(f"{reading['wrong']} wrong, {doubtful}" + (f"; {kinds}" if kinds else ""))
    for name, title in (("surest_wrong", "surest of the wrong"), ("least_sure_right", "least sure of the right")):
        named = [f"{row['item']} ({_number(row['confidence'], 3)})" for row in reading[name][:SHOWN]]
        console.print(f"{title}, by {reading['signal']}: {', '.join(named) or 'none'}")


def _regression(reading: Reading) -> None:
    rows = [
        (
            ", ".join(one["parts"]),
            one["ref"],
            one["items"],
            f"+{one['gained']}",
            f"-{one['lost']}",
            _signed(one["comparison"]["delta_nll_per_token"]),
            one["comparison"]["verdict"],
            ", ".join(f"{kind} {count}" for kind, count in one["lost_kinds"].items()) or None,
        )
        for one in reading["against"]
    ]
    heads = ("against", "is", "items", "gained", "lost", "nats/token", "verdict", "lost by")
    table(heads, rows, "no earlier weights")
    for one in reading["against"][:1]:
        cells = [c for c in one["cells"] if c["gained"] or c["lost"]]
        told = [f"{c['suite']} {_level(c['level'])} +{c['gained']} -{c['lost']}" for c in cells]
        console.print(f"against {one['parts'][0]}: {'; '.join(told) or 'the same items are right'}")
        if one["lost_items"]:
            console.print(f"lost: {_listed(one['lost_items'], one['lost'])}")
    forgot, lost, unstable = reading["forgetting"], reading["lost_in_a_row"], reading["unstable"]
    forgetting = _number(forgot["score"], 3) or "-"
    console.print(
        f"over {reading['evaluations']} evaluations: forgetting {forgetting} on {forgot['items']} items; "
        f"right once, wrong {lost['in_a_row']} times in a row: {lost['count']}; "
        f"unstable: {unstable['count']} of {unstable['followed']}"
    )
    if lost["items"]:
        console.print(f"wrong {lost['in_a_row']} times: {_listed(lost['items'], lost['count'])}")
    if unstable["items"]:
        named = [f"{row['item']} ({row['flips']} flips)" for row in unstable["items"]]
        console.print(f"unstable: {_listed(named, unstable['count'])}")


def _comparison(reading: Reading) -> None:
    rows = [
        (
            place["rank"],
            "-".join(map(str, dict.fromkeys(place["rank_ci"]))),
            place["name"] + (" <" if place["name"] == reading["present"] else ""),
            share(place["exact"]),
            _interval(place["exact_ci"]),
            _number(place["nll_per_token"]),
        )
        for place in reading["places"]
    ]
    table(("rank", "95 %", "weights", "exact", "95 %", "nats/token"), rows)
    console.print(f"{reading['items']} items that all of them answered; `stoke rank` has every version")


def _calibration(reading: Reading) -> None:
    every = {"all": reading["pooled"], **reading["suites"]}
    rows = [
        (
            name,
            one["n"],
            share(one["confidence"]),
            share(one["accuracy"]),
            _number(one["ece"], 3),
            _number(one["ece_equal_mass"], 3),
            _number(one["smooth_ece"], 3),
            _number(one["brier"] and one["brier"]["score"], 3),
            _number(one["temperature"] and one["temperature"]["value"], 2),
        )
        for name, one in (every.items() if len(reading["suites"]) > 1 else reading["suites"].items())
    ]
    heads = ("suite", "items", "confidence", "right", "ECE", "equal mass", "smooth", "Brier", "temperature")
    table(heads, rows)
    console.print(f"confidence is {reading['signal']}")


def _correction(reading: Reading) -> None:
    rows = [
        (
            one["family"] or "own",
            one["level"],
            one["kind"],
            one["now"],
            share(one["before_share"]),
            share(one["now_share"]),
            one["moved"],
            _number(one["p_value"], 3),
            one["verdict"] or "new",
        )
        for one in reading["patterns"]
    ]
    heads = ("family", "level", "error", "now", "share at first", "share now", "moved", "p", "verdict")
    table(heads, rows, "no answer was wrong")


SCREENS: Mapping[str, Callable[[Reading], None]] = {
    "curriculum": _curriculum,
    "mining": _mining,
    "regression": _regression,
    "comparison": _comparison,
    "calibration": _calibration,
    "correction": _correction,
}


def _listed(names: list[str], count: int) -> str:
    more = f" and {count - SHOWN} more" if count > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _level(level: object) -> str:
    return "without a level" if level is None else f"level {level}"


def _interval(ends: list[float] | None) -> str | None:
    return None if ends is None else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def _signed(value: float | None) -> str | None:
    return None if value is None else f"{value:+.4f}"


def _number(value: float | None, digits: int = 4) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
