"""`stoke readings` and `stoke rank` on a home whose answers are stored: what a person sees, and what scripts get."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from stokehold.core.records import Evaluation, SuiteResult, SuiteState
from stokehold.store.db.database import connect
from stokehold.store.files import read_manifest
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.judged.items import COMPLETIONS, write_items
from stokehold.store.models import checkpoints, versions
from stokehold.store.models.references import resolve
from stokehold.tasks.registry import draw, row
from tiny_world import write_jsonl

ITEMS = 30
FAMILY = "arithmetic"


@pytest.fixture
def judged(make_home: Callable[..., Home]) -> Home:
    """The base, and a version of the very same weights, judged once; other weights were judged a step before."""
    home = make_home()
    db = connect(home)
    base = resolve(home, db, "base", read=False)
    weights = checkpoints.weights_hash(read_manifest(base)["files"])
    for number, (name, right) in enumerate((("other", 12), (weights, 20))):
        rows = [_row(item, item < right) for item in range(ITEMS)]
        result = SuiteResult("easy", SuiteState.OK, ITEMS, exact=right / ITEMS, exact_ci=(0.0, 1.0))
        created = f"2026-01-01T00:00:0{number}.000Z"
        record = Evaluation(f"{number:016}", "step", name, "how-what", {"easy": result}, 1.0, "", created, 10 + number)
        evaluations.save(home, db, record, _writer(rows))
    versions.create(home, db, base, evaluation=f"{1:016}", note="by hand")
    return home


def _row(item: int, right: bool) -> dict[str, Any]:
    said = {"text": "word", "token_ids": [1], "token_logprobs": [-0.5], "finish_reason": "stop"}
    facts = {"suite": "easy", "sample_id": str(item), "family": "syllo", "level": 2, "score": float(right)}
    return {**facts, **said, "gold_nll": 0.5, "gold_tokens": 2, "parts": {"format": float(right)}}


def _writer(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / COMPLETIONS).write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        write_items(folder, rows)

    return write


def test_readings_fill_a_screen_and_a_document(stoke: Any, judged: Home) -> None:
    shown = stoke("readings", home=judged).out
    for name in ("CURRICULUM", "MINING", "REGRESSION", "COMPARISON", "CALIBRATION", "CORRECTION"):
        assert f"\n{name}\n" in shown
    assert "+8" in shown
    assert "10 wrong, right ones are not mined; syllo level 2: 10" in shown
    answer = stoke("readings", "v0001", "--only", "mining", "--only", "correction", "--json", home=judged).answer
    assert answer["evaluation"] == f"{1:016}"
    assert {name: reading["state"] for name, reading in answer["readings"].items()} == {
        "mining": "ok",
        "correction": "ok",
    }
    assert answer["readings"]["mining"]["wrong"] == 10


def test_the_next_mix_stands_beside_the_family_that_is_generated_and_is_told_by_its_suites(
    stoke: Any, make_home: Callable[..., Home]
) -> None:
    home = make_home(improvement={"family": "syllo"})
    rows: list[dict[str, Any]] = []
    results: dict[str, SuiteResult] = {}
    # All of the sums are right: pooled with them, puzzles of level 1 would weigh as much as those of level 2.
    for suite, family, level, right in (
        ("puzzles", "syllo", 1, 2),
        ("puzzles", "syllo", 2, 5),
        ("sums", FAMILY, 1, 10),
    ):
        write_jsonl(home.suites / f"{suite}.jsonl", [row(one) for one in draw(family, 1, 2, 0, "holdout")])
        facts = {"suite": suite, "family": family, "level": level}
        rows += [{**_row(item, item < right), **facts, "sample_id": f"{level}-{item}"} for item in range(10)]
        by_level = {**(results[suite].by_level if suite in results else {}), str(level): {"exact": right / 10, "n": 10}}
        results[suite] = SuiteResult(suite, SuiteState.OK, 10, exact=right / 10, by_level=by_level)
    record = Evaluation(f"{1:016}", "step", "other", "how-what", results, 1.0, "", "2026-01-01T00:00:00.000Z", 10)
    evaluations.save(home, connect(home), record, _writer(rows))
    answer = stoke("readings", "--only", "curriculum", "--json", home=home).answer["readings"]["curriculum"]
    assert (answer["mix"], answer["mix_of"]) == (pytest.approx({"1": 0.21 / 0.51, "2": 0.30 / 0.51}), "syllo")
    shown = stoke("readings", "--only", "curriculum", home=home).out.splitlines()
    lines = {tuple(line.split()[:2]): line for line in shown}
    assert "41.2 %" in lines["syllo", "1"]
    assert "58.8 %" in lines["syllo", "2"]
    assert "41.2 %" not in lines[FAMILY, "1"]


def test_a_reading_that_is_not_there_is_named(stoke: Any, judged: Home) -> None:
    ended = stoke("readings", "--only", "minning", home=judged)
    assert ended.code == 2
    assert "there are: curriculum" in ended.error
    assert stoke("readings", "v0009", home=judged).code == 1


def test_rank_leaves_ties_ties(stoke: Any, judged: Home) -> None:
    answer = stoke("rank", "--json", home=judged).answer
    places = {place["name"]: (place["rank"], place["rank_ci"], place["exact"]) for place in answer["places"]}
    assert places == {name: (1, [1, 2], pytest.approx(20 / ITEMS)) for name in ("base", "v0001")}
    assert (answer["items"], answer["pairs"], answer["left_out"]) == (ITEMS, 1, {})
    shown = stoke("rank", home=judged).out
    assert "no difference seen" in shown
    assert "30 items that all of them answered, by exact match" in shown


def test_nothing_to_rank_says_why(stoke: Any, judged: Home) -> None:
    assert "v0001: not judged on hard" in stoke("rank", "--suite", "hard", home=judged).error
