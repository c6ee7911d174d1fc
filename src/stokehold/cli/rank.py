"""`stoke rank`: the base and every version in one order, with what is known of it."""

from dataclasses import asdict
from typing import Annotated

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption
from stokehold.cli.output import console, emit, table
from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.evaluation.evolution import readings_of
from stokehold.evaluation.paired import ItemReading
from stokehold.evaluation.ranking import Gap, Place, rank
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.judged.items import read_items
from stokehold.store.models.entrants import entrants

COLUMNS = ("rank", "95 %", "version", "exact", "95 %", "nats/token", "against the next")


def add_to(app: typer.Typer) -> None:
    app.command("rank")(rank_versions)


def rank_versions(
    suite: Annotated[str | None, typer.Option(help="One suite; default: every item that all were judged on.")] = None,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Ranks the base and all versions on the items that all of them answered; ties are ties."""
    home = Home.open(home_path)
    judged, left_out = entrants(home, connect(home), suite=suite)
    found: dict[str, list[ItemReading]] = {}
    for name, evaluation in judged.items():
        try:
            found[name] = readings_of(read_items(home, evaluation.id), suite)
        except (NotFoundError, IntegrityError) as gone:
            left_out[name] = gone.what
    if not found:
        said = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "there is no version"
        raise NotFoundError("nothing to rank", said, "`stoke evaluate base`, `stoke evaluate v1` …")
    ranking = rank(found)
    left_out |= dict.fromkeys(ranking.left_out, "judged on other items")
    if emit({**asdict(ranking), "left_out": left_out}, as_json):
        return
    measure = "exact match" if ranking.by == "exact" else "likelihood"
    console.print(
        f"{ranking.items} items that all of them answered, by {measure}; pairs tested: {ranking.pairs}, Holm\n"
    )
    table(COLUMNS, [_row(place) for place in ranking.places], "no item was answered by two of them")
    for name, why in left_out.items():
        console.print(f"left out: {name}, {why}")


def _row(place: Place) -> tuple[object, ...]:
    low, high = place.rank_ci
    ends = f"{low}-{high}" if low != high else str(low)
    exact = None if place.exact is None else f"{100 * place.exact:.1f} %"
    interval = f"[{100 * place.exact_ci[0]:.1f}, {100 * place.exact_ci[1]:.1f}]" if place.exact_ci else None
    nll = None if place.nll_per_token is None else f"{place.nll_per_token:.4f}"
    return place.rank, ends, place.name, exact, interval, nll, _gap(place.gap)


def _gap(gap: Gap | None) -> str | None:
    if gap is None:
        return None
    said = f"+{gap.ahead} -{gap.behind} items, p {gap.p_value:.2g}"
    if gap.apart:
        return said
    if gap.items_to_tell is None:
        return f"{said}: no difference seen"
    return f"{said}: not told apart, about {gap.items_to_tell:,} items would"
