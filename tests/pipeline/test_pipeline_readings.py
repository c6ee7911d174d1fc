"""Readings of a real home: answers made once are read again without a model, and one fault harms one reading."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from bench import Bench

from stokehold.core.errors import NotFoundError, UsageError
from stokehold.core.records import Evaluation
from stokehold.pipeline.judge import evaluate_ref
from stokehold.pipeline.readings import NAMES, READINGS, find, past_of, readings, stored_rows
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.judged.items import COMPLETIONS
from tiny_world import facts, held_out_facts, write_jsonl

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from stokehold.pipeline.readings import main
main(["--home", sys.argv[1], *sys.argv[2:]])
assert sys.modules["torch"] is None
assert not [name for name in sys.modules if name.startswith(("torch.", "transformers"))]
"""


@pytest.fixture
def judged_twice(make_home: Callable[..., Home]) -> Iterator[tuple[Bench, Evaluation, Evaluation]]:
    """The base, and what 30 steps made of it."""
    home = make_home()
    rows = held_out_facts()
    for number, row in enumerate(rows):
        row["metadata"] = {"level": 1 + number % 2}
    write_jsonl(home.suites / "easy.jsonl", rows)
    one = Bench(home)
    first = evaluate_ref(home, one.db, home.config(), "base")
    one.submit("facts.jsonl", facts(300))
    one.drain()
    yield one, first, evaluations.list_evaluations(home, one.db, limit=1)[0]
    one.close()


def states(found: dict[str, Any]) -> dict[str, str]:
    return {name: reading["state"] for name, reading in found["readings"].items()}


def run(home: Home, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(home.root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = orjson.loads(done.stdout)
    return answer


def test_stored_answers_are_read_without_a_model(judged_twice: tuple[Bench, Evaluation, Evaluation]) -> None:
    one, first, second = judged_twice
    found = run(one.home)
    assert found["evaluation"] == second.id
    assert states(found) == dict.fromkeys(NAMES, "ok")
    read = found["readings"]
    assert sum(kind["n"] for kind in read["curriculum"]["kinds"]) == 40
    assert read["curriculum"]["mix"] == {}, "these items are of no family, and say nothing of what is generated next"
    (change,) = read["regression"]["against"]
    assert (change["parts"], change["evaluation"], change["items"]) == (["previous"], first.id, 40)
    assert change["comparison"]["verdict"] == "BETTER"
    assert [place["name"] for place in read["comparison"]["places"]] == [read["comparison"]["present"], "base"]
    assert read["calibration"]["pooled"]["n"] == 40
    assert read["correction"]["wrong"] == sum(row["score"] < 1 for row in stored_rows(one.home, second))
    again = run(one.home, first.id, "--only", "mining", "--only", "regression")
    assert states(again) == {"mining": "ok", "regression": "ok"}
    (later,) = again["readings"]["regression"]["against"]
    assert (later["parts"], later["comparison"]["verdict"]) == (["champion", "best"], "WORSE")
    assert run(one.home, "base")["evaluation"] == first.id


def test_answers_may_be_read_before_they_are_stored(judged_twice: tuple[Bench, Evaluation, Evaluation]) -> None:
    one, _, second = judged_twice
    alone = [name for name in NAMES if name != "comparison"]
    stored = readings(one.home, one.db, second, only=alone)
    rows = stored_rows(one.home, second)
    folder = evaluations.evaluation_folder(one.home, second.id)
    folder.rename(folder.with_name(".elsewhere"))
    assert readings(one.home, one.db, second, rows, only=alone) == stored
    assert states(readings(one.home, one.db, second, rows)) == dict.fromkeys(NAMES, "ok")


def test_without_words_the_readings_of_items_remain(judged_twice: tuple[Bench, Evaluation, Evaluation]) -> None:
    one, _, second = judged_twice
    (Path(second.path) / COMPLETIONS).unlink()
    found = readings(one.home, one.db, second)
    gone = dict.fromkeys(("mining", "calibration", "correction"), "no_data")
    assert states(found) == {**dict.fromkeys(NAMES, "ok"), **gone}
    assert "thinned" in found["readings"]["mining"]["reason"]
    assert {kind["level"] for kind in found["readings"]["curriculum"]["kinds"]} == {1, 2}, "told by the suite"


def test_a_reading_that_raises_harms_no_other(
    judged_twice: tuple[Bench, Evaluation, Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, second = judged_twice

    def fail(_: object) -> dict[str, Any]:
        raise ZeroDivisionError("no reading")

    monkeypatch.setitem(READINGS, "mining", fail)  # type: ignore[misc]
    monkeypatch.setitem(READINGS, "calibration", lambda _: {"ece": [float("nan")]})  # type: ignore[misc]
    found = readings(one.home, one.db, second)
    broken = {"mining": "broken", "calibration": "broken"}
    assert states(found) == {**dict.fromkeys(NAMES, "ok"), **broken}
    assert found["readings"]["mining"] == {"state": "broken", "reason": "ZeroDivisionError: no reading"}
    assert found["readings"]["calibration"]["reason"] == "a number is not finite"


def test_other_conditions_are_not_compared(judged_twice: tuple[Bench, Evaluation, Evaluation]) -> None:
    one, _, second = judged_twice
    tree = one.home.config().model_dump(mode="json")
    config = type(one.home.config()).model_validate({**tree, "evaluation": {**tree["evaluation"], "max_new_tokens": 9}})
    other = evaluate_ref(one.home, one.db, config, "latest")
    assert other.how != second.how
    found = readings(one.home, one.db, other, only=("regression", "comparison"))
    assert states(found) == {"regression": "no_data", "comparison": "no_data"}


def test_what_is_not_there_is_named(judged_twice: tuple[Bench, Evaluation, Evaluation], make_home: Any) -> None:
    one, _, second = judged_twice
    with pytest.raises(UsageError, match="there are: curriculum, mining"):
        readings(one.home, one.db, second, only=("minning",))
    with pytest.raises(NotFoundError, match="nothing goes by this name"):
        find(one.home, one.db, "v9999x")
    assert find(one.home, one.db, None).id == second.id
    assert [e.id for e in past_of(one.home, one.db, second)][-1] == second.id
