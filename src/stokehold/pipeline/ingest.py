"""A file becomes a Dataset: every line parsed, checked and firewalled, a share held out, before anything is trained.

Two passes over the file, memory for one hash per line. The folder `datasets/<id>/` holds the file as it came
(`source.jsonl`), the rows to train, the held-out rows, the rejected lines and the token report. The file leaves the
inbox only after that folder is published.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import orjson

from stokehold.core.config import Config
from stokehold.core.errors import InputError
from stokehold.core.records import Dataset, Rejection, Sample, TokenReport
from stokehold.data.firewall import Firewall, question_hash
from stokehold.data.formats import from_row, parse_line, to_row
from stokehold.data.holdout import choose_holdout
from stokehold.data.lines import read_lines
from stokehold.data.report import mask_warning, rendered_example, token_report
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.pipeline.suites import open_suites
from stokehold.store.datasets import dataset_folder, list_datasets, load_dataset, save_dataset
from stokehold.store.failpoints import reach
from stokehold.store.files import MANIFEST, utc_now, write_atomic
from stokehold.store.home import Home
from stokehold.tasks.registry import identity_of

INBOX_SUITE = "inbox"
DATASET_ID_CHARS = 16
CHUNK_ROWS = 1024
EXAMPLES_SHOWN = 3


@dataclass
class _Parsed:
    """What the first pass keeps: per accepted row its prompt hash, and what was refused or converted."""

    prompts: list[str] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    conversations: int = 0
    resembling: int = 0


def ingest_file(home: Home, config: Config, tokenizer: ChatTokenizer, path: Path, content: str, name: str) -> Dataset:
    """The dataset of the file at `path` whose BLAKE3 is `content`; the one already there if it was published before.

    Raises InputError when no line is usable, or when `strict` is set and one is not.
    """
    dataset_id = content[:DATASET_ID_CHARS]
    scratch = home.datasets / f".ingest-{dataset_id}"
    shutil.rmtree(scratch, ignore_errors=True)
    if (dataset_folder(home, dataset_id) / MANIFEST).is_file():
        refresh_inbox_suite(home)  # a kill may have come between the dataset and the suite
        return load_dataset(home, dataset_id)
    scratch.mkdir()
    try:
        shutil.copyfile(path, scratch / "source.jsonl")
        reach("ingest.copied")
        parsed = _accept_rows(scratch, config, build_firewall(home), name)
        _refuse_unusable(parsed, config, name)
        held = choose_holdout(parsed.prompts, config.evaluation.holdout_share)
        _split(scratch, held)
        reach("ingest.split")
        report = measure(scratch / "rows.jsonl", tokenizer, config.data.max_length)
        (scratch / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
        record = Dataset(
            id=dataset_id,
            content_hash=content,
            file=name,
            bytes=path.stat().st_size,
            accepted=len(parsed.prompts),
            held_out=len(held),
            rejected=len(parsed.rejected),
            created=utc_now(),
            notes=_notes(scratch, tokenizer, parsed, report),
        )
        dataset = save_dataset(home, record, lambda folder: _move_files(scratch, folder))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    refresh_inbox_suite(home)
    return dataset


def measure(rows: Path, tokenizer: ChatTokenizer, max_length: int) -> TokenReport:
    """Length in tokens of every row's longest document, held in two integers a row.

    Rows that the chat template refuses are left out: training rejects them, with their number.
    """
    lengths: list[int] = []
    trained: list[int] = []
    with rows.open("rb") as file:
        while chunk := list(islice(file, CHUNK_ROWS)):
            for documents in tokenizer.encode_many([from_row(orjson.loads(line)) for line in chunk]):
                if not isinstance(documents, InputError):
                    lengths.append(max(len(document.ids) for document in documents))
                    trained.append(sum(int(document.trained.sum()) for document in documents))
    return token_report(lengths, trained, max_length)


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
    first = parsed.rejected[0] if parsed.rejected else None
    if not parsed.prompts:
        raise InputError("no usable line", name, f"first problem: line {first.line}: {first.reason}" if first else "")
    if config.data.strict and first:
        raise InputError(first.reason, f"{name}, line {first.line}", "correct it, or set data.strict = false")


def _notes(folder: Path, tokenizer: ChatTokenizer, parsed: _Parsed, report: TokenReport) -> tuple[str, ...]:
    """Conversions, rows that look like held-out ones, and an unusual mask with rendered examples to look at."""
    notes = [f"{note}: {count} rows" for note, count in sorted(parsed.notes.items())]
    if parsed.resembling:
        notes.append(f"{parsed.resembling} rows differ from held-out ones in numbers and names only")
    if warning := mask_warning(report.masked_share, plain_text=parsed.conversations == 0):
        with (folder / "rows.jsonl").open("rb") as rows:
            samples = [from_row(orjson.loads(line)) for line in islice(rows, EXAMPLES_SHOWN)]
        examples = "\n\n".join(rendered_example(tokenizer, sample) for sample in samples)
        (folder / "examples.txt").write_text(examples)
        notes.append(f"{warning}; see examples.txt in the dataset")
    return tuple(notes)


def _move_files(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        path.rename(target / path.name)


def _accept_rows(folder: Path, config: Config, firewall: Firewall, name: str) -> _Parsed:
    parsed = _Parsed()
    seen: dict[str, int] = {}
    with (folder / "accepted.jsonl").open("wb") as accepted, (folder / "rejected.jsonl").open("wb") as rejected:
        for outcome in _parse(folder / "source.jsonl", config, firewall, name, parsed):
            if isinstance(outcome, Rejection):
                parsed.rejected.append(outcome)
                rejected.write(orjson.dumps(outcome) + b"\n")
                continue
            sample = _unique(outcome, seen)
            parsed.conversations += bool(sample.messages)
            parsed.prompts.append(question_hash(sample))
            accepted.write(orjson.dumps(to_row(sample)) + b"\n")
    return parsed


def _parse(
    source: Path, config: Config, firewall: Firewall, name: str, parsed: _Parsed
) -> Iterator[Sample | Rejection]:
    for line in read_lines(source, config.data.max_line_bytes):
        outcome = line if isinstance(line, Rejection) else parse_line(line, name)
        if isinstance(outcome, Rejection):
            yield outcome
            continue
        if outcome.note:
            parsed.notes[outcome.note] = parsed.notes.get(outcome.note, 0) + 1
        identity = identity_of(outcome.sample)
        refusal = firewall.check(outcome.sample, identity)
        parsed.resembling += refusal is None and firewall.resembles(outcome.sample, identity)
        number = outcome.sample.provenance.line or 0
        yield Rejection(number, refusal, outcome.sample.gold[:80]) if refusal else outcome.sample


def _unique(sample: Sample, seen: dict[str, int]) -> Sample:
    """Equal lines are kept, each under an id of its own."""
    count = seen[sample.id] = seen.get(sample.id, 0) + 1
    return sample if count == 1 else replace(sample, id=f"{sample.id}#{count}")


def _split(folder: Path, held: set[int]) -> None:
    """Moves the held-out rows apart; row numbers count accepted rows from 0."""
    with (
        (folder / "accepted.jsonl").open("rb") as accepted,
        (folder / "rows.jsonl").open("wb") as rows,
        (folder / "held_out.jsonl").open("wb") as held_out,
    ):
        for number, line in enumerate(accepted):
            (held_out if number in held else rows).write(line)
    (folder / "accepted.jsonl").unlink()
