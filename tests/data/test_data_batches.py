"""The cursor is exact: killed anywhere, a run goes on with the batches it would have had; no row lost or repeated."""

import gc
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stokehold.core.errors import InputError
from stokehold.core.identity import short_id
from stokehold.core.records import Message, Provenance, Sample, WindowTokens
from stokehold.data.batches import Batch, Batches, Cursor
from stokehold.data.tokenizer import ChatTokenizer

Write = Callable[[Iterable[Sample]], Path]
Make = Callable[[int], list[Sample]]

BASE: dict[str, Any] = {"window_rows": 16, "capacity": 256, "max_length": 512, "seed": 5, "epochs": 2}


def batches(path: Path, tokenizer: ChatTokenizer, cursor: Cursor | None = None, **changes: Any) -> list[Batch]:
    with Batches(path, tokenizer, cursor=cursor or Cursor.start(), **{**BASE, **changes}) as found:
        return list(found)


def as_bytes(batch: Batch) -> tuple[object, ...]:
    arrays = (batch.ids, batch.trained, batch.positions)
    return (
        *((array.dtype.str, array.tobytes()) for array in arrays),
        batch.lengths,
        batch.row_ids,
        batch.examples,
        batch.cursor,
        batch.fingerprint,
    )


def saved(cursor: Cursor) -> Cursor:
    """The cursor as a checkpoint brings it back."""
    return Cursor.from_dict(json.loads(json.dumps(cursor.to_dict())))


def rows_of(found: Iterable[Batch]) -> list[str]:
    return [row for batch in found for row in batch.row_ids]


@pytest.fixture
def mixed(puzzles: Make) -> list[Sample]:
    """70 rows in five windows, the last one short: puzzles, plain text, rows too long, and a row that is refused."""
    rows = puzzles(70)
    rows[3] = Sample("row3", text="Once upon a time there was a stoker.", provenance=Provenance(line=4))
    rows[20] = Sample("row20", text="tile " * 600, provenance=Provenance(line=21))
    rows[21] = Sample("row21", text="x", provenance=Provenance(line=22))
    rows[40] = Sample("row40", text="shovel " * 50, provenance=Provenance(line=41))
    rows[66] = Sample("row66", (Message("user", "?"),), provenance=Provenance(line=67))
    return rows


REJECTED = [21, 22, 67]


def test_resuming_at_every_boundary_gives_the_same_batches_byte_for_byte(
    mixed: list[Sample], chatml: ChatTokenizer, write_rows: Write
) -> None:
    path = write_rows(mixed)
    whole = [as_bytes(batch) for batch in batches(path, chatml)]
    cursors = [batch.cursor for batch in batches(path, chatml)]
    assert len(whole) > 30
    for place, cursor in enumerate(cursors, start=1):
        resumed = [as_bytes(batch) for batch in batches(path, chatml, saved(cursor))]
        assert resumed == whole[place:], f"after batch {place}"


def test_a_run_killed_after_every_batch_is_the_run_itself(
    mixed: list[Sample], chatml: ChatTokenizer, write_rows: Write
) -> None:
    path, cursor, got = write_rows(mixed), Cursor.start(), []
    while True:
        with Batches(path, chatml, cursor=saved(cursor), **BASE) as found:
            batch = next(iter(found), None)
        if batch is None:
            break
        got.append(as_bytes(batch))
        cursor = batch.cursor
    assert got == [as_bytes(batch) for batch in batches(path, chatml)]


@pytest.mark.parametrize(("before", "after"), [(256, 90), (90, 256), (256, 1000), (1000, 64)])
def test_a_changed_capacity_trains_every_row_exactly_epochs_times(
    mixed: list[Sample], chatml: ChatTokenizer, write_rows: Write, before: int, after: int
) -> None:
    path = write_rows(mixed)
    expected = Counter({sample.id: 2 for sample in mixed if sample.provenance.line not in REJECTED})
    first = batches(path, chatml, capacity=before)
    for place in range(0, len(first) + 1, 3):
        cursor = first[place - 1].cursor if place else Cursor.start()
        rest = batches(path, chatml, saved(cursor), capacity=after)
        assert Counter(rows_of(first[:place]) + rows_of(rest)) == expected, f"after batch {place}"
        if rest:
            # Killed again after the change: still the run it would have been.
            middle = len(rest) // 2
            again = batches(path, chatml, saved(rest[middle].cursor), capacity=after)
            assert [as_bytes(batch) for batch in again] == [as_bytes(batch) for batch in rest[middle + 1 :]]


def test_a_changed_window_size_waits_for_the_next_file(
    mixed: list[Sample], chatml: ChatTokenizer, write_rows: Write
) -> None:
    path = write_rows(mixed)
    whole = batches(path, chatml)
    resumed = batches(path, chatml, saved(whole[6].cursor), window_rows=7)
    assert [as_bytes(batch) for batch in resumed] == [as_bytes(batch) for batch in whole[7:]]


