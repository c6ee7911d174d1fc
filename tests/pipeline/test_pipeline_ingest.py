"""Bad input is refused with what, where and why; the good lines beside it are used; nothing held out is trained."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from stokehold.core.errors import InputError, StokeholdError
from stokehold.core.records import Dataset
from stokehold.data.batches import Batches, Cursor
from stokehold.data.formats import from_row
from stokehold.data.report import measure
from stokehold.data.tokenizer import load_tokenizer
from stokehold.pipeline import accept
from stokehold.pipeline.ingest import ingest_file
from stokehold.pipeline.suites import open_suite
from stokehold.pipeline.token_reports import token_counter
from stokehold.store.datasets import dataset_folder, list_datasets
from stokehold.store.db import events, token_reports
from stokehold.store.db.database import connect
from stokehold.store.files import hash_file
from stokehold.store.home import Home
from stokehold.tasks.registry import FAMILIES, draw, row
from tiny_world import fact, facts, held_out_facts, write_jsonl


def take_in(home: Home, path: Path) -> Dataset:
    config = home.config()
    tokenizer = load_tokenizer(home.root / config.model.base)
    return ingest_file(home, config, tokenizer, path, hash_file(path), path.name)


def lines(home: Home, dataset: Dataset, name: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (dataset_folder(home, dataset.id) / name).read_bytes().splitlines()]


def test_bad_lines_are_kept_with_their_number_and_reason(make_home: Callable[..., Home], tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    good = orjson.dumps(fact(1, "what colour is {}"))
    file.write_bytes(b"\n".join([good, b'{"messages": [', good, b"\xff\xfe", b'{"other": 1}', good]))
    home = make_home()
    dataset = take_in(home, file)
    assert (dataset.accepted, dataset.rejected, dataset.held_out) == (3, 3, 0)
    assert [rejected["line"] for rejected in lines(home, dataset, "rejected.jsonl")] == [2, 4, 5]
    assert all(rejected["reason"] for rejected in lines(home, dataset, "rejected.jsonl"))
    assert [accepted["line"] for accepted in lines(home, dataset, "rows.jsonl")] == [1, 3, 6]
    assert len({accepted["id"] for accepted in lines(home, dataset, "rows.jsonl")}) == 3
    assert (dataset_folder(home, dataset.id) / "source.jsonl").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"not json\n", b'{"a": 1}\n'])
def test_a_file_without_one_good_line_is_refused_and_leaves_nothing(
    make_home: Callable[..., Home], tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    home = make_home()
    with pytest.raises(InputError, match="no usable line"):
        take_in(home, file)
    assert list(home.datasets.iterdir()) == []


def test_strict_refuses_the_whole_file_with_the_line(make_home: Callable[..., Home], tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "one.jsonl", [*facts(3), {"nothing": "known"}])
    with pytest.raises(InputError, match=r"one\.jsonl, line 4"):
        take_in(make_home(data={"strict": True}), file)


def test_a_share_is_held_out_and_never_trained_afterwards(make_home: Callable[..., Home], tmp_path: Path) -> None:
    home = make_home(evaluation={"holdout_share": 0.05})
    rows = [{"prompt": f"word {n} of the list", "completion": f"it is {n}"} for n in range(600)]
    dataset = take_in(home, write_jsonl(tmp_path / "first.jsonl", rows))
    assert (dataset.accepted, dataset.held_out) == (600, 30)
    held = {sample.messages[0].content for sample in open_suite(home, "inbox").samples}
    assert len(held) == 30
    again = take_in(home, write_jsonl(tmp_path / "second.jsonl", rows[:100]))
    trained = {accepted["messages"][0]["content"] for accepted in lines(home, again, "rows.jsonl")}
    assert not trained & held
    assert again.rejected == len(held & {row["prompt"] for row in rows[:100]}) > 0


def test_a_file_of_one_question_is_trained_whole(make_home: Callable[..., Home], tmp_path: Path) -> None:
    rows = [{"prompt": "tell me something", "completion": f"it is {n}"} for n in range(200)]
    home = make_home(evaluation={"holdout_share": 0.02})
    dataset = take_in(home, write_jsonl(tmp_path / "one.jsonl", rows))
    assert (dataset.accepted, dataset.held_out, len(lines(home, dataset, "rows.jsonl"))) == (200, 0, 200)


def test_what_a_suite_holds_is_refused_in_any_spelling(make_home: Callable[..., Home], tmp_path: Path) -> None:
    home = make_home()
    write_jsonl(home.suites / "facts.jsonl", held_out_facts())
    copied = held_out_facts()[0]
    copied["messages"][0]["content"] = f"  {copied['messages'][0]['content'].upper()}\n"
    dataset = take_in(home, write_jsonl(tmp_path / "leak.jsonl", [*facts(5), copied]))
    (rejected,) = lines(home, dataset, "rejected.jsonl")
    assert "held out" in rejected["reason"]
    assert rejected["line"] == 6


def test_a_held_out_problem_is_refused_by_its_identity(make_home: Callable[..., Home], tmp_path: Path) -> None:
    home = make_home()
    held = list(draw("syllo", 1, 5, 0, "holdout"))
    write_jsonl(home.suites / "easy.jsonl", [row(sample) for sample in held])
    reworded = row(held[2])
    reworded["messages"][0]["content"] = "Please solve.\n" + reworded["messages"][0]["content"]
    train = [row(sample) for sample in draw("syllo", 1, 20, 0, "train")]
    dataset = take_in(home, write_jsonl(tmp_path / "leak.jsonl", [*train, reworded]))
    assert (dataset.accepted, dataset.rejected) == (20, 1)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_held_out_split_is_refused_before_any_suite_has_it(
    make_home: Callable[..., Home], tmp_path: Path, family: str
) -> None:
    held = [row(sample) for sample in draw(family, 3, 6, 0, "holdout")]
    for number, problem in enumerate(held):
        problem["messages"][0]["content"] += f"\nVersion {number}."
        problem["metadata"] |= {"split": "train", "seed": 99, "index": number}
    train = [row(sample) for sample in draw(family, 3, 20, 0, "train")]
    home = make_home()
    dataset = take_in(home, write_jsonl(tmp_path / "both.jsonl", [*train, *held]))
    assert (dataset.accepted, dataset.rejected) == (20, 6)
    (reason,) = {rejected["reason"] for rejected in lines(home, dataset, "rejected.jsonl")}
    assert reason == "held out: its problem is of the family's held-out split, which suites are drawn from"


def test_the_same_content_is_the_same_dataset(make_home: Callable[..., Home], tmp_path: Path) -> None:
    home = make_home()
    first = take_in(home, write_jsonl(tmp_path / "a.jsonl", facts(10)))
    assert take_in(home, write_jsonl(tmp_path / "b.jsonl", facts(10))) == first


def in_parts(monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    """As on a machine of eight cores, for files of this size and more."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: range(8))
    monkeypatch.setattr(accept, "PART_BYTES", part_bytes)


