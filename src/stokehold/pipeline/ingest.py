"""A file becomes a Dataset: every line parsed, checked and firewalled, a share held out, before anything is trained.

Nothing is tokenised here: what only tokens can tell is found out while training runs (`token_reports.py`). The lines
are read once and the accepted rows copied once; time grows with bytes, memory by two hashes and a number a line. The
folder `datasets/<id>/` holds the file as it came (`source.jsonl`), the rows to train, those held out and the rejected
lines. The file leaves the inbox only after that folder is published.
"""

import shutil
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import orjson

from stokehold.core.config import Config
from stokehold.core.errors import InputError
from stokehold.core.records import Dataset, Rejection, Sample
from stokehold.data.firewall import Firewall
from stokehold.data.formats import Parsed, from_row, parse_line
from stokehold.data.holdout import choose_holdout
from stokehold.data.lines import EXCERPT_CHARS, Line, read_lines
from stokehold.data.report import measure
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.pipeline.suites import open_suites
from stokehold.store.blobs import share
from stokehold.store.datasets import dataset_folder, list_datasets, load_dataset, save_dataset
from stokehold.store.failpoints import reach
from stokehold.store.files import MANIFEST, copy_file, utc_now, write_atomic
from stokehold.store.home import Home
from stokehold.tasks.registry import identity_of

INBOX_SUITE = "inbox"
DATASET_ID_CHARS = 16
SOURCE = "source.jsonl"
BLOCK_BYTES = 1024 * 1024
"""Rows are written and copied in pieces of this size."""


@dataclass
class _Parsed:
    """What the pass over the lines keeps: of an accepted row its prompt's hash and where it begins in
    `accepted.jsonl`, of the others their number and the first."""

    prompts: list[str] = field(default_factory=list)
    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    rejected: int = 0
    first_rejection: Rejection | None = None
    notes: dict[str, int] = field(default_factory=dict)
    resembling: int = 0


def ingest_file(home: Home, config: Config, tokenizer: ChatTokenizer, path: Path, content: str, name: str) -> Dataset:
    """The dataset of the file at `path` whose BLAKE3 is `content`; the one already there if it was published before.

    Raises InputError when no line is usable. With `strict` also when one line is not, and, since nobody wants to learn
    of a wrong mask from a model that was trained with it, when the mask is suspicious: only then is every row tokenised
    here, which takes as long as tokenising it for training.
    """
    dataset_id = content[:DATASET_ID_CHARS]
    scratch = home.datasets / f".ingest-{dataset_id}"
    shutil.rmtree(scratch, ignore_errors=True)
    if (dataset_folder(home, dataset_id) / MANIFEST).is_file():
        refresh_inbox_suite(home)  # a kill may have come between the dataset and the suite
        return load_dataset(home, dataset_id)
    scratch.mkdir()
    try:
        _take_source(home, path, content, scratch / SOURCE)
        reach("ingest.copied")
        parsed = _accept_rows(scratch, config, build_firewall(home), name)
        _refuse_unusable(parsed, config, name)
        held = choose_holdout(parsed.prompts, config.evaluation.holdout_share)
        _split(scratch, parsed.starts, held)
        reach("ingest.split")
        if config.data.strict:
            _refuse_suspicious_mask(scratch / "rows.jsonl", tokenizer, config, name)
        record = Dataset(
            id=dataset_id,
            content_hash=content,
            file=name,
            bytes=(scratch / SOURCE).stat().st_size,
            accepted=len(parsed.prompts),
            held_out=len(held),
            rejected=parsed.rejected,
            created=utc_now(),
            notes=_notes(parsed),
        )
        dataset = save_dataset(home, record, lambda folder: _move_files(scratch, folder), {SOURCE: content})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    refresh_inbox_suite(home)
    return dataset


def _take_source(home: Home, path: Path, content: str, target: Path) -> None:
    """A blob never changes, so it is shared; anybody else's file is copied, and is what it was when it was hashed."""
    if path.is_relative_to(home.blobs):
        share(path, target)
    elif copy_file(path, target) != content:
        raise InputError("the file changed while it was read", str(path), "try again when it is complete")


