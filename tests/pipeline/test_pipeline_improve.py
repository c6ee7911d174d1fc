"""Generated files come in by the front door, hold nothing that is held out, and stop where a person said."""

from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from bench import Bench

from stokehold.core.identity import is_holdout, prompt_hash
from stokehold.core.records import Evaluation, JobState, SuiteResult, SuiteState, Verdict
from stokehold.data.formats import from_row
from stokehold.improvement.corrections import FORMS, INCORRECT, MADE_AS
from stokehold.pipeline.improve import own_mistakes, write_next_file
from stokehold.pipeline.judge import evaluate_ref
from stokehold.pipeline.readings import past_of
from stokehold.pipeline.suites import open_suites
from stokehold.store.datasets import dataset_folder
from stokehold.store.db import journal
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.judged.items import write_items
from stokehold.tasks.registry import draw, identity_of, row
from tiny_world import write_jsonl

ROWS = 40
FAMILY = "arithmetic"
"""Its questions are short enough for the context of the tiny model."""


@pytest.fixture
def world(make_home: Callable[..., Home]) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**improvement: object) -> Bench:
        tables = {"improvement": {"enabled": True, "family": FAMILY, "rows": ROWS, "levels": (1, 2), **improvement}}
        home = make_home(**tables, data={"max_length": 2048}, evaluation={"max_new_tokens": 4})
        held = [row(sample) for level in (1, 2) for sample in draw(FAMILY, level, 3, 0, "holdout")]
        write_jsonl(home.suites / "easy.jsonl", held)
        made.append(Bench(home))
        return made[-1]

    yield make
    for one in made:
        one.close()


def judged(one: Bench) -> str:
    return evaluate_ref(one.home, one.db, one.home.config(), "base").id


def generated(one: Bench) -> list[Path]:
    return sorted(one.home.inbox.glob("generated-*.jsonl"))


def test_a_generated_file_passes_the_firewall_and_answers_failures(world: Callable[..., Bench]) -> None:
    one = world()
    identity = judged(one)
    written = write_next_file(one.home, one.client, identity, "improve-a")
    (file,) = generated(one)
    assert written.file == file.name == "generated-a.jsonl"
    job = one.client.submit_file(file)
    one.drain(["ingest"])
    assert (one.state(job), generated(one)) == (JobState.COMPLETED, [])
    dataset = one.queued("train")[0].dataset
    assert dataset is not None
    folder = dataset_folder(one.home, dataset)
    rows = [from_row(orjson.loads(line)) for line in (folder / "rows.jsonl").read_bytes().splitlines()]
    assert (len(rows), (folder / "rejected.jsonl").read_bytes()) == (ROWS, b"")
    held = {identity_of(sample) for suite in open_suites(one.home) for sample in suite.samples}
    assert None not in held
    assert not held & {identity_of(sample) for sample in rows}
    assert any(sample.metadata.get("parent") for sample in rows), "what the model got wrong is answered"


def test_corrections_come_in_by_the_front_door_and_hold_nothing_held_out(world: Callable[..., Bench]) -> None:
    one = world(correction_share=0.4)
    known = [row(sample) for sample in draw(FAMILY, 1, 6, 8, "train")]
    one.dataset("known.jsonl", known)
    asked, gold = (message["content"] for message in known[0]["messages"])
    journal.add_sample(one.db, 5, asked, gold, "a wrong answer", False)
    journal.add_sample(one.db, 6, "held out by now", "gold", "wrong", False)
    (mistake,) = own_mistakes(one.home, one.db)
    assert (mistake.sample.question[-1].content, mistake.answer) == (asked, "a wrong answer")
    assert write_next_file(one.home, one.client, judged(one), "improve-a").file
    job = one.client.submit_file(generated(one)[0])
    one.drain(["ingest"])
    dataset = next(found.dataset for found in one.client.list_jobs() if found.file == job.file and found.dataset)
    folder = dataset_folder(one.home, dataset)
    assert (folder / "rejected.jsonl").read_bytes() == b""
    rows = [from_row(orjson.loads(line)) for line in (folder / "rows.jsonl").read_bytes().splitlines()]
    corrected = [sample for sample in rows if MADE_AS in sample.metadata]
    assert {form: sum(s.metadata[MADE_AS] == form for s in corrected) for form in FORMS} == dict.fromkeys(FORMS, 4)
    own = [sample for sample in corrected if sample.metadata.get("wrong_by") == "model"]
    assert [identity_of(sample) for sample in own] == [identity_of(mistake.sample)]
    assert "a wrong answer" in own[0].question[-1].content
    assert own[0].gold in (INCORRECT, gold)
    items = [sample for suite in open_suites(one.home) for sample in suite.samples]
    assert not {identity_of(sample) for sample in items} & {identity_of(sample) for sample in rows}
    assert not any(is_holdout(identity) for sample in rows if (identity := identity_of(sample)))
    assert not {prompt_hash(sample.messages) for sample in items} & {prompt_hash(sample.messages) for sample in rows}
    questions = [sample.question[-1].content for sample in items]
    assert not [s for s in corrected if any(asked in s.question[-1].content for asked in questions)]


