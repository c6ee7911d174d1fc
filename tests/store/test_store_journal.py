"""The journal: every step once, and the lineage of a model that went back."""

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from journal_step import journal_step
from stokehold.core.records import Step
from stokehold.store.db import journal
from stokehold.store.db.database import Database, connect


def step(number: int, branch: int = 0, loss: float = 1.0) -> Step:
    return journal_step(number, branch=branch, loss=loss, components={"cross_entropy": loss}, token_entropy=0.7)


def test_a_step_reads_back_as_it_was_written(db: Database) -> None:
    written = [step(1), replace(step(2), joules=12.5, token_entropy=None)]
    for one in written:
        journal.append(db, one)
    assert journal.steps(db) == written
    assert journal.last_step(db) == written[1]


def test_a_step_taken_again_overwrites_itself(db: Database) -> None:
    journal.append(db, step(1, loss=2.0))
    journal.append(db, step(1, loss=1.5))
    assert [one.loss for one in journal.steps(db)] == [1.5]


def test_an_empty_journal(db: Database) -> None:
    assert journal.steps(db) == []
    assert journal.last_step(db) is None
    assert journal.latest_samples(db, 1) == []
    assert journal.current_branch(db) == 0


def test_reading_on_limits_and_thinning(db: Database) -> None:
    with db.write() as connection:
        for n in range(1, 31):
            journal.append(db, step(n), connection)
    assert [one.step for one in journal.steps(db, since=27)] == [28, 29, 30]
    assert [one.step for one in journal.steps(db, since=10, limit=3)] == [11, 12, 13]
    assert [one.step for one in journal.steps(db, every=10)] == [10, 20, 30]


def test_going_back_keeps_the_rows_and_changes_the_lineage(db: Database) -> None:
    for n in range(1, 11):
        journal.append(db, step(n))
    assert journal.new_branch(db, 6, "WORSE twice") == 1
    assert journal.last_step(db) == step(6)
    journal.append(db, step(7, branch=1, loss=0.5))
    assert [(one.branch, one.step) for one in journal.steps(db, since=5)] == [(0, 6), (1, 7)]
    assert [one.step for one in journal.steps(db, branch=0)] == list(range(1, 11))
    assert journal.current_branch(db) == 1


Action = tuple[str, int]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["train", "back"]), st.integers(1, 9)), max_size=8))
def test_the_lineage_is_what_the_model_went_through(actions: list[Action]) -> None:
    """Against a list that is cut at each going back."""
    with tempfile.TemporaryDirectory() as folder:
        db = connect(f"sqlite:///{Path(folder) / 'stoke.db'}")
        lived: list[tuple[int, int]] = []
        branch = 0
        for action, amount in actions:
            if action == "back":
                lived = lived[: max(0, len(lived) - amount)]
                branch = journal.new_branch(db, len(lived), "test")
                continue
            fresh = [(branch, len(lived) + n) for n in range(1, amount + 1)]
            with db.write() as connection:
                for of_branch, number in fresh:
                    journal.append(db, step(number, of_branch), connection)
            lived += fresh
        assert [(one.branch, one.step) for one in journal.steps(db)] == lived
        last = journal.last_step(db)
        assert (last and (last.branch, last.step)) == (lived[-1] if lived else None)
        assert journal.first_step(db, "train-a") == (1 if lived else None)
        for since in range(0, len(lived) + 2, 3):
            assert [(one.branch, one.step) for one in journal.steps(db, since, limit=4)] == lived[since : since + 4]
        spans = journal.spans(db)
        assert all(any(span.holds(*place) for span in spans) for place in lived)
        db.close()


def test_the_newest_samples_come_first(db: Database) -> None:
    journal.add_sample(db, 100, "2+2?", "4", "5", False)
    journal.add_sample(db, 200, "2+3?", "5", "5", True)
    [newest] = journal.latest_samples(db, 1)
    assert (newest.step, newest.prompt, newest.gold, newest.answer, newest.match) == (200, "2+3?", "5", "5", True)
    assert [sample.step for sample in journal.latest_samples(db, 5)] == [200, 100]
