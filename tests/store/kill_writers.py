"""Kills processes at random while four of them write to one database; run by test_store_kills.py.

    python kill_writers.py FOLDER KILLS SEED

Each writer says the number of a row on a pipe after its commit has returned, and is killed at a random moment, alone or
with all the others. Every row that was said must be there, and the rows of a writer have no gap. Prints JSON.
"""

import json
import os
import random
import select
import signal
import sqlite3
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from stokehold.store.db.database import Database, connect

WRITERS = 4
LONGEST_S = 0.03
"""Bound of the wait before a kill."""
STARTING_SHARE = 0.2
"""How often one is killed that may have said nothing yet: it is opening the database, or mending it."""
PATIENCE_S = 60.0
ALL_SHARE = 0.15
"""How often all die at once, so that nobody is left who has the log open."""
CHECK_EVERY = 50
NUMBER_BYTES = 8

rows = sa.Table(
    "rows",
    sa.MetaData(),
    sa.Column("writer", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
)


@dataclass
class Writer:
    """A living writer: its process, the end of its pipe, and the last number it said."""

    pid: int
    pipe: int
    said: int = 0
    met: bool = False

    def wait(self) -> None:
        """Until it has said something."""
        if not self.met:
            assert select.select([self.pipe], [], [], PATIENCE_S)[0], "a writer is stuck"
            self.listen()

    def listen(self) -> None:
        """Takes in what it has said so far."""
        while select.select([self.pipe], [], [], 0.0)[0]:
            heard = os.read(self.pipe, 1024 * NUMBER_BYTES)
            if not heard:
                return
            self.met = True
            self.said = int.from_bytes(heard[-NUMBER_BYTES:], "little")


def write(url: str, writer: int, pipe: int) -> None:
    """The child: rows without end."""
    db: Database = connect(url)
    with db.read() as connection:
        query = sa.select(sa.func.max(rows.c.number)).where(rows.c.writer == writer)
        number = connection.execute(query).scalar() or 0
    while True:
        number += 1
        with db.write() as connection:
            connection.execute(rows.insert().values(writer=writer, number=number, text="x" * (number % 5000)))
        os.write(pipe, number.to_bytes(NUMBER_BYTES, "little"))


def start(url: str, writer: int) -> Writer:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        write(url, writer, writing)
    os.close(writing)
    return Writer(pid, reading)


def kill(victims: list[Writer]) -> None:
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    for victim in victims:
        os.waitpid(victim.pid, 0)
        victim.listen()
        os.close(victim.pipe)


def kept(path: Path, said: list[int]) -> None:
    """Every row that was said, and no gap."""
    connection = sqlite3.connect(path, timeout=60)
    found = connection.execute("SELECT writer, count(*), max(number) FROM rows GROUP BY writer").fetchall()
    connection.close()
    there = {writer: (count, newest) for writer, count, newest in found}
    for writer, number in enumerate(said):
        count, newest = there.get(writer, (0, 0))
        assert count == newest, f"writer {writer} has {count} rows up to {newest}"
        assert newest >= number, f"writer {writer} was told that {number} is kept, and there is {newest}"


def whole(path: Path) -> None:
    connection = sqlite3.connect(path, timeout=60)
    (answer,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    assert answer == "ok", answer


def prepare(url: str) -> None:
    """In a child, so that the process that forks has never opened the database."""
    if (pid := os.fork()) == 0:
        db = connect(url)
        with db.write() as connection:
            rows.create(connection)
        db.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def run(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """How many were killed, how many of them at work, how many rows they said, how often the file was checked whole."""
    rng, path = random.Random(seed), folder / "stoke.db"
    url = f"sqlite:///{path}"
    prepare(url)
    writers = [start(url, number) for number in range(WRITERS)]
    killed = at_work = checks = 0
    said = [0] * WRITERS
    while killed < kills:
        chosen = list(range(WRITERS)) if rng.random() < ALL_SHARE else [rng.randrange(WRITERS)]
        if rng.random() >= STARTING_SHARE:
            for number in chosen:
                writers[number].wait()
        time.sleep(rng.uniform(0.0, LONGEST_S))
        kill([writers[number] for number in chosen])
        for number in chosen:
            said[number] = max(said[number], writers[number].said)
            at_work += writers[number].met
        kept(path, said)
        if killed // CHECK_EVERY != (killed := killed + len(chosen)) // CHECK_EVERY or killed >= kills:
            whole(path)
            checks += 1
        for number in chosen:
            writers[number] = start(url, number)
        for writer in writers:
            writer.listen()
    kill(writers)
    kept(path, [max(before, writer.said) for before, writer in zip(said, writers, strict=True)])
    whole(path)
    return {"kills": killed, "at_work": at_work, "rows_said": sum(said), "integrity_checks": checks + 1}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
