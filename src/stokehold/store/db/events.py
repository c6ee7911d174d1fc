"""What happened, for people: a bounded log in the database, in order of its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from stokehold.store.db import tables
from stokehold.store.db.database import Database
from stokehold.store.files import utc_now

KEPT = 20_000
"""Events kept by `trim`: months of a machine that trains a file an hour."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: its number, its kind (a word), a sentence, and what a program may want of it."""

    id: int
    kind: str
    text: str
    data: Mapping[str, Any]
    created: str


def record(db: Database, kind: str, text: str, **data: Any) -> int:
    """Writes an event; returns its number. `data` must be JSON."""
    with db.write() as connection:
        row = tables.events.insert().values(kind=kind, text=text, data=data, created=utc_now())
        number = connection.execute(row).inserted_primary_key
    assert number is not None
    return int(number[0])


def events(db: Database, since: int | None = None, limit: int = 100, kind: str | None = None) -> list[Event]:
    """Oldest first: those after number `since`, or, without it, the newest `limit`."""
    column = tables.events.c
    query = sa.select(tables.events).limit(limit)
    query = query.order_by(column.id.desc()) if since is None else query.order_by(column.id).where(column.id > since)
    if kind is not None:
        query = query.where(column.kind == kind)
    with db.read() as connection:
        found = [Event(r.id, r.kind, r.text, r.data, r.created) for r in connection.execute(query)]
    return found[::-1] if since is None else found


def trim(db: Database, kept: int = KEPT) -> int:
    """Drops the oldest beyond `kept`; returns how many."""
    with db.write() as connection:
        bound = sa.select(tables.events.c.id).order_by(tables.events.c.id.desc()).offset(kept).limit(1)
        last = connection.execute(bound).scalar()
        if last is None:
            return 0
        return connection.execute(tables.events.delete().where(tables.events.c.id <= last)).rowcount


def older(db: Database, before: str) -> int:
    """How many events are from before this time, ISO 8601 in UTC."""
    with db.read() as connection:
        query = sa.select(sa.func.count()).select_from(tables.events).where(tables.events.c.created < before)
        return int(connection.execute(query).scalar() or 0)


def trim_older(db: Database, before: str) -> int:
    """Drops them; returns how many."""
    with db.write() as connection:
        return connection.execute(tables.events.delete().where(tables.events.c.created < before)).rowcount
