"""Rows to packed batches, and the cursor that makes a killed run go on as if nothing had happened.

The file is read in windows of consecutive rows. Inside a window the order of rows and of bins follows from seed,
epoch, window and the rows that are left, and from nothing else; so a resumed run, which knows only which rows of the
window are done, makes exactly the batches that an uninterrupted one would (see packing.py for the law). At most two
windows are in memory: the one being trained and the next, which a thread tokenises meanwhile.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import orjson
from blake3 import blake3
from numpy.typing import NDArray

from stokehold.core.errors import InputError
from stokehold.core.identity import short_id
from stokehold.core.records import Rejection, Sample, WindowTokens
from stokehold.data.formats import from_row
from stokehold.data.lines import EXCERPT_CHARS
from stokehold.data.packing import pack
from stokehold.data.report import count_tokens
from stokehold.data.tokenizer import ChatTokenizer, Document


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where training stands in a file: `done` are the row numbers of this epoch's window already trained, ascending.

    `window_rows` is the window size that the numbers refer to, None before the first batch.
    """

    epoch: int
    window: int
    done: tuple[int, ...] = ()
    window_rows: int | None = None

    @classmethod
    def start(cls) -> "Cursor":
        return cls(0, 0)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "done": list(self.done)}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Cursor":
        return cls(tree["epoch"], tree["window"], tuple(tree["done"]), tree["window_rows"])


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Documents one after another, N tokens in all; `trained[i]` says that token i is a target.

    `positions` count from 0 in each document; `lengths` are the documents' tokens in order, their sum N; `cursor` is
    the state after this batch; `examples` counts rows; `fingerprint` is the short hash of `row_ids` in order.
    """

    ids: NDArray[np.int64]
    trained: NDArray[np.bool_]
    positions: NDArray[np.int64]
    lengths: tuple[int, ...]
    row_ids: tuple[str, ...]
    examples: int
    cursor: Cursor
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Row:
    """One tokenised row. `number` counts from 0 in its window; `tokens` are those of all its documents."""

    number: int
    id: str
    documents: tuple[Document, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class _Window:
    """The usable rows of one window. `empty` means that the file ends before it."""

    epoch: int
    number: int
    rows: tuple[_Row, ...]
    rejected: tuple[Rejection, ...]
    empty: bool
    tokens: WindowTokens | None


class Batches:
    """Iterates over the batches of `rows_path` that follow `cursor`, `epochs` times over the file.

    A row is rejected when a document of it is longer than `max_length`, when its documents together exceed both
    `max_length` and `capacity`, when nothing in it is trained, or when the chat template refuses it. `rejected` grows
    as windows are begun, each row once. A row longer than `capacity` is a batch of its own. A file that was begun with
    another `window_rows` is finished with that one. Use as a context manager, or call `close` when done.
    """

    def __init__(
        self,
        rows_path: Path,
        tokenizer: ChatTokenizer,
        *,
        window_rows: int,
        capacity: int,
        max_length: int,
        seed: int,
        epochs: int,
        cursor: Cursor,
        ahead: bool = True,
        counted: Callable[[WindowTokens], None] | None = None,
    ) -> None:
        """`capacity` and `max_length` in tokens; `ahead` tokenises the next window on a thread, with equal results.

        `counted` is told the tokens of every window of the first epoch as it is begun, on the caller's thread.
        """
        self._counted = counted
        self.rejected: list[Rejection] = []
        self._path, self._tokenizer = rows_path, tokenizer
        self._window_rows = cursor.window_rows or window_rows
        self._capacity, self._max_length = capacity, max_length
        self._seed, self._epochs, self._cursor = seed, epochs, cursor
        self._offsets = [0]
        self._refused: set[int] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenise") if ahead else None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread; iterators of this object are then finished with."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        done = frozenset(self._cursor.done)
        for window in self._windows():
            self._record(window)
            yield from self._batches_of(window, done)
            done = frozenset()

    def _windows(self) -> Iterator[_Window]:
        """Windows from the cursor to the end of the last epoch, one prepared while the one before is used."""
        place = (self._cursor.epoch, self._cursor.window)
        coming = self._prepare(*place) if place[0] < self._epochs else None
        while coming is not None:
            window = coming.result()
            place = (place[0] + 1, 0) if window.empty else (place[0], place[1] + 1)
            coming = self._prepare(*place) if place[0] < self._epochs else None
            if not window.empty:
                yield window

    def _prepare(self, epoch: int, number: int) -> "Future[_Window]":
        if self._thread is not None:
            return self._thread.submit(self._load, epoch, number)
        future: Future[_Window] = Future()
        future.set_result(self._load(epoch, number))
        return future

    def _load(self, epoch: int, number: int) -> _Window:
        samples = self._read(number)
        outcomes = self._tokenizer.encode_many(samples)
        rows, rejected = [], []
        for place, (sample, outcome) in enumerate(zip(samples, outcomes, strict=True)):
            row = self._admit(place, sample, outcome)
            if isinstance(row, _Row):
                rows.append(row)
            else:
                line = sample.provenance.line or number * self._window_rows + place + 1
                rejected.append(Rejection(line, row, _excerpt(sample)))
        wanted = self._counted is not None and epoch == 0 and samples
        tokens = count_tokens(samples, outcomes, self._window_rows, number) if wanted else None
        return _Window(epoch, number, tuple(rows), tuple(rejected), empty=not samples, tokens=tokens)

    def _read(self, number: int) -> list[Sample]:
        """The rows of window `number`; the place where each window begins is remembered."""
        with self._path.open("rb") as file:
            while len(self._offsets) <= number:
                file.seek(self._offsets[-1])
                for _ in islice(file, self._window_rows):
                    pass
                self._offsets.append(file.tell())
            file.seek(self._offsets[number])
            lines = list(islice(file, self._window_rows))
            if len(self._offsets) == number + 1:
                self._offsets.append(file.tell())
        return [from_row(orjson.loads(line)) for line in lines]

    def _admit(self, number: int, sample: Sample, outcome: list[Document] | InputError) -> _Row | str:
        """The row, or why it is rejected."""
        if isinstance(outcome, InputError):
            return outcome.what
        longest = max(len(document.ids) for document in outcome)
        together = sum(len(document.ids) for document in outcome)
        if longest > self._max_length:
            return f"{longest} tokens, more than max_length {self._max_length}"
        if together > max(self._max_length, self._capacity):
            return f"{together} tokens in {len(outcome)} documents, one per answer, do not fit one batch"
        if not any(document.trained.any() for document in outcome):
            return "no token to train"
        return _Row(number, sample.id, tuple(outcome), together)

    def _record(self, window: _Window) -> None:
        if self._counted is not None and window.tokens is not None:
            self._counted(window.tokens)
        self.rejected += [one for one in window.rejected if one.line not in self._refused]
        self._refused.update(one.line for one in window.rejected)

    def _batches_of(self, window: _Window, done: frozenset[int]) -> Iterator[Batch]:
        rows_at, bins_at = self._order(window.epoch, window.number)
        left = sorted((row for row in window.rows if row.number not in done), key=lambda row: rows_at[row.number])
        bins = pack([row.tokens for row in left], self._capacity)
        # A bin is placed by its first row, which it keeps however many other bins are already done.
        bins.sort(key=lambda items: bins_at[left[items[0]].number])
        trained = set(done)
        for place, items in enumerate(bins):
            rows = [left[i] for i in sorted(items)]
            trained.update(row.number for row in rows)
            following = Cursor(window.epoch, window.number, tuple(sorted(trained)), self._window_rows)
            if place == len(bins) - 1:
                following = Cursor(window.epoch, window.number + 1, (), self._window_rows)
            yield _batch(rows, following)

    def _order(self, epoch: int, window: int) -> tuple[list[int], list[int]]:
        """Two shuffles of the window's row numbers. From a hash: NumPy's streams may change between releases."""
        key = f"{self._seed}:{epoch}:{window}".encode()
        drawn = np.frombuffer(blake3(key).digest(length=16 * self._window_rows), dtype="<u8")
        rows, bins = drawn.reshape(2, self._window_rows)
        return np.argsort(rows, kind="stable").argsort().tolist(), np.argsort(bins, kind="stable").argsort().tolist()


def _batch(rows: Sequence[_Row], cursor: Cursor) -> Batch:
    documents = [document for row in rows for document in row.documents]
    lengths = tuple(len(document.ids) for document in documents)
    row_ids = tuple(row.id for row in rows)
    return Batch(
        ids=np.concatenate([document.ids for document in documents]).astype(np.int64),
        trained=np.concatenate([document.trained for document in documents]),
        positions=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
        lengths=lengths,
        row_ids=row_ids,
        examples=len(rows),
        cursor=cursor,
        fingerprint=short_id(*row_ids),
    )


def _excerpt(sample: Sample) -> str:
    said = sample.text if sample.text is not None else " ".join(message.content for message in sample.messages)
    return said[:EXCERPT_CHARS]