def test_suites_of_other_families_do_not_change_what_is_generated_next(world: Callable[..., Bench]) -> None:
    def level_shares(**more: dict[str, float]) -> list[int]:
        one = world(failure_share=0.0)
        by_level = {"1": {"exact": 0.5, "n": 6}, "2": {"exact": 0.5, "n": 6}}
        results = {"easy": SuiteResult("easy", SuiteState.OK, 12, exact=0.5, by_level=by_level)}
        for name, level in more.items():
            write_jsonl(
                one.home.suites / f"{name}.jsonl", [{"prompt": "a?", "completion": "b", "metadata": {"level": 1}}]
            )
            results[name] = SuiteResult(name, SuiteState.OK, 99, exact=1.0, by_level={"1": level})
        record = Evaluation(f"{3:016}", "r", "w", "how-what", results, 0.1, "", "2026-01-01T00:00:03Z", 30)
        evaluations.save(one.home, one.db, record, lambda folder: write_items(folder, []))
        assert write_next_file(one.home, one.client, record.id, "improve-a").file
        rows = [orjson.loads(line) for line in generated(one)[0].read_bytes().splitlines()]
        return sorted(row["metadata"]["level"] for row in rows)

    alone = level_shares()
    assert alone == [1] * (ROWS // 2) + [2] * (ROWS // 2)
    assert level_shares(own={"exact": 1.0, "n": 99}) == alone


def test_the_same_job_writes_its_file_once(world: Callable[..., Bench]) -> None:
    one = world()
    identity = judged(one)
    assert write_next_file(one.home, one.client, identity, "improve-a").file
    before = generated(one)[0].read_bytes()
    assert write_next_file(one.home, one.client, identity, "improve-a").file is None
    assert [file.read_bytes() for file in generated(one)] == [before]
    one.client.submit_file(generated(one)[0])
    one.drain(["ingest"])
    assert "written already" in write_next_file(one.home, one.client, identity, "improve-a").reason
    assert generated(one) == []


def test_the_governor_bounds_the_loop(world: Callable[..., Bench]) -> None:
    one = world(max_files=2, max_depth=1)
    identity = judged(one)
    reasons = [write_next_file(one.home, one.client, identity, f"improve-{name}").reason for name in "abc"]
    assert len(generated(one)) == 2
    assert "max_files is 2" in reasons[2]
    deep = world(max_depth=0)
    identity = judged(deep)
    assert write_next_file(deep.home, deep.client, identity, "improve-a").file
    assert "max_depth is 0" in write_next_file(deep.home, deep.client, identity, "improve-b").reason
    off = world(enabled=False)
    assert "enabled is false" in write_next_file(off.home, off.client, judged(off), "improve-a").reason


def test_the_curriculum_looks_back_in_the_order_of_training(world: Callable[..., Bench]) -> None:
    one = world()

    def stored(name: str, step: int | None, second: int) -> Evaluation:
        result = {"easy": SuiteResult("easy", SuiteState.OK, 6, exact=0.5)}
        created = f"2026-01-01T00:00:{second:02}.000Z"
        record = Evaluation(f"{name:0>16}", "r", name, "how-what", result, 0.1, "", created, step)
        return evaluations.save(one.home, one.db, record, lambda _: None)

    stored("2", 20, 2)
    present = stored("3", 30, 3)
    stored("4", 40, 4)  # a later one: its turn comes
    stored("b", None, 5)  # the base model, asked for last of all
    gone = stored("5", 25, 6)
    evaluations.record_decision(one.db, gone.id, Verdict.WORSE, "rollback")
    assert [found.step for found in past_of(one.home, one.db, present)] == [None, 20, 30]