def test_several_processes_make_the_dataset_that_one_makes(
    make_home: Callable[..., Home], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    easy = [row(sample) for sample in draw("syllo", 1, 40, 0, "train")]
    held = [row(sample) for sample in draw("syllo", 1, 5, 0, "holdout")]
    odd = [{"prompt": "a", "completion": "b"}, {"other": 1}, *held, {"text": "é\u2028"}, *held_out_facts()[:3]]
    file = write_jsonl(tmp_path / "rows.jsonl", [*facts(150), *odd, *easy, *facts(150)])
    alone, together = (make_home(evaluation={"holdout_share": 0.05}) for _ in range(2))
    for home in (alone, together):
        write_jsonl(home.suites / "easy.jsonl", held[:3])
        write_jsonl(home.suites / "facts.jsonl", held_out_facts())
    one = take_in(alone, file)
    in_parts(monkeypatch, file.stat().st_size // 7)
    several = take_in(together, file)
    assert (one.rejected, one.held_out, len(one.notes)) == (1 + 5 + 3, several.held_out, 2)
    assert one.held_out > 0
    assert (one.notes, one.accepted, one.rejected) == (several.notes, several.accepted, several.rejected)
    for name in ("rows.jsonl", "held_out.jsonl", "rejected.jsonl"):
        first, second = (dataset_folder(home, one.id) / name for home in (alone, together))
        assert first.read_bytes() == second.read_bytes()
    assert {path.name for path in dataset_folder(together, one.id).iterdir()} == {
        path.name for path in dataset_folder(alone, one.id).iterdir()
    }
    ids = [tree["id"] for name in ("rows.jsonl", "held_out.jsonl") for tree in lines(together, several, name)]
    assert len(set(ids)) == len(ids)
    assert sum("#" in row_id for row_id in ids) >= 150


@pytest.mark.parametrize(
    ("code", "kind"),
    [("sys.exit(3)", StokeholdError), (f"print(json.dumps({{'errno': {errno.ENOSPC}, 'error': ''}}))", OSError)],
)
def test_a_process_that_fails_fails_the_file_and_leaves_nothing(
    make_home: Callable[..., Home], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[Exception]
) -> None:
    home, file = make_home(), write_jsonl(tmp_path / "rows.jsonl", facts(200))
    in_parts(monkeypatch, 2000)
    monkeypatch.setattr(accept, "COMMAND", ("-c", f"import json, sys; sys.stdin.read(); {code}"))
    with pytest.raises(kind):
        take_in(home, file)
    assert list(home.datasets.iterdir()) == []


def report_through_training(home: Home, dataset: Dataset, killed_after: int | None = None) -> None:
    """What training does with the counts of each window, for all windows or until a kill."""
    config, tokenizer = home.config(), load_tokenizer(home.root / home.config().model.base)
    db = connect(home)
    with Batches(
        dataset_folder(home, dataset.id) / "rows.jsonl",
        tokenizer,
        window_rows=config.data.window_rows,
        capacity=256,
        max_length=config.data.max_length,
        seed=0,
        epochs=1,
        cursor=Cursor(0, killed_after or 0),
        counted=token_counter(home, db, tokenizer, dataset, config.data.max_length),
    ) as batches:
        for batch in batches:
            if killed_after == 0 and batch.cursor.window > 0:
                return


def test_the_token_report_is_finished_by_training_and_a_kill_loses_nothing(
    make_home: Callable[..., Home], tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "facts.jsonl", facts(200))
    home, whole = make_home(), make_home()
    for place in (home, whole):
        take_in(place, file)
    dataset = list_datasets(home)[0]
    assert not (dataset_folder(home, dataset.id) / "report.json").exists()
    report_through_training(home, dataset, killed_after=0)
    assert token_reports.load(connect(home), dataset.id) is None
    report_through_training(home, dataset, killed_after=1)
    report_through_training(whole, dataset)
    found = token_reports.load(connect(home), dataset.id)
    assert found is not None
    assert found == token_reports.load(connect(whole), dataset.id)
    tokenizer = load_tokenizer(home.root / home.config().model.base)
    samples = [from_row(tree) for tree in lines(home, dataset, "rows.jsonl")]
    assert (found.report, found.warning) == measure(samples, tokenizer, 128)
    assert found.report.rows == 200
    assert token_reports.windows(connect(home), dataset.id, 64) == []


def test_windows_that_were_never_counted_are_tokenised_for_the_report(
    make_home: Callable[..., Home], tmp_path: Path
) -> None:
    home = make_home()
    dataset = take_in(home, write_jsonl(tmp_path / "facts.jsonl", facts(200)))
    report_through_training(home, dataset, killed_after=3)
    found = token_reports.load(connect(home), dataset.id)
    assert found is not None
    assert found.report.rows == 200


WRONGLY_MASKED = [{"prompt": "a", "completion": f"{n} " * 40} for n in range(70)]


def test_a_suspicious_mask_becomes_an_event_with_three_examples(make_home: Callable[..., Home], tmp_path: Path) -> None:
    home = make_home(data={"max_length": 1024})
    dataset = take_in(home, write_jsonl(tmp_path / "odd.jsonl", WRONGLY_MASKED))
    report_through_training(home, dataset)
    found = token_reports.load(connect(home), dataset.id)
    assert found is not None
    assert found.warning is not None
    (event,) = events.events(connect(home), kind="mask_warning")
    assert event.text == f"odd.jsonl: {found.warning}"
    assert event.data["examples"] == list(found.examples)
    assert [example.count("⟦") for example in found.examples] == [1, 1, 1]


def test_strict_refuses_a_suspicious_mask_before_training(make_home: Callable[..., Home], tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "odd.jsonl", WRONGLY_MASKED)
    home = make_home(data={"strict": True, "max_length": 1024})
    with pytest.raises(InputError, match="prompts seem to be trained"):
        take_in(home, file)
    assert list(home.datasets.iterdir()) == []
    assert take_in(home, write_jsonl(tmp_path / "good.jsonl", facts(70))).accepted == 70
