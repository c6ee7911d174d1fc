"""A file becomes a Dataset: every line parsed, checked and firewalled, a share held out, before anything is trained.

Nothing is tokenised here: what only tokens can tell is found out while training runs (`token_reports.py`). The lines
are read once, on every core (`accept.py`), and the accepted rows copied once; time grows with bytes, memory by two
hashes and a number a line. The folder `datasets/<id>/` holds the file as it came (`source.jsonl`), the rows to train,
those held out and the rejected lines. The file leaves the inbox only after that folder is published.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import orjson

from stokehold.core.config import Config
from stokehold.core.errors import InputError
from stokehold.core.records import Dataset, Sample
from stokehold.data.firewall import Firewall
from stokehold.data.formats import from_row
from stokehold.data.holdout import choose_holdout
from stokehold.data.report import measure
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.pipeline.accept import BLOCK_BYTES, Accepted, Rules, accept_file, part_path
from stokehold.pipeline.suites import held_out
from stokehold.store.blobs import share
from stokehold.store.datasets import dataset_folder, list_datasets, load_dataset, save_dataset
from stokehold.store.failpoints import reach
from stokehold.store.files import MANIFEST, utc_now, write_atomic
from stokehold.store.home import Home
from stokehold.tasks.registry import identity_of

INBOX_SUITE = "inbox"
DATASET_ID_CHARS = 16
SOURCE = "source.jsonl"
ACCEPTED, REJECTED = "accepted.jsonl", "rejected.jsonl"


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
        parts = _accept_rows(scratch, Rules(name, config.data.max_line_bytes, build_firewall(home)))
        _refuse_unusable(parts, config, name)
        prompts = [prompt for part in parts for prompt in part.prompts]
        held = choose_holdout(prompts, config.evaluation.holdout_share)
        _split(scratch, parts, held)
        reach("ingest.split")
        if config.data.strict:
            _refuse_suspicious_mask(scratch / "rows.jsonl", tokenizer, config, name)
        record = Dataset(
            id=dataset_id,
            content_hash=content,
            file=name,
            bytes=(scratch / SOURCE).stat().st_size,
            accepted=len(prompts),
            held_out=len(held),
            rejected=sum(part.rejected for part in parts),
            created=utc_now(),
            notes=_notes(parts),
        )
        dataset = save_dataset(home, record, lambda folder: _move_files(scratch, folder), {SOURCE: content})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    refresh_inbox_suite(home)
    return dataset


def _take_source(home: Home, path: Path, content: str, target: Path) -> None:
    """A blob never changes, so it is shared; anybody else's file is copied, and is what it was when it was hashed."""
    if path.is_relative_to(home.blobs):
        share(path, target, home.disk)
    elif home.disk.copy(path, target) != content:
        raise InputError("the file changed while it was read", str(path), "try again when it is complete")


def refresh_inbox_suite(home: Home) -> None:
    """Remakes the suite `inbox` from the held-out rows of every dataset, oldest first."""
    parts = [dataset_folder(home, dataset.id) / "held_out.jsonl" for dataset in list_datasets(home)]
    rows = b"".join(part.read_bytes() for part in parts)
    if rows:
        write_atomic(home.suites / f"{INBOX_SUITE}.jsonl", rows)


def build_firewall(home: Home) -> Firewall:
    """Everything held out in this home's suites: prompts, task identities, and templates with their gold answers."""
    return Firewall.of(held_out(home), identity_of)


def _refuse_unusable(parts: Sequence[Accepted], config: Config, name: str) -> None:
    first = next((part.first_rejection for part in parts if part.first_rejection), None)
    if not any(part.ids for part in parts):
        raise InputError("no usable line", name, f"first problem: line {first.line}: {first.reason}" if first else "")
    if config.data.strict and first:
        raise InputError(first.reason, f"{name}, line {first.line}", "correct it, or set data.strict = false")


def _refuse_suspicious_mask(rows: Path, tokenizer: ChatTokenizer, config: Config, name: str) -> None:
    with rows.open("rb") as file:
        samples: Iterator[Sample] = (from_row(orjson.loads(line)) for line in file)
        _, warning = measure(samples, tokenizer, config.data.max_length)
    if warning:
        raise InputError(warning, name, "correct the rows, or set data.strict = false")


def _notes(parts: Sequence[Accepted]) -> tuple[str, ...]:
    """Conversions, and rows that look like held-out ones."""
    counts = sum((Counter(part.notes) for part in parts), Counter[str]())
    notes = [f"{note}: {count} rows" for note, count in sorted(counts.items())]
    if resembling := sum(part.resembling for part in parts):
        notes.append(f"{resembling} rows differ from held-out ones in numbers and names only")
    return tuple(notes)


def _move_files(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        path.rename(target / path.name)


def _accept_rows(folder: Path, rules: Rules) -> list[Accepted]:
    parts = accept_file(folder / SOURCE, folder / ACCEPTED, folder / REJECTED, rules)
    with _writing(folder / REJECTED) as rejected:
        for number in range(len(parts)):
            with (part := part_path(folder / REJECTED, number)).open("rb") as file:
                _copy(file, rejected, None)
            part.unlink()
    return parts


def _split(folder: Path, parts: Sequence[Accepted], held: set[int]) -> None:
    """Joins the parts, puts the held-out rows apart and gives equal rows ids of their own; rows count from 0."""
    seen: dict[str, int] = {}
    first = 0
    with _writing(folder / "rows.jsonl") as rows, _writing(folder / "held_out.jsonl") as held_out:
        for number, part in enumerate(parts):
            suffixes = _suffixes(part.ids, seen)
            wanted = {row - first for row in held if 0 <= row - first < len(part.ids)}
            with (path := part_path(folder / ACCEPTED, number)).open("rb") as accepted:
                for row in sorted(wanted | suffixes.keys()):
                    _copy(accepted, rows, part.starts[row])
                    line = accepted.readline()
                    if row in suffixes:
                        line = line.replace(part.ids[row].encode(), part.ids[row].encode() + suffixes[row], 1)
                    (held_out if row in wanted else rows).write(line)
                _copy(accepted, rows, None)
            path.unlink()
            first += len(part.ids)


def _suffixes(ids: Sequence[str], seen: dict[str, int]) -> dict[int, bytes]:
    """What makes the ids of rows that came before, counted in `seen`, their own."""
    suffixes = {}
    for row, row_id in enumerate(ids):
        count = seen[row_id] = seen.get(row_id, 0) + 1
        if count > 1:
            suffixes[row] = b"#%d" % count
    return suffixes


def _copy(source: BinaryIO, target: BinaryIO, end: int | None) -> None:
    """Copies from where `source` stands to `end`, or to its own."""
    while chunk := source.read(BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - source.tell())):
        target.write(chunk)


def _writing(path: Path) -> BinaryIO:
    return path.open("wb", buffering=BLOCK_BYTES)
