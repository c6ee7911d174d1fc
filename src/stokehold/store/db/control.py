"""What a person or a signal asks of the running trainer: one row, read at every step."""

from typing import Literal, cast, get_args

import sqlalchemy as sa

from stokehold.core.errors import UsageError
from stokehold.store.db import tables
from stokehold.store.db.database import Database, upsert
from stokehold.store.files import utc_now

Command = Literal["pause", "resume", "stop", "skip"]
NAME = "trainer"
_OURS = tables.control.c.name == NAME


def request(db: Database, command: Command | None, free: bool = False) -> None:
    """Asks for `command`; the newest request stands alone. None takes it back. `free` with pause: give memory back."""
    if command is not None and command not in get_args(Command):
        raise UsageError("no such command", str(command), f"one of {', '.join(get_args(Command))}")
    with db.write() as connection:
        if command is None:
            connection.execute(tables.control.delete().where(_OURS))
        else:
            upsert(tables.control, connection, name=NAME, command=command, free=free, requested=utc_now())


def current(db: Database) -> Command | None:
    """What is asked for now, or None."""
    with db.read() as connection:
        row = connection.execute(sa.select(tables.control.c.command).where(_OURS)).one_or_none()
        return None if row is None else cast(Command, row.command)


def frees_memory(db: Database) -> bool:
    """Whether the present request wants the device's memory back (`pause --free`)."""
    with db.read() as connection:
        return bool(connection.execute(sa.select(tables.control.c.free).where(_OURS)).scalar())


def done(db: Database, command: Command) -> bool:
    """Takes `command` off once it was obeyed; False where another request came meanwhile, which then stays."""
    with db.write() as connection:
        gone = tables.control.delete().where(_OURS, tables.control.c.command == command)
        return connection.execute(gone).rowcount == 1
