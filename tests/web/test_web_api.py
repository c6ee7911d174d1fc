"""What the API says of a home with something in it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from stokehold.core.config import Config
from stokehold.core.records import Evaluation, JobState, Priority, Step, Verdict
from stokehold.store.db import control, events, job_rows, journal
from stokehold.store.db.database import Database, connect
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, versions
from stokehold.supervisor.status import payload
from stokehold.web.assets import PLOTLY, find
from stokehold.web.curve import read_curve
from tiny_world import safetensors

Make = Callable[..., Step]


def test_status_is_the_payload(api: TestClient, home: Home, db: Database, make_step: Make) -> None:
    journal.append(db, make_step(7, loss=2.5))
    found = api.get("/api/status").json()
    mine = payload(home, db)
    changing = {"timestamp", "ram", "disk", "active_alerts"}  # an alert quotes the room on the disk
    assert list(found) == list(mine)
    assert {k: v for k, v in found.items() if k not in changing} == {k: v for k, v in mine.items() if k not in changing}
    assert found["loss"] == 2.5


def test_queue_runs_from_the_top(api: TestClient, client: JobsClient) -> None:
    client.enqueue("train", {"file": "low"}, Priority.LOW, "train-low")
    client.enqueue("train", {"file": "first"}, Priority.NORMAL, "train-first")
    client.enqueue("train", {"file": "second"}, Priority.NORMAL, "train-second")
    client.enqueue("train", {"file": "high"}, Priority.HIGH, "train-high")
    client.enqueue("train", {"file": "now"}, Priority.LOW, "train-now")
    client.enqueue("train", {"file": "gone"}, Priority.HIGH, "train-gone")
    job_rows.begin(client.db, "train-now")
    job_rows.set_state(client.db, "train-gone", JobState.FAILED, "no usable line")
    found = api.get("/api/queue").json()
    assert [job["file"] for job in found] == ["now", "high", "first", "second", "low", "gone"]
    assert set(found[0]) == {"id", "file", "kind", "priority", "state", "progress", "attempt", "created"}
    assert found[-1]["error"] == "no usable line"


def test_versions_and_evaluations(api: TestClient, home: Home, db: Database, judge: Callable[..., Evaluation]) -> None:
    judge(None, 0.02)
    judged = judge(20, 0.4)
    evaluations.record_decision(db, judged.id, Verdict.BETTER, "promoted")

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(safetensors(b"weights"))
        (folder / "config.json").write_text("{}")

    checkpoint = checkpoints.publish_checkpoint(home, 20, write, {})
    version = versions.create(home, db, Path(checkpoint.path), evaluation=judged.id)
    versions.set_alias(home, db, "champion", version.name)
    found = api.get("/api/versions").json()
    series = api.get("/api/evaluations").json()
    assert found["champion"] == "v0001"
    assert [(v["name"], v["step"], v["exact"]) for v in found["versions"]] == [("v0001", 20, 0.4)]
    assert [(e["ref"], e["exact"], e["verdict"]) for e in series] == [("base", 0.02, None), ("step:20", 0.4, "BETTER")]
    assert series[1]["suites"]["syllo"]["exact_ci"] == pytest.approx([0.3, 0.5])


def test_control_is_asked_for_and_noted(api: TestClient, db: Database) -> None:
    for command in ("pause", "resume", "stop", "skip"):
        assert api.post(f"/api/control/{command}").json() == {"requested": command}
        assert control.current(db) == command
    assert api.post("/api/control/explode").status_code == 422
    assert api.get("/api/control/pause").status_code == 405
    assert control.current(db) == "skip"
    told = api.get("/api/events").json()
    assert [event["kind"] for event in told] == ["control"] * 4
    assert api.get("/api/events", params={"since": told[2]["id"]}).json() == told[3:]


def test_metrics_leave_out_what_is_unknown(api: TestClient, db: Database, make_step: Make) -> None:
    empty = api.get("/metrics").text
    journal.append(db, make_step(7, loss=2.5))
    while "stokehold_loss 2.5" not in (text := api.get("/metrics").text):
        assert "stokehold_loss 0" not in text
    assert "stokehold_loss" not in empty
    assert 'stokehold_state{state="idle"} 1.0' in empty
    assert "stokehold_current_step 7.0" in text
    assert "process_" not in text, "a registry of our own"


def test_assets_are_names_not_paths(api: TestClient) -> None:
    first = api.get("/static/page.css")
    assert first.headers["content-type"].startswith("text/css")
    again = api.get("/static/page.css", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert b"plotly.js v" in api.get("/static/plotly.js").content[:200]
    for name in ("..%2fapp.py", "../app.py", "%2e%2e/main.py", "__init__.py", ""):
        assert api.get(f"/static/{name}").status_code == 404
    assert find(PLOTLY) is find(PLOTLY)


def test_a_broken_database_is_an_answer_not_a_crash(api: TestClient, home: Home) -> None:
    assert api.get("/api/events").status_code == 200
    home.config_path.write_text("[web]\nprot = 1\n")
    answers = [api.get("/api/status") for _ in range(2)]
    assert {answer.status_code for answer in answers} == {400}
    assert "did you mean web.port" in answers[0].json()["error"]
    assert api.get("/health").status_code == 200


def test_journal_since_and_shape(api: TestClient, db: Database, make_step: Make) -> None:
    for number in range(1, 21):
        journal.append(db, make_step(number, loss=float(number), tokens=number, seconds=0.5))
    whole = api.get("/api/journal").json()
    rest = api.get("/api/journal", params={"since": 18}).json()
    assert api.get("/api/journal", params={"since": "x"}).status_code == 422
    assert (whole["width"], whole["steps"], len(whole["points"])) == (1, 20, 20)
    assert [point["step"] for point in rest["points"]] == [19, 20]
    assert rest["points"][1]["loss"] == 20.0
    assert rest["points"][1]["tokens_per_s"] == 40.0


@given(
    numbers=st.lists(st.integers(0, 3000), min_size=1, max_size=120, unique=True),
    points=st.integers(1, 40),
    since=st.integers(-1, 3000),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_curve_keeps_every_step_extreme_and_end(
    tmp_path_factory: pytest.TempPathFactory, make_step: Make, numbers: list[int], points: int, since: int
) -> None:
    home = Home.create(tmp_path_factory.mktemp("curve") / "home", Config())
    db = connect(home)
    losses = {number: (number * 7919) % 1009 / 100 for number in numbers}
    with db.write() as connection:
        for number, loss in losses.items():
            journal.append(db, make_step(number, loss=loss), connection)
    curve = read_curve(db, since, points)
    db.close()
    kept = {number: loss for number, loss in losses.items() if number > since}
    assert curve.steps == len(kept)
    assert len(curve.points) <= points
    assert [p["step"] for p in curve.points] == sorted(p["step"] for p in curve.points)
    if kept:
        assert curve.points[-1]["step"] == max(kept)
        assert min(p["loss_min"] for p in curve.points) == min(kept.values())
        assert max(p["loss_max"] for p in curve.points) == max(kept.values())
        assert all(p["loss_min"] <= p["loss"] + 1e-9 and p["loss"] <= p["loss_max"] + 1e-9 for p in curve.points)


def test_a_curve_shows_the_present_lineage_only(home: Home, db: Database, make_step: Make) -> None:
    for number in range(1, 11):
        journal.append(db, make_step(number, loss=1.0))
    branch = journal.new_branch(db, 5, "worse twice")
    journal.append(db, make_step(6, loss=9.0, branch=branch))
    curve = read_curve(db)
    assert [(p["step"], p["loss"]) for p in curve.points] == [(n, 1.0) for n in range(1, 6)] + [(6, 9.0)]
    assert curve.branch == branch
    assert events.events(db) == []
