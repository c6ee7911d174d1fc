"""Ages by a clock that somebody sets: what is not certain to be old stays."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.config import Config
from stokehold.store.backup.backups import list_snapshots, snapshot
from stokehold.store.blobs import BlobStore
from stokehold.store.db.database import Database
from stokehold.store.home import Home
from stokehold.store.housekeeping import ages, retention, trash
from stokehold.store.housekeeping.ages import ACROSS_S, SLACK_S, Look, present_s
from stokehold.store.models import versions
from stokehold.store.models.checkpoints import checkpoint_folder, publish_checkpoint
from tiny_world import safetensors

DAY_S, YEAR_S = 24 * 3600.0, 365 * 24 * 3600.0
THEN_S = 1_800_000_000.0
WALL, BOOT = time.time, time.clock_gettime


def test_the_clock_of_an_honest_machine_is_believed(home: Home) -> None:
    assert present_s(home, Look(THEN_S, "a", 100.0)) == THEN_S
    for days in (1, 10, 100):
        now = Look(THEN_S + days * DAY_S, "a", 100.0 + days * DAY_S)
        assert present_s(home, now) == now.wall_s


def test_a_clock_set_forward_by_a_year_ages_nothing(home: Home) -> None:
    present_s(home, Look(THEN_S, "a", 100.0))
    assert present_s(home, Look(THEN_S + YEAR_S, "a", 160.0)) == THEN_S + 60.0 + SLACK_S
    assert present_s(home, Look(THEN_S + YEAR_S, "b", 5.0)) <= THEN_S + ACROSS_S + 60.0 + 2 * SLACK_S
    assert present_s(home, Look(THEN_S + 120.0, "b", 65.0)) == THEN_S + 120.0, "and set right again"


def test_a_machine_that_wakes_in_1970_and_asks_for_the_time_goes_on(home: Home) -> None:
    present_s(home, Look(THEN_S, "a", 100.0))
    assert present_s(home, Look(60.0, "b", 5.0)) == 60.0
    assert present_s(home, Look(THEN_S + 300.0, "b", 10.0)) == THEN_S + 300.0


def test_a_damaged_note_is_begun_anew(home: Home) -> None:
    for content in (b"{", b"[]", b'{"wall_s": 1}'):
        (home.status / ages.FILE).write_bytes(content)
        assert present_s(home, Look(THEN_S, "a", 1.0)) == THEN_S


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e8, 1e8), st.booleans()), max_size=12))
def test_whatever_is_done_to_the_clock_no_more_passes_than_did(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[tuple[float, float, bool]]
) -> None:
    home = Home.create(tmp_path_factory.mktemp("ages") / "home", Config())
    wall_s, boot, boot_s, bound_s = THEN_S, 0, 100.0, present_s(home, Look(THEN_S, "0", 100.0))
    for passed_s, set_s, restarted in rounds:
        wall_s += passed_s + set_s
        boot, boot_s = (boot + 1, passed_s) if restarted else (boot, boot_s + passed_s)
        bound_s += (max(ACROSS_S, passed_s) if restarted else passed_s) + SLACK_S
        found = present_s(home, Look(wall_s, str(boot), boot_s))
        assert found <= wall_s
        assert found <= bound_s + 1e-3


def weights(stage: Path) -> None:
    (stage / "model.safetensors").write_bytes(safetensors(b"weights"))


def test_neither_trash_nor_retention_believes_a_clock_that_jumped(
    home: Home, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        publish_checkpoint(home, step, weights, {"step": step})
        versions.create(home, db, checkpoint_folder(home, step))
        snapshot(home, db, "a test")
    trash.discard(home, checkpoint_folder(home, 1), "set aside")
    trash.discard(home, checkpoint_folder(home, 2), trash.PRUNED)
    blob = BlobStore(home.blobs).add(home.config_path)
    assert trash.empty(home) == []
    clock, boots = time.time, time.clock_gettime
    monkeypatch.setattr(time, "time", lambda: clock() + YEAR_S)
    assert trash.empty(home) == []
    assert [line for line in retention.run(home, db).lines if not line.keep] == []
    assert len(versions.list_versions(home)) == len(list_snapshots(home)) == len(trash.listing(home)) == 2
    assert BlobStore(home.blobs).path(blob).is_file()
    monkeypatch.setattr(time, "clock_gettime", lambda which: boots(which) + YEAR_S)
    assert trash.empty(home) == ["checkpoints/step_000000001", "checkpoints/step_000000002"], "a year did pass"


def shift(monkeypatch: pytest.MonkeyPatch, wall_s: float, boot_s: float = 0.0) -> None:
    """Sets the wall clock, and the one since boot, so much ahead of the machine's."""
    monkeypatch.setattr(time, "time", lambda: WALL() + wall_s)
    monkeypatch.setattr(time, "time_ns", lambda: int((WALL() + wall_s) * 1e9))
    monkeypatch.setattr(time, "clock_gettime", lambda which: BOOT(which) + boot_s)


@pytest.mark.parametrize("was_off", [True, False])
def test_what_is_thrown_away_while_the_wall_clock_is_ahead_goes_when_its_time_is_over(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_off: bool
) -> None:
    present_s(home)
    if was_off:  # from Friday to Tuesday; otherwise somebody set the clock
        (tmp_path / "boot_id").write_text("another start of the machine")
        monkeypatch.setattr(ages, "BOOT_ID", tmp_path / "boot_id")
    shift(monkeypatch, 4 * DAY_S)
    publish_checkpoint(home, 1, weights, {"step": 1})
    trash.discard(home, checkpoint_folder(home, 1), trash.PRUNED)
    assert trash.empty(home) == []
    over_s = trash.PRUNED_KEEP_S + 60.0
    shift(monkeypatch, 4 * DAY_S + over_s, over_s)
    assert trash.empty(home) == ["checkpoints/step_000000001"]


def test_two_of_a_name_that_come_at_one_moment_both_have_a_place(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    wall_s, boot_s = WALL(), BOOT(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(time, "time", lambda: wall_s)
    monkeypatch.setattr(time, "time_ns", lambda: int(wall_s * 1e9))
    monkeypatch.setattr(time, "clock_gettime", lambda _which: boot_s)
    gone = []
    for _ in range(2):
        publish_checkpoint(home, 1, weights, {"step": 1})
        gone.append(trash.discard(home, checkpoint_folder(home, 1), "set aside"))
    assert trash.find(home, checkpoint_folder(home, 1)) == gone[::-1], "the newest first"