def test_the_thread_changes_nothing_and_ends(mixed: list[Sample], chatml: ChatTokenizer, write_rows: Write) -> None:
    path = write_rows(mixed)
    alone = [as_bytes(batch) for batch in batches(path, chatml, ahead=False)]
    assert [as_bytes(batch) for batch in batches(path, chatml, ahead=True)] == alone
    with Batches(path, chatml, cursor=Cursor.start(), **BASE) as found:
        next(iter(found))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tokenise")]


def test_a_batch_is_whole_documents_side_by_side(puzzles: Make, chatml: ChatTokenizer, write_rows: Write) -> None:
    rows = puzzles(40)
    by_id = {row.id: row for row in rows}
    for batch in batches(write_rows(rows), chatml, epochs=1):
        assert batch.ids.dtype == batch.positions.dtype == np.int64
        assert batch.trained.dtype == np.bool_
        assert len(batch.ids) == len(batch.trained) == len(batch.positions) == sum(batch.lengths)
        assert sum(batch.lengths) <= BASE["capacity"]
        assert batch.examples == len(batch.row_ids)
        assert batch.fingerprint == short_id(*batch.row_ids)
        edges = np.concatenate([[0], np.cumsum(batch.lengths)])
        for row, start, end in zip(batch.row_ids, edges[:-1], edges[1:], strict=True):
            (document,) = chatml.encode(by_id[row])
            assert batch.ids[start:end].tolist() == document.ids.tolist()
            assert batch.trained[start:end].tolist() == document.trained.tolist()
            assert batch.positions[start:end].tolist() == list(range(end - start))
            assert not batch.trained[start]


def test_documents_of_one_row_stay_together(
    puzzles: Make, tokenizers: dict[str, ChatTokenizer], write_rows: Write
) -> None:
    """A template that rewrites earlier turns gives a document per answer; one row, one example."""
    tokenizer = tokenizers["rewriting"]
    rows = [Sample(f"r{n}", a.messages + b.messages) for n, (a, b) in enumerate(itertools.pairwise(puzzles(30)))]
    found = batches(write_rows(rows), tokenizer, capacity=700, epochs=1)
    assert Counter(rows_of(found)) == Counter(row.id for row in rows)
    for batch in found:
        assert len(batch.lengths) == 2 * batch.examples
    many = Sample("many", rows[0].messages * 6)
    documents = tokenizer.encode(many)
    assert max(len(document.ids) for document in documents) < 1000 < sum(len(document.ids) for document in documents)
    with Batches(
        write_rows([many]), tokenizer, cursor=Cursor.start(), **{**BASE, "max_length": 1000, "capacity": 900}
    ) as refused:
        assert list(refused) == []
        assert "in 12 documents" in refused.rejected[0].reason


def test_unusable_rows_are_rejected_once_with_their_line(
    mixed: list[Sample], chatml: ChatTokenizer, write_rows: Write
) -> None:
    path = write_rows(mixed)
    with Batches(path, chatml, cursor=Cursor.start(), **BASE) as found:
        iterator = iter(found)
        next(iterator)
        assert found.rejected == [], "rows of windows not begun are not reported yet"
        trained = rows_of(iterator)
    assert [one.line for one in found.rejected] == REJECTED
    too_long, nothing, refused = found.rejected
    assert "more than max_length 512" in too_long.reason
    assert too_long.excerpt == ("tile " * 600)[:80]
    assert nothing.reason == "no token to train"
    assert refused.reason == "no assistant turn with content"
    assert not {"row20", "row21", "row66"}.intersection(trained)


def test_a_row_longer_than_the_capacity_is_a_batch_of_its_own(
    mixed: list[Sample], chatml: ChatTokenizer, write_rows: Write
) -> None:
    found = [batch for batch in batches(write_rows(mixed), chatml, capacity=60) if "row40" in batch.row_ids]
    assert [batch.row_ids for batch in found] == [("row40",), ("row40",)]


