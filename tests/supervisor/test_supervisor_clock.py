"""What the supervisor does when time was not ordinary; the readings of the clocks are handed in."""

from dataclasses import replace

from stokehold.store.db import events
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home
from stokehold.supervisor.main import Supervisor
from stokehold.telemetry import clock


def test_sleep_is_told_and_schedules_count_anew(home: Home, client: JobsClient) -> None:
    client.schedule("nightly", "snapshot", "0 3 * * *", "Europe/Berlin")
    supervisor = Supervisor(home, client, ())
    now = clock.look()
    supervisor._notice(now)
    assert events.events(client.db, kind="clock") == []
    (before,) = client._dbos.list_schedules()
    woken = replace(now, boot_s=now.boot_s + 7800, wall_s=now.wall_s + 7800)
    supervisor._notice(woken)
    supervisor._notice(woken)
    (told,) = events.events(client.db, kind="clock")
    assert told.text == "the machine slept for 2 h 10 min"
    assert told.data == {"slept_s": "7800", "set_s": "0"}
    (after,) = client._dbos.list_schedules()
    assert after["context"] != before["context"], "what makes a schedule begin its wait anew"
    for key in ("schedule_name", "workflow_name", "schedule", "cron_timezone", "queue_name"):
        assert after[key] == before[key]
