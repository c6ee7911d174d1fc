"""What grows old is made small in one step each: broken off anywhere, it is as it was or as it was to become."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from matrix import every_fault
from test_store_thinning import NEWEST, NOW, STEPS, checkpoint, fill, step

from stokehold.core.config import Config, RetentionConfig
from stokehold.core.records import Evaluation
from stokehold.store.db import journal, tables
from stokehold.store.db.database import Database, connect
from stokehold.store.files import read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import aging, thinning
from stokehold.store.judged import evaluations

LINE = {"sample_id": "a", "suite": "s", "text": "words", "token_ids": [1], "token_logprobs": [-1.0], "score": 1.0}
ANSWERS = orjson.dumps(LINE) + b"\n"
BARE = orjson.dumps({**LINE, "text": None, "token_ids": None, "token_logprobs": None}) + b"\n"
NOTES = b"of the evaluation, kept" * 20
AGED = ("logs/trainer.log.1", "sessions/one/one.csv")


def aged(root: Path) -> None:
    """An evaluation with its answers, a session that ended, a log put aside."""
    home = Home.create(root, Config())
    db = connect(home)

    def write(stage: Path) -> None:
        (stage / aging.COMPLETIONS).write_bytes(ANSWERS)
        (stage / "notes.txt").write_bytes(NOTES)

    evaluations.save(home, db, Evaluation("e1", "step:1", "ab" * 32, "f", {}, 1.0, "", "2026-01-01T00:00:00Z"), write)
    db.close()
    (home.sessions / "one").mkdir()
    (home.sessions / "one" / "one_metadata.json").write_bytes(orjson.dumps({"summary": {"seconds": 1}}))
    for name in AGED:
        (home.root / name).write_text("old")


def grow_old(home: Home) -> None:
    aging.age(home, datetime.now(UTC) + timedelta(days=400), RetentionConfig())


def grown_old(home: Home, _told: str | None) -> str:
    """The record, its notes and the session's summary are always there; all is done when nothing is left to do."""
    folder = home.evaluations / "e1"
    if verify(folder):
        return "named"
    assert (folder / "notes.txt").read_bytes() == NOTES
    thinned = aging.THINNED in read_manifest(folder)
    assert (folder / aging.COMPLETIONS).read_bytes() == (BARE if thinned else ANSWERS)
    assert (home.sessions / "one" / "one_metadata.json").is_file()
    return "new" if thinned and not any((home.root / name).exists() for name in AGED) else "old"


def test_aging_under_every_fault(tmp_path: Path) -> None:
    counts = every_fault(aged, grow_old, grown_old, tmp_path)
    assert counts["kill"]["old"]
    assert counts["flip"]["named"], "a bit that turned in what was copied is seen"


def long_run(root: Path) -> None:
    home = Home.create(root, Config())
    db = connect(home)
    fill(db, [step(number) for number in range(1, STEPS + 1)])
    for number in range(6):
        journal.add_sample(db, number, "p", "g", "a", match=number % 3 == 0)
    with db.write() as connection:
        connection.execute(tables.samples.update().values(created="2026-01-01T00:00:00.000Z"))
    checkpoint(home, STEPS - 200)
    db.close()


def counting(home: Home, db: Database) -> None:
    """Makes each statement of a transaction, and each commit, a place where the disk may fail."""

    def reached(*_given: Any) -> None:
        home.disk.sync(home.status)

    sa.event.listen(db.engine, "before_cursor_execute", reached)
    sa.event.listen(db.engine, "commit", reached)


def thin(home: Home) -> None:
    db = connect(home)
    counting(home, db)
    thinning.thin(home, db, NOW, 90, newest=NEWEST)
    db.close()


def thinned(home: Home, _told: str | None) -> str:
    """Whatever was thinned so far, the ledger and the counts of samples are what they were."""
    db = connect(home)
    try:
        whole = sum(1 + number % 4 for number in range(1, STEPS + 1))
        assert journal.examples_by_dataset(db, STEPS) == {"of-train-a": whole}
        assert journal.sample_counts(db) == (6, 2)
        left = thinning.thin(home, db, NOW, 90, dry_run=True, newest=NEWEST)
        return "old" if left.steps or left.samples else "new"
    finally:
        db.close()


def test_thinning_killed_at_every_statement(tmp_path: Path) -> None:
    counts = every_fault(long_run, thin, thinned, tmp_path, ("kill",))
    assert counts["kill"]["old"] > 10
    assert counts["kill"]["new"]