def test_order_follows_the_seed_and_differs_by_epoch_and_window(
    puzzles: Make, chatml: ChatTokenizer, write_rows: Write
) -> None:
    path = write_rows(puzzles(48))
    found = batches(path, chatml)
    epochs = [rows_of(batch for batch in found if f(batch)) for f in (_first_epoch, lambda b: not _first_epoch(b))]
    assert sorted(rows_of(found[: len(found) // 2])) != rows_of(found[: len(found) // 2])
    assert rows_of(batches(path, chatml)) == rows_of(found)
    assert rows_of(batches(path, chatml, seed=6)) != rows_of(found)
    assert epochs[0] != epochs[1][-len(epochs[0]) :]
    order = [int(row.removeprefix("row")) for row in rows_of(batches(path, chatml, epochs=1, capacity=10**6))]
    windows = [order[:16], order[16:32], order[32:]]
    assert [sorted(rows) for rows in windows] == [list(range(16)), list(range(16, 32)), list(range(32, 48))]
    assert windows[0] != [row - 16 for row in windows[1]]


def _first_epoch(batch: Batch) -> bool:
    return batch.cursor.epoch == 0


def test_the_order_is_the_one_of_the_first_release(puzzles: Make, chatml: ChatTokenizer, write_rows: Write) -> None:
    """Golden: a change of this order would change the rest of every run that is under way."""
    order = rows_of(batches(write_rows(puzzles(16)), chatml, epochs=1, capacity=10**6))
    assert [int(row.removeprefix("row")) for row in order] == GOLDEN


GOLDEN = [4, 0, 5, 2, 3, 8, 10, 14, 13, 9, 12, 6, 7, 15, 11, 1]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 32])
def test_windows_end_where_the_file_does(puzzles: Make, chatml: ChatTokenizer, write_rows: Write, count: int) -> None:
    found = batches(write_rows(puzzles(count)), chatml, epochs=3)
    assert Counter(rows_of(found)) == Counter({f"row{n}": 3 for n in range(count)})
    if found:
        assert batches(write_rows(puzzles(count)), chatml, saved(found[-1].cursor), epochs=3) == []


def test_a_file_of_unusable_rows_ends(chatml: ChatTokenizer, write_rows: Write) -> None:
    rows = [Sample(f"r{n}", text="x") for n in range(40)]
    with Batches(write_rows(rows), chatml, cursor=Cursor.start(), **BASE) as found:
        assert list(found) == []
    assert [one.line for one in found.rejected] == list(range(1, 41))


def test_a_fault_in_the_thread_reaches_the_loop(puzzles: Make, chatml: ChatTokenizer, write_rows: Write) -> None:
    path = write_rows(puzzles(40))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="unexpected end"):
        batches(path, chatml)


def test_at_most_two_windows_are_in_memory(puzzles: Make, chatml: ChatTokenizer, write_rows: Write) -> None:
    gc.collect()  # what earlier tests left behind is not counted
    path, most = write_rows(puzzles(200)), 0
    with Batches(path, chatml, cursor=Cursor.start(), **{**BASE, "epochs": 1}) as found:
        for number, _ in enumerate(found):
            if number % 5 == 0:
                time.sleep(0.02)  # the thread gets further ahead, if it can
                most = max(most, sum(type(one).__name__ == "_Row" for one in gc.get_objects()))
    assert BASE["window_rows"] <= most <= 2 * BASE["window_rows"]


def test_shuffling_is_fair(puzzles: Make, chatml: ChatTokenizer, write_rows: Write) -> None:
    """A row's place in its window does not follow from its length, though packing sorts by length."""
    rows = puzzles(64)
    lengths = {row.id: len(chatml.encode(row)[0].ids) for row in rows}
    path, chance = write_rows(rows), random.Random(0)
    order = [
        lengths[row] for seed in range(8) for row in rows_of(batches(path, chatml, seed=seed, epochs=1, window_rows=64))
    ]
    places = [place % 64 for place in range(len(order))]
    shuffled = [abs(float(np.corrcoef(chance.sample(order, len(order)), places)[0, 1])) for _ in range(200)]
    assert abs(float(np.corrcoef(order, places)[0, 1])) <= 2 * max(shuffled)


def test_every_window_of_the_first_epoch_is_counted_as_it_is_begun(
    mixed: list[Sample], chatml: ChatTokenizer, write_rows: Write
) -> None:
    path, told = write_rows(mixed), list[WindowTokens]()
    with Batches(path, chatml, cursor=Cursor.start(), counted=told.append, **BASE) as found:
        iterator = iter(found)
        first = next(iterator)
        assert [tokens.window for tokens in told] == [0]
        rest = list(iterator)
    assert [tokens.window for tokens in told] == list(range(5))
    outcomes = [chatml.encode_many([sample])[0] for sample in mixed]
    documents = [outcome[0] for outcome in outcomes if not isinstance(outcome, InputError)]
    assert [length for tokens in told for length in tokens.lengths] == [len(document.ids) for document in documents]
    assert sum(tokens.trained for tokens in told) == sum(int(document.trained.sum()) for document in documents)
    assert sum(tokens.conversations for tokens in told) == 65
    again = list[WindowTokens]()
    resumed = batches(path, chatml, saved(rest[3].cursor), counted=again.append)
    assert [tokens.window for tokens in again] == list(range(rest[3].cursor.window, 5))
    assert [as_bytes(batch) for batch in resumed] == [as_bytes(batch) for batch in [first, *rest]][5:]
