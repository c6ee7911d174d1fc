"""What is done every night: in processes of their own, one failure harming no other, on the schedule of DBOS."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from stokehold.core.config import Config
from stokehold.core.records import JobState
from stokehold.pipeline import upkeep
from stokehold.store.backup import backups, nights, offsite
from stokehold.store.db import events, job_rows, tables
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home
from stokehold.supervisor.main import Supervisor
from waiting import PATIENCE_S, until


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", Config())


@pytest.fixture
def client(home: Home) -> Iterator[JobsClient]:
    with JobsClient(home) as client:
        yield client


def age(client: JobsClient) -> None:
    """The first job was long ago."""
    job_rows.register(client.db, "train-a", "train", {"file": "a", "dataset": "d", "run": "a"}, "c" * 64, 1)
    with client.db.write() as connection:
        connection.execute(tables.jobs.update().values(created="2020-01-01T00:00:00.000Z", state="completed"))


def test_a_night_takes_a_snapshot_and_one_failing_duty_leaves_the_others(home: Home, client: JobsClient) -> None:
    text = home.config_path.read_text().replace('backup_to = ""', f'backup_to = "{home.root}"')
    home.write_config(text)
    state = upkeep.run(home, client.db, {"job": "sched-nightly-1"})
    assert state is JobState.FAILED
    failed = events.events(client.db, kind="upkeep_failed")
    assert [event.data["duty"] for event in failed] == ["backup"]
    assert "a home is no place for a backup" in failed[0].text
    done = events.events(client.db, kind="upkeep")
    assert [event.data["duty"] for event in done] == ["drill", "retention"]
    assert "backup" in (job_rows.get_job(client.db, "sched-nightly-1").error or "")
    assert len(backups.list_snapshots(home)) == 1, "the snapshot itself was taken"
    result = offsite.last_result(home)
    assert result is not None
    assert not result.ok


def test_the_schedule_is_at_three_in_the_zone_of_the_machine_and_asks_for_no_lost_night(
    home: Home, client: JobsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    upkeep.start(home, client)
    (found,) = client._dbos.list_schedules()
    assert (found["schedule"], found["cron_timezone"], found["queue_name"]) == ("0 3 * * *", "Europe/Berlin", "upkeep")
    assert not found["automatic_backfill"]
    assert client.list_jobs() == [], "a home of today has nothing to make up for"
    monkeypatch.setenv("TZ", "nowhere")
    ZoneInfo(nights.time_zone())


def test_a_home_without_a_snapshot_of_the_night_has_one_once(home: Home, client: JobsClient) -> None:
    age(client)
    now = datetime.now(UTC)
    for _ in range(3):
        upkeep.start(home, client)
    (waiting,) = client.list_jobs([JobState.QUEUED])
    assert waiting.id == f"snapshot-{nights.last_night(now):%Y%m%d}"
    backups.snapshot(home, client.db, "by hand")
    assert not nights.is_missed(home, client.db, datetime.now(UTC))


def test_a_night_is_missed_when_three_oclock_passed_without_a_snapshot(
    home: Home, client: JobsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    taken = datetime.fromisoformat(backups.snapshot(home, client.db, "by hand").created)
    day = nights.last_night(taken + timedelta(days=1)) + timedelta(days=1)  # a night after it
    at = [day + timedelta(seconds=s) for s in (-1, 0, 5 * 3600)]
    assert [nights.last_night(moment) for moment in at] == [day - timedelta(days=1), day, day]
    assert {moment.hour for moment in map(nights.last_night, at)} == {3}
    assert nights.is_missed(home, client.db, at[1])
    assert not nights.is_missed(home, client.db, taken + timedelta(seconds=1))
    assert nights.is_missed(home, client.db, taken - timedelta(days=400)), "a snapshot of the future says nothing"
    made = nights.make_up(home, client, at[2])
    assert made is not None
    assert made.id == f"snapshot-{day:%Y%m%d}"
    assert nights.make_up(home, client, at[2]) is None, "it waits already"
    job_rows.set_state(client.db, made.id, JobState.FAILED)
    assert nights.make_up(home, client, at[2]) is None, "once for each night"
    assert nights.make_up(home, client, at[2] + timedelta(days=1)) is not None


def test_a_night_that_the_machine_slept_through_is_made_up_when_it_wakes(home: Home, client: JobsClient) -> None:
    age(client)
    upkeep.start(home, client)
    (of_the_start,) = client.list_jobs([JobState.QUEUED])
    job_rows.set_state(client.db, of_the_start.id, JobState.COMPLETED)
    with client.db.write() as connection:
        connection.execute(tables.jobs.delete().where(tables.jobs.c.id == of_the_start.id))
    supervisor = Supervisor(home, client, [])
    before = supervisor._clocks
    supervisor._notice(
        replace(before, monotonic_s=before.monotonic_s + 60, boot_s=before.boot_s + 60, wall_s=before.wall_s + 60)
    )
    assert client.list_jobs([JobState.QUEUED]) == [], "nothing was noticed"
    slept = supervisor._clocks
    supervisor._notice(replace(slept, boot_s=slept.boot_s + 7 * 3600, wall_s=slept.wall_s + 7 * 3600))
    assert [job.kind for job in client.list_jobs([JobState.QUEUED])] == ["snapshot"]
    told = [event.text for event in events.events(client.db)]
    assert "the machine slept for 7 h" in told
    assert any("the snapshot of the night is made up" in text for text in told)


WORKER = """
import sys, time
from pathlib import Path
from stokehold.pipeline import upkeep
from stokehold.store.db import jobs
from stokehold.store.home import Home
home = Home.open(Path(sys.argv[1]))
client = jobs.client(home)
upkeep.start(home, client)
jobs.launch(home, "trainer-0", ["upkeep"])
time.sleep(600)
"""


def test_a_worker_does_it_and_the_row_of_a_triggered_run_says_so(home: Home, client: JobsClient) -> None:
    age(client)
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(home.root)])
    try:
        job = f"snapshot-{nights.last_night(datetime.now(UTC)):%Y%m%d}"
        until(lambda: any(each.id == job and each.state is JobState.COMPLETED for each in client.list_jobs()), home)
    finally:
        worker.kill()
        worker.wait()
    assert "of the night" in [found.reason for found in backups.list_snapshots(home)]
    assert {event.data["duty"] for event in events.events(client.db, kind="upkeep")} == set(upkeep.DUTIES)


def test_a_duty_ends_with_the_worker_that_asked_for_it(home: Home) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    command = [sys.executable, "-m", "stokehold.pipeline.upkeep", "--home", str(home.root), "--parent-fd", str(reading)]
    with home.lock("blobs", "the test: the duty waits for this"):
        done = subprocess.run([*command, "backup"], pass_fds=[reading], timeout=PATIENCE_S, check=False)
    os.close(reading)
    assert done.returncode == 1
    assert backups.list_snapshots(home) == []
