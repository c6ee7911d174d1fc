"""Each alert rule, just on either side of its limit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stokehold.core.config import Config
from stokehold.core.records import Evaluation, Step, SuiteResult, SuiteState
from stokehold.store.backup.drills import Drill
from stokehold.store.backup.offsite import Standing
from stokehold.store.db import events
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home
from stokehold.supervisor import alerts
from stokehold.supervisor.facts import Facts, Machine
from stokehold.supervisor.main import REMIND_S, Supervisor
from stokehold.supervisor.status import from_facts
from stokehold.supervisor.trainer import Trainer

Make = Callable[..., Step]
NOW = "2026-01-01T01:00:00.000Z"


def judged(step: int, exact: float = 0.5, state: SuiteState = SuiteState.OK) -> Evaluation:
    result = SuiteResult("syllo", state, n=100, exact=exact, nll_per_token=1.0, reason="canary failed")
    return Evaluation(f"e{step}", f"step:{step}", "w", "f", {"syllo": result}, 1.0, "", NOW, step=step)


def kinds(facts: Facts) -> set[str]:
    return {alert["kind"] for alert in from_facts(facts)["active_alerts"]}


def test_loss_spike_is_twice_the_recent_mean(make_step: Make) -> None:
    usual = [make_step(n, loss=1.0) for n in range(1, 20)]
    assert alerts.loss_spike([*usual, make_step(20, loss=2.0)]) is None
    assert alerts.loss_spike([*usual, make_step(20, loss=2.01)]) is not None
    assert alerts.loss_spike([make_step(1, loss=1.0), make_step(2, loss=9.0)]) is None


@pytest.mark.parametrize(("norm", "told"), [(100.0, False), (100.1, True), (1e-7, False), (0.9e-7, True), (1.0, False)])
def test_gradient_norm_limits(make_step: Make, norm: float, told: bool) -> None:
    assert (alerts.grad_norm([make_step(1, grad_norm=norm)]) is not None) is told
    assert alerts.grad_norm([]) is None


def test_plateau_needs_fifty_evaluations_without_a_point_of_progress() -> None:
    assert alerts.plateau([0.5] * 49) is None
    assert alerts.plateau([0.5] * 50) is not None
    assert alerts.plateau([0.5] * 25 + [0.52] * 25) is None
    assert alerts.plateau([0.5] * 25 + [0.505] * 25) is not None
    assert alerts.plateau([1.0] * 50) is None


def test_throughput_below_sixty_percent_of_what_is_usual(make_step: Make) -> None:
    usual = [make_step(n, tokens=100, seconds=1.0) for n in range(1, 61)]
    slow = [make_step(n, tokens=59, seconds=1.0) for n in range(61, 71)]
    fair = [make_step(n, tokens=61, seconds=1.0) for n in range(61, 71)]
    assert alerts.throughput([*usual, *slow]) is not None
    assert alerts.throughput([*usual, *fair]) is None
    assert alerts.throughput(slow) is None


def test_limits_on_readings_and_the_unknown_is_silent() -> None:
    assert alerts.above("ece", "x", 0.31, 0.3) is not None
    assert alerts.above("ece", "x", 0.3, 0.3) is None
    assert alerts.above("ece", "x", None, 0.3) is None
    assert alerts.disk_low(4.9) is not None
    assert alerts.disk_low(5.0) is None
    assert alerts.disk_low(None) is None


def test_restarts_of_the_last_ten_minutes_and_roles_given_up() -> None:
    child: dict[str, Any] = {"role": "trainer", "state": "running", "log": "trainer.log", "exits": []}
    now_s = 1000.0
    recent = {"boot_s": 400.5, "exit": -9, "how": "was ended by SIGKILL", "said": ""}
    old = {"boot_s": 399.5, "exit": 1, "how": "ended with exit code 1", "said": "no model here"}
    earlier_boot = old | {"boot_s": 5000.0}
    assert alerts.restarts([child], now_s) == []
    assert alerts.restarts([child | {"exits": [earlier_boot, old]}], now_s) == []
    assert [a.kind for a in alerts.restarts([child | {"exits": [old, recent]}], now_s)] == ["worker_restarted"]
    (given_up,) = alerts.restarts([child | {"exits": [old], "state": "stopped"}], now_s)
    assert (given_up.kind, given_up.severity) == ("crash_loop", "critical")
    assert "ended with exit code 1 again and again: no model here; correct it, then `stoke up`" in given_up.text


def test_a_broken_suite_and_a_stale_evaluator(make_step: Make) -> None:
    broken = alerts.evaluator_broken(judged(1, state=SuiteState.BROKEN))
    assert broken is not None
    assert "canary failed" in broken.text
    assert alerts.evaluator_broken(judged(1)) is None
    steps = [make_step(n) for n in range(1, 40)]
    often, ends = (Config.model_validate({"training": {"eval_steps": n}}) for n in (10, 0))
    assert alerts.evaluator_stale(steps, [judged(9)], often) is None
    assert alerts.evaluator_stale(steps, [replace(judged(8), seconds=0.0)], often) is not None
    slow = replace(judged(8), seconds=sum(step.seconds for step in steps))
    assert alerts.evaluator_stale(steps, [slow], often) is None, "it waits for its share of the time"
    always = Config.model_validate({"training": {"eval_steps": 10}, "evaluation": {"overhead": 0}})
    assert alerts.evaluator_stale(steps, [slow], always) is not None
    assert alerts.evaluator_stale(steps, [], ends) is None
    files = [make_step(n, job=f"train-{n}") for n in range(1, 4)]
    assert alerts.evaluator_stale(files, [], ends) is not None
    assert alerts.evaluator_stale(files, [judged(3)], ends) is None


def at_work(state: str, **facts: object) -> Trainer:
    return Trainer(state, 1, None, True, 0.0, facts)


def test_every_rule_reaches_the_payload(make_step: Make) -> None:
    """One home with everything wrong at once, and one with nothing wrong."""
    steps = [make_step(n, tokens=900) for n in range(1, 60)] + [make_step(n, tokens=90) for n in range(60, 71)]
    steps[-1] = replace(steps[-1], loss=4.0, grad_norm=200.0)
    evaluations = [judged(n) for n in range(1, 51)]
    bad = SuiteResult("syllo", SuiteState.OK, n=10, exact=0.5, nll_per_token=5.0, ece=0.31)
    broken = SuiteResult("inbox", SuiteState.BROKEN, n=0, reason="canary failed")
    evaluations[-1] = replace(evaluations[-1], suites={"syllo": bad, "inbox": broken})
    exits = [{"boot_s": 900.0, "exit": -9, "how": "was ended by SIGKILL", "said": ""}]
    facts = Facts(
        Config.model_validate({"training": {"eval_steps": 5}, "evaluation": {"overhead": 0}}),
        NOW,
        trainer=at_work("training", telemetry={"gpu": {"temperature_c": 83.1}}),
        steps=steps,
        evaluations=evaluations,
        judged_loss=1.0,
        suites=2,
        machine=Machine(disk_free_gb=1.0),
        children=[{"role": "trainer", "state": "running", "log": "trainer.log", "exits": exits}],
        boot_s=1000.0,
        node_silence_s=121.0,
    )
    assert kinds(facts) == {
        *("loss_spike", "grad_norm", "plateau", "ece", "val_train_gap", "throughput", "disk_low"),
        *("worker_restarted", "evaluator_broken", "evaluator_stale", "node_away", "temperature"),
    }
    room = Machine(disk_free_gb=100.0)
    quiet = Facts(Config(), NOW, trainer=at_work("training"), steps=steps[:40], machine=room, node_silence_s=119.0)
    assert kinds(quiet) == set()


def test_a_full_disk_pauses_and_says_so() -> None:
    waiting = Facts(Config(), NOW, trainer=at_work("disk_full"), machine=Machine(disk_free_gb=0.0))
    found = from_facts(waiting)
    assert found["status"] == "paused"
    assert [(alert["kind"], alert["severity"]) for alert in found["active_alerts"]] == [("disk_full", "critical")]
    gone = replace(waiting, trainer=replace(at_work("disk_full"), alive=False))
    assert kinds(gone) == {"disk_low"}


def test_little_room_warns_and_very_little_makes_training_wait() -> None:
    config = Config().store
    found = [alerts.disk_short(share, config) for share in (None, 0.15, 0.149, 0.049)]
    assert [alert and (alert.kind, alert.severity) for alert in found] == [
        None,
        None,
        ("disk_short", alerts.WARNING),
        ("disk_pause", alerts.CRITICAL),
    ]


def standing(taken: str | None, **changes: Any) -> Standing:
    return Standing(**{"snapshot": "s", "taken": taken, "ok": True, "location": None, "error": None, **changes})


@pytest.mark.parametrize(
    ("backup", "location", "text"),
    [
        (None, "", None),
        (None, "/away", "nothing was copied to /away yet"),
        (standing("2025-12-30T01:00:00.000Z"), "", None),
        (standing("2025-12-30T00:59:59.000Z"), "", "last backup: 48 hours old"),
        (standing("2027-01-01T00:00:00.000Z"), "", None),
        (standing(None, location="/away"), "/away", "last backup in /away: none yet"),
        (
            standing("2025-12-22T01:00:00.000Z", ok=False, location="/away", error="cannot be reached"),
            "/away",
            "last backup in /away: 240 hours old; the last try: cannot be reached",
        ),
    ],
)
def test_two_nights_without_a_backup_are_told(backup: Standing | None, location: str, text: str | None) -> None:
    found = alerts.backup_stale(backup, location, NOW)
    assert (found.text if found else None) == text
    facts = Facts(Config.model_validate({"store": {"backup_to": location}}), NOW, backup=backup)
    assert ("backup_stale" in kinds(facts)) is (text is not None)


def test_a_drill_that_failed_is_told_until_one_succeeds() -> None:
    failed = Drill("v0007", False, "a log-probability is off by 2 nats", created=NOW)
    (told,) = from_facts(Facts(Config(), NOW, drill=failed))["active_alerts"]
    assert (told["kind"], told["severity"]) == ("drill_failed", alerts.CRITICAL)
    assert "v0007 failed: a log-probability is off by 2 nats; `stoke versions verify v0007`" in told["text"]
    for ok in (True, None):  # without anything recorded there is nothing to be told of
        assert kinds(Facts(Config(), NOW, drill=replace(failed, ok=ok))) == set()


def test_an_alert_that_stands_is_one_event_and_a_new_one_after_it_was_away(home: Home, client: JobsClient) -> None:
    supervisor = Supervisor(home, client, ())
    low = {"kind": "disk_low", "severity": alerts.CRITICAL, "text": "4.0 GB free"}

    def told(*seconds: float) -> int:
        for second in seconds:
            supervisor._tell_alerts([low], second)
            supervisor._tell_alerts([], second + 0.5)
        return len(events.events(client.db, kind="alert"))

    days = [number * REMIND_S / 2 for number in range(288)]
    assert told(*days) == 1
    assert told(days[-1] + REMIND_S) == 1, "it came and went"
    assert told(days[-1] + 2 * REMIND_S + 1) == 2
    (found,) = events.events(client.db, kind="alert", limit=1)
    assert (found.text, found.data) == ("disk_low: 4.0 GB free", {"severity": "critical"})
