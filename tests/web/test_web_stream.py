"""What the stream pushes: everything first, then only what changed; and the whole curve when it must."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from stokehold.core.records import Step
from stokehold.store.db import control, events, journal
from stokehold.store.db.database import Database
from stokehold.store.home import Home
from stokehold.web import stream
from stokehold.web.readings import FRESH_S, Readings
from stokehold.web.stream import Sent, updates

Make = Callable[..., Step]
SECTIONS = ["status", "queue", "versions", "evaluations", "findings", "events"]


class Listener:
    """Collects a stream's events by name."""

    def __init__(self, readings: Readings) -> None:
        self._source: AsyncIterator[dict[str, str]] = updates(readings, interval_s=0.02)

    async def other_than_status(self) -> tuple[str, Any]:
        """The next event that is not about the machine's changing memory."""
        while True:
            found = await self.next()
            if found[0] != "status":
                return found

    async def take(self, count: int) -> list[tuple[str, Any]]:
        return [await self.next() for _ in range(count)]

    async def next(self) -> tuple[str, Any]:
        event = await asyncio.wait_for(anext(self._source), 60)
        return event["event"], orjson.loads(event["data"])

    async def until(self, *names: str) -> Any:
        """The next event of each name, whichever comes first: a dictionary where several are wanted."""
        found: dict[str, Any] = {}
        while missing := set(names) - set(found):
            name, value = await self.next()
            if name in missing:
                found[name] = value
        return found if len(names) > 1 else found[names[0]]


@pytest.fixture
def listener(home: Home, db: Database) -> Listener:
    return Listener(Readings(home, db))


def test_the_first_round_brings_everything_and_then_silence(listener: Listener) -> None:
    async def listen() -> None:
        assert [name for name, _ in await listener.take(len(SECTIONS) + 1)] == [*SECTIONS, "curve"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listener.other_than_status(), 2 * FRESH_S)

    asyncio.run(listen())


def test_new_steps_come_as_points_and_a_going_back_as_a_new_curve(
    listener: Listener, db: Database, make_step: Make
) -> None:
    async def listen() -> None:
        journal.append(db, make_step(1))
        assert [p["step"] for p in (await listener.until("curve"))["points"]] == [1]
        for number in (2, 3):
            journal.append(db, make_step(number))
        found = await listener.until("status", "steps")
        assert [p["step"] for p in found["steps"]["points"]] == [2, 3]
        assert found["status"]["current_step"] == 3
        await asyncio.sleep(FRESH_S)
        branch = journal.new_branch(db, 1, "worse")
        journal.append(db, make_step(2, loss=9.0, branch=branch))
        again = (await listener.until("curve"))["points"]
        assert [(p["step"], p["loss"]) for p in again] == [(1, 1.0), (2, 9.0)]

    asyncio.run(listen())


def test_a_page_that_collected_many_points_gets_the_curve_anew(
    listener: Listener, db: Database, make_step: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MOST_POINTS", 3)

    async def listen() -> None:
        journal.append(db, make_step(1))
        await listener.until("curve")
        for number in (2, 3, 4):
            await asyncio.sleep(FRESH_S if number == 4 else 0)
            journal.append(db, make_step(number))
            name = "curve" if number == 4 else "steps"
            assert (await listener.until(name))["points"][-1]["step"] == number

    asyncio.run(listen())


def test_only_the_section_that_changed_is_sent(listener: Listener, db: Database) -> None:
    async def listen() -> None:
        await listener.take(len(SECTIONS) + 1)
        events.record(db, "note", "hello")
        name, value = await listener.other_than_status()
        assert (name, value[-1]["text"]) == ("events", "hello")

    asyncio.run(listen())


def test_a_fault_is_said_and_the_stream_goes_on(listener: Listener, home: Home, db: Database) -> None:
    async def listen() -> None:
        await listener.take(len(SECTIONS) + 1)
        good = home.config_path.read_bytes()
        home.config_path.write_text("[web]\nprot = 1\n")
        assert "did you mean web.port" in (await listener.until("fault"))["text"]
        home.config_path.write_bytes(good)
        control.request(db, "pause")
        events.record(db, "note", "after")
        assert (await listener.until("events"))[-1]["text"] == "after"

    asyncio.run(listen())


def test_a_damaged_evaluation_is_left_out_and_told_and_the_rest_is_shown(
    listener: Listener, judge: Callable[..., Any]
) -> None:
    judge(1, 0.5)
    record = Path(judge(2, 0.6).path) / "manifest.json"
    record.write_bytes(record.read_bytes()[:-2])

    async def listen() -> None:
        found = dict(await listener.take(len(SECTIONS) + 1))
        assert list(found) == [*SECTIONS, "curve"]
        assert [one["id"] for one in found["evaluations"]] == ["e1"]
        assert found["findings"]["evaluation"] == "e1"
        assert "evaluation_damaged" in {alert["kind"] for alert in found["status"]["active_alerts"]}

    asyncio.run(listen())


def test_the_age_of_a_backup_or_drill_is_no_news_within_a_minute(home: Home, db: Database) -> None:
    def aged(seconds: float) -> dict[str, Any]:
        return status | {name: {"ok": True, "age_s": seconds} for name in stream.AGES}

    status, sent = Readings(home, db).status(), Sent()
    seconds = (60.0, 60.001, 119.9, 120.0)
    assert [stream._is_news(sent, "status", aged(second)) for second in seconds] == [True, False, False, True]
    none_yet = status | {"backup": {"ok": False, "age_s": None}, "drill": None}
    assert stream._is_news(sent, "status", none_yet)
