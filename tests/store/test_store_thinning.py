"""Old rows become sums: what is asked of the journal adds up as before, and nothing that may be replayed is gone."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from stokehold.core.config import RetentionConfig
from stokehold.core.records import Evaluation, Step
from stokehold.store.db import events, jobs, journal, tables
from stokehold.store.db.database import Database
from stokehold.store.files import verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import aging, thinning
from stokehold.store.judged import evaluations
from stokehold.store.models.checkpoints import publish_checkpoint
from stokehold.web.curve import read_curve

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
STEPS, NEWEST = 1600, 300


def step(number: int, branch: int = 0, job: str = "train-a", days: float = 200.0) -> Step:
    return Step(
        step=number,
        branch=branch,
        job=job,
        dataset=f"of-{job}",
        loss=1.0 + number % 7,
        components={"cross_entropy": 1.0},
        learning_rate=1e-3,
        grad_norm=float(number % 5),
        tokens=100 + number % 3,
        loss_tokens=50,
        examples=1 + number % 4,
        seconds=0.5,
        joules=None if number % 2 else 2.0,
        fingerprint=f"{number:08x}",
        created=(NOW - timedelta(days=days)).isoformat(),
    )


def fill(db: Database, steps: list[Step]) -> None:
    rows = [{name: getattr(one, name) for name in Step.__dataclass_fields__} for one in steps]
    with db.write() as connection:
        connection.execute(tables.journal.insert(), rows)


def checkpoint(home: Home, at: int) -> None:
    publish_checkpoint(home, at, lambda stage: (stage / "model.safetensors").write_bytes(b"w"), {})


def rows(db: Database, table: sa.Table) -> int:
    with db.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() or 0)


@pytest.fixture
def long_run(home: Home, db: Database) -> tuple[Home, Database]:
    """Two files, one after the other, taken back once, the newest steps young."""
    half = STEPS // 2
    fill(db, [step(n, job="train-a" if n <= half + 50 else "train-b") for n in range(1, half + 330)])
    journal.new_branch(db, half + 130, "worse")
    young = STEPS - 350
    fill(db, [step(n, 1, "train-b", 200.0 if n < young else 1.0) for n in range(half + 131, STEPS + 1)])
    checkpoint(home, STEPS - 200)
    return home, db


def answers(db: Database) -> list[object]:
    curve = read_curve(db, points=10**9)
    return [
        journal.examples_by_dataset(db, STEPS - 200),
        replace(journal.job_totals(db, ["train-a"]), loss=None),
        journal.job_totals(db, ["train-b"]),
        journal.first_step(db, "train-a"),
        journal.first_step(db, "train-b"),
        journal.last_step(db),
        journal.steps(db, since=STEPS - 300),
        curve.steps,
    ]


def test_everything_adds_up_as_before(long_run: tuple[Home, Database]) -> None:
    home, db = long_run
    before, rough = answers(db), read_curve(db, points=8)
    counted = thinning.thin(home, db, NOW, 90, dry_run=True, newest=NEWEST)
    assert rows(db, tables.journal_aggregates) == 0
    done = thinning.thin(home, db, NOW, 90, newest=NEWEST)
    assert done == counted
    assert done.steps > STEPS // 2
    assert done.aggregates < done.steps / 80
    after = answers(db)
    assert after[:2] == before[:2]
    assert after[3:] == before[3:]
    assert after[2] == before[2]
    for old, new in zip(rough.points, read_curve(db, points=8).points, strict=True):
        assert (new["loss_min"], new["loss_max"]) == (old["loss_min"], old["loss_max"])
        assert new["loss"] == pytest.approx(old["loss"], rel=1e-9)
    assert thinning.thin(home, db, NOW, 90, newest=NEWEST).steps == 0, "running it twice thins nothing more"


def test_no_aggregate_lies_across_the_beginning_of_a_branch(long_run: tuple[Home, Database]) -> None:
    home, db = long_run
    thinning.thin(home, db, NOW, 90, newest=NEWEST)
    edge = STEPS // 2 + 130
    with db.read() as connection:
        found = connection.execute(sa.select(tables.journal_aggregates)).all()
    assert not [row for row in found if row.branch == 0 and row.first_step <= edge < row.last_step]
    assert all(row.last_step - row.first_step + 1 == row.steps <= thinning.STEPS for row in found)
    assert not [row for row in found if row.first_step <= STEPS // 2 + 50 < row.last_step], "nor across two files"


def test_what_a_checkpoint_may_replay_stays(home: Home, db: Database) -> None:
    fill(db, [step(n) for n in range(1, STEPS + 1)])
    assert thinning.thin(home, db, NOW, 90, newest=NEWEST).steps == 0, (
        "without a checkpoint all of it would be replayed"
    )
    checkpoint(home, 250)
    assert thinning.thin(home, db, NOW, 90, newest=NEWEST).steps == 250
    assert journal.find_step(db, 0, 250) is None
    assert journal.find_step(db, 0, 251) is not None


def test_the_newest_steps_stay_whatever_their_age(home: Home, db: Database) -> None:
    fill(db, [step(n) for n in range(1, 451)])
    checkpoint(home, 450)
    assert thinning.thin(home, db, NOW, 90, newest=NEWEST).steps == 450 - NEWEST
    last = journal.last_step(db)
    assert last is not None
    assert last.step == 450


def test_samples_become_a_count(home: Home, db: Database) -> None:
    for number in range(6):
        journal.add_sample(db, number, "p", "g", "a", match=number % 3 == 0)
    before = journal.sample_counts(db)
    later = datetime.now(UTC) + timedelta(days=91)
    for _ in range(2):
        thinning.thin(home, db, later, 90)
        assert journal.sample_counts(db) == before == (6, 2)
    assert journal.latest_samples(db, 10) == []
    journal.add_sample(db, 9, "p", "g", "a", match=True)
    thinning.thin(home, db, later, 90)
    assert journal.sample_counts(db) == (7, 3)


def test_old_events_go(home: Home, db: Database) -> None:
    events.record(db, "test", "old")
    assert thinning.thin(home, db, datetime.now(UTC) + timedelta(days=89), 90).events == 0
    assert thinning.thin(home, db, datetime.now(UTC) + timedelta(days=91), 90).events == 1
    assert events.events(db) == []


def test_records_of_finished_workflows_go_and_waiting_ones_stay(home: Home) -> None:
    with jobs.client(home) as client:
        over, waiting = client.enqueue("evaluate", {}), client.enqueue("evaluate", {})
        client.cancel(over.id)
        later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
        assert client.forget("2020-01-01T00:00:00+00:00") == 0
        assert client.forget(later, dry_run=True) == 1
        assert client.forget(later) == 1
        assert client.forget(later) == 0
        assert set(client._workflows()) == {waiting.id}
        assert {job.id for job in client.list_jobs()} == {over.id, waiting.id}, "our rows stay"


def test_old_answers_lose_their_words_and_keep_their_scores(home: Home, db: Database) -> None:
    line = {"sample_id": "a", "suite": "s", "text": "words", "token_ids": [1], "token_logprobs": [-1.0], "score": 1.0}
    record = Evaluation("e1", "step:1", "ab" * 32, "f-1", {}, 1.0, "", "2026-01-01T00:00:00.000Z", step=1)
    saved = evaluations.save(
        home, db, record, lambda stage: (stage / "completions.jsonl").write_bytes(orjson.dumps(line) + b"\n")
    )
    ages, soon = RetentionConfig(), datetime.now(UTC) + timedelta(days=89)
    assert aging.age(home, soon, ages) == []
    later = datetime.now(UTC) + timedelta(days=91)
    for dry_run in (True, False):
        assert [found.kind for found in aging.age(home, later, ages, dry_run)] == ["answers"]
    assert aging.age(home, later, ages) == []
    assert evaluations.load(home, "e1") == saved
    assert verify(home.evaluations / "e1") == []
    kept = orjson.loads((home.evaluations / "e1" / "completions.jsonl").read_bytes())
    assert kept == {**line, "text": None, "token_ids": None, "token_logprobs": None}


LENGTHS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 250)), min_size=1, max_size=5)


@given(LENGTHS, st.lists(st.integers(1, 600), max_size=4))
@settings(max_examples=30, deadline=None)
def test_groups_are_short_whole_and_all_there(lengths: list[tuple[str, int]], edges: list[int]) -> None:
    names = [f"train-{name}" for name, length in lengths for _ in range(length)]
    steps = [step(number, job=job) for number, job in enumerate(names, 1)]
    found = list(thinning.groups(steps, edges))  # type: ignore[arg-type]  # attributes as of a row
    assert [one for group in found for one in group] == steps
    sums = [thinning.aggregate(group) for group in found]  # type: ignore[arg-type]
    for group, one in zip(found, sums, strict=True):
        assert len({each.job for each in group}) == 1
        assert len(group) <= thinning.STEPS
        assert not [edge for edge in edges if one["first_step"] <= edge < one["last_step"]]
    assert sum(one["tokens"] for one in sums) == sum(each.tokens for each in steps)
    assert sum(one["joules"] or 0.0 for one in sums) == sum(each.joules or 0.0 for each in steps)
    by_job: Counter[str] = Counter()
    for one in sums:
        by_job[one["job"]] += one["examples"]
    assert by_job == Counter({job: sum(s.examples for s in steps if s.job == job) for job in set(names)})