def refresh_inbox_suite(home: Home) -> None:
    """Remakes the suite `inbox` from the held-out rows of every dataset, oldest first."""
    parts = [dataset_folder(home, dataset.id) / "held_out.jsonl" for dataset in list_datasets(home)]
    rows = b"".join(part.read_bytes() for part in parts)
    if rows:
        write_atomic(home.suites / f"{INBOX_SUITE}.jsonl", rows)


def build_firewall(home: Home) -> Firewall:
    """Everything held out in this home's suites: prompts, task identities, and templates with their gold answers."""
    return Firewall.of((sample for suite in open_suites(home) for sample in suite.samples), identity_of)


def _refuse_unusable(parsed: _Parsed, config: Config, name: str) -> None:
    first = parsed.first_rejection
    if not parsed.prompts:
        raise InputError("no usable line", name, f"first problem: line {first.line}: {first.reason}" if first else "")
    if config.data.strict and first:
        raise InputError(first.reason, f"{name}, line {first.line}", "correct it, or set data.strict = false")


def _refuse_suspicious_mask(rows: Path, tokenizer: ChatTokenizer, config: Config, name: str) -> None:
    with rows.open("rb") as file:
        samples: Iterator[Sample] = (from_row(orjson.loads(line)) for line in file)
        _, warning = measure(samples, tokenizer, config.data.max_length)
    if warning:
        raise InputError(warning, name, "correct the rows, or set data.strict = false")


def _notes(parsed: _Parsed) -> tuple[str, ...]:
    """Conversions, and rows that look like held-out ones."""
    notes = [f"{note}: {count} rows" for note, count in sorted(parsed.notes.items())]
    if parsed.resembling:
        notes.append(f"{parsed.resembling} rows differ from held-out ones in numbers and names only")
    return tuple(notes)


def _move_files(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        path.rename(target / path.name)


def _accept_rows(folder: Path, config: Config, firewall: Firewall, name: str) -> _Parsed:
    parsed = _Parsed()
    seen: dict[str, int] = {}
    with _writing(folder / "accepted.jsonl") as accepted, _writing(folder / "rejected.jsonl") as rejected:
        place = 0
        for line in read_lines(folder / SOURCE, config.data.max_line_bytes):
            outcome = line if isinstance(line, Rejection) else _accept(line, name, firewall, parsed)
            if isinstance(outcome, Rejection):
                parsed.rejected += 1
                parsed.first_rejection = parsed.first_rejection or outcome
                rejected.write(orjson.dumps(outcome) + b"\n")
                continue
            parsed.starts.append(place)
            place += accepted.write(outcome.row(_unique(outcome.sample.id, seen)))
    return parsed


def _accept(line: Line, name: str, firewall: Firewall, parsed: _Parsed) -> Parsed | Rejection:
    """The row of this line, counted in `parsed`, or why there is none."""
    outcome = parse_line(line, name)
    if isinstance(outcome, Rejection):
        return outcome
    sample = outcome.sample
    if outcome.note:
        parsed.notes[outcome.note] = parsed.notes.get(outcome.note, 0) + 1
    found = firewall.examine(sample, identity_of(sample))
    if found.refusal is not None:
        return Rejection(line.number, found.refusal, sample.gold[:EXCERPT_CHARS])
    parsed.resembling += found.resembles
    parsed.prompts.append(found.question)
    return outcome


def _unique(row_id: str, seen: dict[str, int]) -> str:
    """Equal lines are kept, each under an id of its own."""
    count = seen[row_id] = seen.get(row_id, 0) + 1
    return row_id if count == 1 else f"{row_id}#{count}"


def _split(folder: Path, starts: Sequence[int], held: set[int]) -> None:
    """Moves the held-out rows apart; row numbers count accepted rows from 0, `starts` is where each begins."""
    with (
        (folder / "accepted.jsonl").open("rb") as accepted,
        _writing(folder / "rows.jsonl") as rows,
        _writing(folder / "held_out.jsonl") as held_out,
    ):
        for number in sorted(held):
            _copy(accepted, rows, starts[number])
            held_out.write(accepted.readline())
        _copy(accepted, rows, None)
    (folder / "accepted.jsonl").unlink()


def _copy(source: BinaryIO, target: BinaryIO, end: int | None) -> None:
    """Copies from where `source` stands to `end`, or to its own."""
    while chunk := source.read(BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - source.tell())):
        target.write(chunk)


def _writing(path: Path) -> BinaryIO:
    return path.open("wb", buffering=BLOCK_BYTES)
