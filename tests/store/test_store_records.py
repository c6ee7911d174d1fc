"""Datasets, suites and evaluations on disk."""

from dataclasses import replace
from pathlib import Path

import pytest

from stokehold.core.errors import InputError, NotFoundError
from stokehold.core.records import Dataset, Evaluation, SuiteResult, SuiteState, Verdict
from stokehold.store.datasets import dataset_folder, list_datasets, load_dataset, save_dataset
from stokehold.store.db.database import Database
from stokehold.store.files import verify
from stokehold.store.home import Home
from stokehold.store.judged import evaluations, suites

DATASET = Dataset("d7f3", "ab" * 32, "tickets.jsonl", 1000, 90, 10, 2, "2025-01-02T00:00:00.000Z", ("folded", "cut"))


def rows(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"id": "a"}\n')


def test_a_dataset_reads_back_and_is_published_once(home: Home) -> None:
    assert save_dataset(home, DATASET, rows) == DATASET == load_dataset(home, "d7f3")
    assert verify(dataset_folder(home, "d7f3")) == []

    def never(folder: Path) -> None:
        raise AssertionError("it is there already")

    assert save_dataset(home, DATASET, never) == DATASET
    older = replace(DATASET, id="c1", created="2025-01-01T00:00:00.000Z")
    save_dataset(home, older, rows)
    (home.datasets / "unfinished").mkdir()
    assert list_datasets(home) == [older, DATASET]
    with pytest.raises(NotFoundError, match="no such dataset"):
        load_dataset(home, "nope")


def test_suites_are_known_by_name_and_content(home: Home) -> None:
    first = suites.save_suite(home, "syllo", [{"id": "a", "messages": []}, {"id": "b"}])
    assert suites.load_suite(home, "syllo") == (first, [{"id": "a", "messages": []}, {"id": "b"}])
    assert suites.suite_names(home) == ["syllo"]
    assert suites.save_suite(home, "syllo", [{"id": "b"}]) != first


def test_suites_that_do_not_read(home: Home) -> None:
    with pytest.raises(NotFoundError, match="none yet"):
        suites.load_suite(home, "syllo")
    for name in ("../stoke", "", ".hidden", "a/b"):
        with pytest.raises(NotFoundError, match="not the name"):
            suites.load_suite(home, name)
    (home.suites / "bad.jsonl").write_text('{"id": "a"}\n\n{"id":\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:3"):
        suites.load_suite(home, "bad")
    (home.suites / "bad.jsonl").write_text("[]\n")
    with pytest.raises(InputError, match="not a JSON object"):
        suites.load_suite(home, "bad")


def evaluation(name: str, weights: str, created: str) -> Evaluation:
    readings = {
        "inbox": SuiteResult("inbox", SuiteState.OK, 40, 1, 0.5, (0.35, 0.65), 1.2, {"format": 0.9}, {"1": {"n": 4}}),
        "empty": SuiteResult("empty", SuiteState.NO_DATA, 0, reason="no rows"),
    }
    return Evaluation(name, "latest", weights, "fp", readings, 3.5, "", created, 100, Verdict.BETTER)


def test_an_evaluation_reads_back_and_the_newest_of_the_weights_is_found(home: Home, db: Database) -> None:
    saved = [
        evaluations.save(home, db, evaluation(name, weights, created), rows)
        for name, weights, created in (("e2", "w1", "2025-02"), ("e1", "w1", "2025-01"), ("e3", "w2", "2025-03"))
    ]
    assert saved[0] == replace(evaluation("e2", "w1", "2025-02"), path=str(home.evaluations / "e2"))
    assert evaluations.load(home, "e2") == saved[0]
    assert verify(home.evaluations / "e2") == []
    assert evaluations.latest_for(home, db, "w1") == saved[0]
    assert evaluations.latest_for(home, db, "w9") is None
    assert [one.id for one in evaluations.list_evaluations(home, db)] == ["e3", "e2", "e1"]
    with pytest.raises(NotFoundError, match="no such evaluation"):
        evaluations.load(home, "e9")


def test_an_evaluation_whose_listing_was_lost_is_listed_again(home: Home, db: Database) -> None:
    first = evaluations.save(home, db, replace(evaluation("e1", "w1", "2025"), verdict=None, step=None), rows)
    assert first.verdict is None
    assert evaluations.save(home, db, evaluation("e1", "w1", "2025"), rows) == first, "published folders never change"
    assert len(evaluations.list_evaluations(home, db)) == 1
