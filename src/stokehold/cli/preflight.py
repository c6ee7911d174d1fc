"""`stoke preflight`: what was looked at before a long run, with the fix under what is not as it should be."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stokehold.cli.options import HERE, HomeOption, JsonOption
from stokehold.cli.output import UNBOUNDED_COLUMNS, console, emit
from stokehold.core.errors import StokeholdError
from stokehold.data.tokenizer import load_tokenizer
from stokehold.store.home import Home
from stokehold.supervisor.checks import Check, Mark, bad, good
from stokehold.supervisor.preflight import Part, run

STYLES = {Mark.GOOD: "green", Mark.LOOK: "yellow", Mark.BAD: "bold red"}
WIDEST = 100
"""Columns of the table on a wide terminal: longer lines are hard to read."""


def add_to(app: typer.Typer) -> None:
    app.command()(preflight)


def preflight(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Everything worth checking before a long run; exit 1 on ✗."""
    home = Home.open(home_path)
    parts = [_with_tokenizer(home, part) if part.name == "model" else part for part in run(home)]
    if not emit([{"part": part.name, **asdict(check)} for part in parts for check in part.checks], as_json):
        _show(home, parts)
    if any(check.mark is Mark.BAD for part in parts for check in part.checks):
        raise SystemExit(1)


def _with_tokenizer(home: Home, part: Part) -> Part:
    """The base model's tokenizer, read as training reads it, beside the base model; not of one that is damaged."""
    first, *rest = part.checks
    if first.mark is Mark.BAD:
        return part
    return Part(part.name, (first, tokenizer(home), *rest))


def tokenizer(home: Home) -> Check:
    """It reads, and knows how a conversation is written and where an answer ends."""
    try:
        found = load_tokenizer(home.root / home.config().model.base)
    except StokeholdError as error:
        return bad("tokenizer", error.what, error.fix or "restore base/ from a backup")
    if not found.stop_ids:
        return bad("tokenizer", "names no token that ends an answer", "set eos_token in its tokenizer_config.json")
    return good("tokenizer", f"{found.size:,} tokens, with a chat template")


def _show(home: Home, parts: Sequence[Part]) -> None:
    """One row a check; what to do stands under what was found."""
    drawn = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for column in ("mark", "what"):
        drawn.add_column(column, no_wrap=True)
    drawn.add_column("found", overflow="fold")
    for part in parts:
        drawn.add_row("", Text(part.name, "dim"), "")
        for check in part.checks:
            drawn.add_row(Text(check.mark, STYLES[check.mark]), Text(check.what, "bold"), _found(check))
    width = min(WIDEST, console.width) if console.is_terminal else UNBOUNDED_COLUMNS
    console.print(f"{home.root}")
    Console(highlight=False, markup=False, emoji=False, width=width).print(drawn)
    console.print(_summary(parts))


def _found(check: Check) -> Text:
    text = Text(check.found)
    if check.fix:
        text.append(f"\n→ {check.fix}", STYLES[check.mark])
    return text


def _summary(parts: Sequence[Part]) -> Text:
    counts = Counter(check.mark for part in parts for check in part.checks)
    if counts[Mark.BAD]:
        return Text(f"{counts[Mark.BAD]} ✗ in the way of a long run, {counts[Mark.LOOK]} ⚠", STYLES[Mark.BAD])
    if counts[Mark.LOOK]:
        return Text(f"ready, with {counts[Mark.LOOK]} ⚠ to look at", STYLES[Mark.LOOK])
    return Text("ready", STYLES[Mark.GOOD])
