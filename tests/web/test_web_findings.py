"""The eight readings on the page: real answers, read when they were judged, in a line each."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.testclient import TestClient

from pipeline.bench import Bench
from stokehold.core.records import Evaluation
from stokehold.pipeline.judge import evaluate_ref
from stokehold.store.db.database import Database
from stokehold.store.home import Home
from stokehold.web.app import create_app
from tiny_world import facts, held_out_facts, write_jsonl

SIX = ["curriculum", "mining", "regression", "comparison", "calibration", "correction"]
NAMES = ["checkpoint_sync", "fixed_tests", *SIX]


@pytest.fixture
def bench(make_home: Callable[..., Home]) -> Iterator[Bench]:
    home = make_home()
    rows = held_out_facts()[:20]
    for number, row in enumerate(rows):
        row["metadata"] = {"level": 1 + number % 2}
    write_jsonl(home.suites / "facts.jsonl", rows)
    opened = Bench(home)
    yield opened
    opened.close()


@pytest.fixture
def ask(bench: Bench) -> Iterator[Callable[[], Any]]:
    """What the page is told, each time by a page that has kept nothing."""

    def asked() -> Any:
        app = create_app(bench.home, bench.db, "127.0.0.1")
        with TestClient(app, "http://127.0.0.1", headers={"authorization": f"Bearer {bench.home.token()}"}) as api:
            return api.get("/api/findings").json()

    return asked


def test_real_readings_have_a_line_each(bench: Bench, ask: Callable[[], Any]) -> None:
    base = evaluate_ref(bench.home, bench.db, bench.home.config(), "base")
    first = ask()
    assert (first["evaluation"], first["ref"], first["created"]) == (base.id, "base", base.created)
    assert [one["name"] for one in first["readings"]] == NAMES
    told = {one["name"]: one for one in first["readings"]}
    assert [one["name"] for one in first["readings"] if one["state"] == "no_data"] == ["regression", "comparison"]
    assert "nothing earlier was judged alike" in told["regression"]["line"]
    assert told["fixed_tests"]["line"] == "facts 0.0 % of 20"
    bench.submit("facts.jsonl", facts(200))
    bench.drain()
    second = ask()
    assert second["evaluation"] != base.id
    told = {one["name"]: one for one in second["readings"]}
    assert {one["state"] for one in told.values()} == {"ok"}
    kept = orjson.loads((bench.home.evaluations / second["evaluation"] / "readings.json").read_bytes())["readings"]
    change, pooled = kept["regression"]["against"][0], kept["calibration"]["pooled"]
    assert f"previous: +{change['gained']} −{change['lost']}, " in told["regression"]["line"]
    assert told["comparison"]["line"].startswith("rank 1 of 2 ")
    assert f"ECE {pooled['ece']:.3f} on 20 items" in told["calibration"]["line"]
    assert told["mining"]["line"].startswith(f"{kept['mining']['wrong']} wrong; most: own level ")
    assert told["curriculum"]["line"].startswith("weakest: own level ")
    assert "error pattern" in told["correction"]["line"]


def test_readings_that_are_missing_or_damaged_are_said_to_be(
    api: TestClient, home: Home, db: Database, judge: Callable[..., Evaluation]
) -> None:
    def six(number: int) -> set[tuple[str | None, str | None]]:
        app = create_app(home, db, "127.0.0.1")
        with TestClient(app, "http://127.0.0.1", headers=api.headers) as fresh:
            found = fresh.get("/api/findings").json()
        assert found["ref"] == f"step:{number}"
        assert [one["state"] for one in found["readings"][:2]] == ["ok", "ok"]
        return {(one["state"], one["line"]) for one in found["readings"][2:]}

    assert api.get("/api/findings").json() == {"evaluation": None, "ref": None, "created": None, "readings": []}
    path = Path(judge(10, 0.5).path) / "readings.json"
    assert six(10) == {(None, None)}
    for content in (b"{", b"[]", b'{"readings": 3}'):
        path.write_bytes(content)
        assert [(state, "`stoke readings` makes them anew" in str(line)) for state, line in six(10)] == [
            ("broken", True)
        ]
    path.write_bytes(orjson.dumps({"readings": {name: {"state": "ok"} for name in SIX}}))
    assert {(state, "it cannot be shown: KeyError" in str(line)) for state, line in six(10)} == {("broken", True)}
