"""A dataset's token report, finished while it trains from the windows that training tokenises anyway.

Ingest publishes a dataset before anything is tokenised. Training tells the counts of each window of the first epoch as
it begins it; when the last has come, the report over all rows is written, and a suspicious mask becomes an event with
rendered examples. A kill loses nothing: what was counted is in the database.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import orjson

from stokehold.core.errors import InputError
from stokehold.core.records import Dataset, Sample, WindowTokens
from stokehold.core.shares import percent
from stokehold.data.formats import from_row
from stokehold.data.report import EXAMPLES, count_tokens, rendered_example, summarise
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.store.datasets import dataset_folder
from stokehold.store.db import events, token_reports
from stokehold.store.db.database import Database
from stokehold.store.db.token_reports import Reported
from stokehold.store.home import Home


def token_counter(
    home: Home, db: Database, tokenizer: ChatTokenizer, dataset: Dataset, max_length: int
) -> Callable[[WindowTokens], None] | None:
    """What `Batches` tells the counts of this dataset's windows; None where its report is there already.

    One commit a window. Windows that were counted nowhere (the database was taken back) are tokenised with the last.
    """
    if token_reports.load(db, dataset.id) is not None:
        return None
    rows = dataset.accepted - dataset.held_out

    def count(tokens: WindowTokens) -> None:
        token_reports.add_window(db, dataset.id, tokens)
        wanted = range(-(-rows // tokens.window_rows))
        if tokens.window == wanted[-1]:
            for missing in sorted(set(wanted) - token_reports.known_windows(db, dataset.id, tokens.window_rows)):
                samples = list(_rows(home, dataset, missing * tokens.window_rows, tokens.window_rows))
                found = count_tokens(samples, tokenizer.encode_many(samples), tokens.window_rows, missing)
                token_reports.add_window(db, dataset.id, found)
            finish_report(home, db, tokenizer, dataset, tokens.window_rows, max_length)

    return count


def finish_report(
    home: Home, db: Database, tokenizer: ChatTokenizer, dataset: Dataset, window_rows: int, max_length: int
) -> None:
    """Writes the report from the windows counted. A file without a token to train has none: training says why."""
    try:
        report, warning = summarise(token_reports.windows(db, dataset.id, window_rows), max_length)
    except InputError:
        return
    examples = tuple(rendered_examples(_rows(home, dataset, 0, EXAMPLES), tokenizer)) if warning else ()
    token_reports.save(db, dataset.id, Reported(report, warning, examples))
    if warning:
        events.record(db, "mask_warning", f"{dataset.file}: {warning}", dataset=dataset.id, examples=list(examples))
    if report.truncated_share:
        lost = f"{percent(report.truncated_share)} of rows are longer than max_length {max_length} and are not trained"
        hint = f"max_length {report.suggested_max_length} would do"
        events.record(db, "token_report", f"{dataset.file}: {lost}; {hint}", dataset=dataset.id)


def rendered_examples(samples: Iterator[Sample], tokenizer: ChatTokenizer) -> Iterator[str]:
    """Each row as the model reads it; of one that the template refuses, why."""
    for sample in samples:
        try:
            yield rendered_example(tokenizer, sample)
        except InputError as error:
            yield str(error)


def _rows(home: Home, dataset: Dataset, start: int, count: int) -> Iterator[Sample]:
    """`count` rows of the dataset from row number `start`."""
    with (dataset_folder(home, dataset.id) / "rows.jsonl").open("rb") as file:
        for line in islice(file, start, start + count):
            yield from_row(orjson.loads(line))
