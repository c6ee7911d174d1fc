"""What changed, pushed to a page at most once a second, as server-sent events.

The first round sends everything, so a page needs nothing else, and a connection that broke is made good by the next.
Events: `curve` (the whole journal, downsampled), `steps` (points after the last one sent), and by their names the
sections `status`, `queue`, `versions`, `evaluations`, `findings`, `events`, each when it differs from what was sent;
`fault` when something cannot be read now.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson
from sqlalchemy.exc import SQLAlchemyError

from stokehold.core.errors import StokeholdError
from stokehold.web.curve import POINTS
from stokehold.web.readings import Readings

INTERVAL_S = 1.0
MOST_POINTS = POINTS + POINTS // 2
"""A page that has collected this many points gets the whole curve anew, downsampled."""

DIGITS_COMPARED = 1
"""Digits of memory and disk in 10^9 bytes: what changes by less is no news."""

AGES = ("drill", "backup")
"""What the status tells the age of, which grows all the time: compared in whole minutes."""


@dataclass
class Sent:
    """What one page has."""

    sections: dict[str, bytes] = field(default_factory=dict)
    step: int = -1
    branch: int = -1
    points: int = 0


async def updates(readings: Readings, interval_s: float = INTERVAL_S) -> AsyncIterator[dict[str, str]]:
    """Events for `EventSourceResponse`, without end."""
    sent = Sent()
    while True:
        for event in await asyncio.to_thread(_round, readings, sent):
            yield event
        await asyncio.sleep(interval_s)


def _round(readings: Readings, sent: Sent) -> list[dict[str, str]]:
    sections: dict[str, Callable[[], Any]] = {
        "status": readings.status,
        "queue": readings.queue,
        "versions": readings.versions,
        "evaluations": readings.evaluations,
        "findings": readings.findings,
        "events": readings.recent_events,
    }
    found = []
    try:
        for name, read in sections.items():
            value = read()
            if _is_news(sent, name, value):
                found.append(_event(name, value))
        found += _curve(readings, sent)
    except (OSError, SQLAlchemyError, StokeholdError) as error:
        found.append(_event("fault", {"text": f"{type(error).__name__}: {error}"}))
    return found


def _is_news(sent: Sent, name: str, value: Any) -> bool:
    """Whether a section differs from what the page has; it has it from now on."""
    encoded = orjson.dumps(_without_noise(value) if name == "status" else value)
    news = sent.sections.get(name) != encoded
    sent.sections[name] = encoded
    return news


def _without_noise(status: dict[str, Any]) -> dict[str, Any]:
    """The status without what changes by itself all the time."""
    used_gb, free_gb = status["ram"]["used_gb"], status["disk"]["free_gb"]
    coarse = [None if value is None else round(value, DIGITS_COMPARED) for value in (used_gb, free_gb)]
    aged = {name: _in_minutes(status[name]) for name in AGES}
    return status | aged | {"timestamp": None, "ram": coarse[0], "disk": coarse[1]}


def _in_minutes(told: dict[str, Any] | None) -> dict[str, Any] | None:
    if told is None or told["age_s"] is None:
        return told
    return told | {"age_s": told["age_s"] // 60}


def _curve(readings: Readings, sent: Sent) -> list[dict[str, str]]:
    fresh = readings.curve(sent.step)
    if fresh.branch == sent.branch and sent.points + len(fresh.points) <= MOST_POINTS:
        name, curve = "steps", fresh
    else:  # the first round, a going back, or too many points
        name, curve = "curve", readings.curve()
        sent.branch, sent.points, sent.step = curve.branch, 0, -1
    sent.points += len(curve.points)
    if curve.points:
        sent.step = curve.points[-1]["step"]
    return [_event(name, asdict(curve))] if curve.points or name == "curve" else []


def _event(name: str, value: Any) -> dict[str, str]:
    return {"event": name, "data": orjson.dumps(value).decode()}
