"""Generated work and the compressed language: `generate`, `codec`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import orjson
import typer

from stokehold.cli.options import JsonOption
from stokehold.cli.output import console, emit
from stokehold.codec.codebook import Codebook, learn, tokens_saved
from stokehold.codec.domains import DOMAINS
from stokehold.codec.domains import canonical as canonical_form
from stokehold.codec.sexpr import CodecError, Tree, parse, render
from stokehold.core.errors import InputError, IntegrityError, UsageError
from stokehold.tasks.family import Split
from stokehold.tasks.registry import draw, row

group = typer.Typer(help="Writes expressions in one canonical form, and shorter by a codebook.", no_args_is_help=True)
SPLITS: dict[str, Split] = {"train": "train", "holdout": "holdout"}
FileArgument = Annotated[Path, typer.Argument(help="One expression per line.")]
CodebookArgument = Annotated[Path, typer.Argument(help="What `stoke codec learn` printed.")]
DomainArgument = Annotated[str, typer.Argument(help="arithmetic or syllogism.")]


def add_to(app: typer.Typer) -> None:
    app.command()(generate)
    app.add_typer(group, name="codec")


def generate(
    family: Annotated[str, typer.Argument(help="syllo, arithmetic, syllogism, deduction, sequence or primitives.")],
    level: Annotated[int, typer.Option(help="How hard they are.", min=1, max=10)] = 1,
    count: Annotated[int, typer.Option(help="How many problems.", min=0)] = 10,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal problems.")] = 0,
    split: Annotated[str, typer.Option(help="train, or holdout: problems that are never trained.")] = "train",
) -> None:
    """Problems with their answers, as JSONL on stdout."""
    if split not in SPLITS:
        raise UsageError("no such split", split, "train or holdout")
    for sample in draw(family, level, count, seed, SPLITS[split]):
        sys.stdout.buffer.write(orjson.dumps(row(sample)) + b"\n")
    sys.stdout.flush()


@group.command()
def canonical(domain: DomainArgument, file: FileArgument) -> None:
    """Prints each expression in the one canonical form of its domain."""
    if domain not in DOMAINS:
        raise UsageError("no such domain", domain, f"one of {', '.join(DOMAINS)}")
    _print_each(file, lambda line: canonical_form(domain, line))


@group.command("learn")
def learn_codebook(file: FileArgument, size: Annotated[int, typer.Option(help="Codes at most.", min=0)] = 256) -> None:
    """Learns a codebook on canonical expressions; prints it as JSON."""
    print(learn(_trees(file), size).to_json())


@group.command()
def encode(codebook: CodebookArgument, file: FileArgument) -> None:
    """Replaces frequent parts by their codes."""
    book = _book(codebook)
    _print_each(file, lambda line: book.encode(parse(line)))


@group.command()
def decode(codebook: CodebookArgument, file: FileArgument) -> None:
    """Gives back the expressions that `encode` was given."""
    book = _book(codebook)
    _print_each(file, lambda line: render(book.decode(line)))


@group.command()
def stats(codebook: CodebookArgument, file: FileArgument, as_json: JsonOption = False) -> None:
    """What share of a file's lexemes the codebook saves."""
    saving = tokens_saved(_book(codebook), _trees(file))
    if not emit({"plain": saving.plain, "encoded": saving.encoded, "share": saving.share}, as_json):
        console.print(f"{saving.plain} lexemes become {saving.encoded}")


def _print_each(file: Path, change: Callable[[str], str]) -> None:
    for number, line in _lines(file):
        with _naming(file, number):
            print(change(line))


def _trees(file: Path) -> Iterator[Tree]:
    for number, line in _lines(file):
        with _naming(file, number):
            tree = parse(line)
        yield tree


@contextmanager
def _naming(file: Path, number: int) -> Iterator[None]:
    """What is wrong with an expression, with its line."""
    try:
        yield
    except CodecError as error:
        place = ", ".join(filter(None, (f"{file}:{number}", error.where)))
        raise InputError(error.what, place, error.fix or "correct the expression") from error


def _book(path: Path) -> Codebook:
    try:
        return Codebook.from_json(_text(path))
    except IntegrityError as error:
        raise IntegrityError(error.what, str(path), error.fix or "`stoke codec learn` makes one") from error


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(_text(file).splitlines(), 1) if line.strip())


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputError("no such file", str(path), "check the path")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", f"{path}, byte {error.start}", "give a text file") from error
