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

ITEMS = 30


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
