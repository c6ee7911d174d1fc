"""Logs are put aside while a process writes them, and every line of it is somewhere, once."""

import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from stokehold.store.logs import Log, aside, reopen, thin, writes_to
from stokehold.store.parent import GO, LOG

NOON = datetime(2026, 3, 4, 12).astimezone()
DAY = timedelta(days=1)

WRITER = """
import os, sys
from pathlib import Path
from stokehold.store.parent import listen, wait_for_go
pipe, log = int(sys.argv[1]), Path(sys.argv[2])
begin = wait_for_go(pipe, log)
print("began", begin, flush=True)
listen(pipe, log, lambda: os._exit(0))
for number in range(1_000_000):
    print(f"out {number}", flush=True)
    os.write(2, f"err {number}\\n".encode())
"""


def log_of(path: Path, text: str, when: datetime) -> Log:
    path.write_text(text)
    os.utime(path, (when.timestamp(), when.timestamp()))
    return Log(path)


def test_a_log_is_put_aside_when_its_day_is_over_or_it_has_grown(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    log = log_of(path, "yesterday", NOON - DAY)
    assert log.put_aside(NOON)
    assert [p.read_text() for p in aside(tmp_path)] == ["yesterday"]
    path.write_text("today")
    assert not log.put_aside(NOON + DAY / 4)
    assert log.put_aside(NOON + DAY / 3, most_bytes=5), "it has grown"
    path.write_text("still today")
    assert not log.put_aside(NOON - 400 * DAY), "a clock that was set back begins no day"
    assert log.put_aside(NOON + DAY)
    assert [p.read_text() for p in aside(tmp_path)] == ["still today", "today", "yesterday"]


def test_an_empty_log_and_none_are_left(tmp_path: Path) -> None:
    assert not log_of(tmp_path / "web.log", "", NOON - DAY).put_aside(NOON)
    assert not Log(tmp_path / "none.log").put_aside(NOON)
    assert aside(tmp_path) == []


def test_the_oldest_go_by_number_and_by_bytes_and_a_clock_takes_none(tmp_path: Path) -> None:
    for name, bytes_each in (("web", 10), ("trainer", 100)):
        for day in range(5):
            (tmp_path / f"{name}.log.2026030{day}T000000Z").write_bytes(b"x" * bytes_each)
        (tmp_path / f"{name}.log").write_text("now")
    assert {p.name for p in thin(tmp_path, kept=4)} == {"web.log.20260300T000000Z", "trainer.log.20260300T000000Z"}
    thin(tmp_path, kept=4, kept_bytes=229)
    left = sorted(p.name.replace("T000000Z", "") for p in aside(tmp_path))
    assert left == ["trainer.log.20260303", "trainer.log.20260304", "web.log.20260303", "web.log.20260304"]
    assert len(thin(tmp_path, kept_bytes=0)) == 2, "the newest of each stays"
    assert (tmp_path / "web.log").read_text() == "now"


def test_no_line_is_lost_while_a_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "trainer.log"
    reading, writing = os.pipe()
    with path.open("ab") as output:
        command = [sys.executable, "-c", WRITER, str(reading), str(path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.Popen(command, stdout=output, stderr=output, pass_fds=(reading,), env=environment)
    os.close(reading)
    log = Log(path)
    os.write(writing, GO)
    now, rotations = datetime.now().astimezone(), 0
    while rotations < 5:
        assert child.poll() is None
        if path.exists() and path.stat().st_size > 2000 and log.put_aside(now := now + DAY):
            os.write(writing, LOG)
            rotations += 1
    os.close(writing)
    assert child.wait(60) == 0
    pieces = [*reversed(aside(tmp_path)), *([path] if path.exists() else [])]
    assert len(aside(tmp_path)) == 5
    whole = [line for piece in pieces for line in piece.read_text().splitlines()]
    assert whole.pop(0) == "began True"
    for kind in ("out", "err"):
        numbers = [int(line.split()[1]) for line in whole if line.startswith(kind)]
        assert numbers == list(range(len(numbers))), "each once, in order"
    assert len({path.stat().st_ino for path in pieces}) == len(pieces)


def test_it_is_known_whether_a_file_is_ours(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours.log", tmp_path / "other.log"
    other.write_text("")
    with ours.open("ab") as stream:
        assert writes_to(ours, stream.fileno())
        assert not writes_to(other, stream.fileno())
        os.write(stream.fileno(), b"before\n")
        ours.rename(tmp_path / "aside")
        assert not writes_to(ours, stream.fileno())
        reopen(ours, (stream.fileno(),))
        os.write(stream.fileno(), b"after\n")
    assert ((tmp_path / "aside").read_text(), ours.read_text()) == ("before\n", "after\n")


def test_a_log_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        reopen(tmp_path / "nowhere" / "x.log")
