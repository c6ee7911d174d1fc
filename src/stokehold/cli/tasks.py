"""Generated work and the compressed language: `generate`, `codec`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import orjson
import typer

from stokehold.cli.options import JsonOption
from stokehold.cli.output import console, emit
from stokehold.codec.codebook import Codebook, learn, tokens_saved
from stokehold.codec.domains import canonical as canonical_form
from stokehold.codec.sexpr import parse, render
from stokehold.core.errors import UsageError
from stokehold.tasks.family import Split
from stokehold.tasks.registry import draw, row

group = typer.Typer(help="The compressed canonical language.", no_args_is_help=True)
SPLITS: dict[str, Split] = {"train": "train", "holdout": "holdout"}
FileArgument = Annotated[Path, typer.Argument(help="One expression per line.")]


def add_to(app: typer.Typer) -> None:
    app.command()(generate)
    app.add_typer(group, name="codec")


def generate(
    family: Annotated[str, typer.Argument(help="syllo, arithmetic, syllogism, deduction, sequence or primitives.")],
    level: Annotated[int, typer.Option(help="1 to 10.")] = 1,
    count: Annotated[int, typer.Option(help="How many problems.")] = 10,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal problems.")] = 0,
    split: Annotated[str, typer.Option(help="train or holdout.")] = "train",
) -> None:
    """Problems with their answers, as JSONL on stdout."""
    if split not in SPLITS:
        raise UsageError("no such split", split, "train or holdout")
    for sample in draw(family, level, count, seed, SPLITS[split]):
        sys.stdout.buffer.write(orjson.dumps(row(sample)) + b"\n")
    sys.stdout.flush()


@group.command()
def canonical(domain: str, file: FileArgument) -> None:
    """Prints each expression in the one canonical form of its domain (arithmetic or syllogism)."""
    for line in _lines(file):
        print(canonical_form(domain, line))


@group.command("learn")
def learn_codebook(file: FileArgument, size: Annotated[int, typer.Option(help="Most codes.")] = 256) -> None:
    """Learns a codebook on canonical expressions; prints it as JSON."""
    print(learn(map(parse, _lines(file)), size).to_json())


@group.command()
def encode(codebook: Path, file: FileArgument) -> None:
    """Replaces frequent parts by their codes."""
    book = Codebook.from_json(codebook.read_text())
    for line in _lines(file):
        print(book.encode(parse(line)))


@group.command()
def decode(codebook: Path, file: FileArgument) -> None:
    """Gives back the expressions that `encode` was given."""
    book = Codebook.from_json(codebook.read_text())
    for line in _lines(file):
        print(render(book.decode(line)))


@group.command()
def stats(codebook: Path, file: FileArgument, as_json: JsonOption = False) -> None:
    """Lexemes that the codebook saves on a file."""
    saving = tokens_saved(Codebook.from_json(codebook.read_text()), map(parse, _lines(file)))
    if not emit({"plain": saving.plain, "encoded": saving.encoded, "share": saving.share}, as_json):
        console.print(f"{saving.plain} lexemes become {saving.encoded}")


def _lines(file: Path) -> Iterator[str]:
    return (line for line in file.read_text("utf-8").splitlines() if line.strip())
