"""The door: what becomes a job, what waits, what is refused; and that no byte is ever lost."""

import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stokehold.core.config import Config
from stokehold.core.records import JobState, Priority
from stokehold.store.db import job_rows, jobs
from stokehold.store.db.jobs import JobsClient
from stokehold.store.home import Home
from stokehold.supervisor.inbox import (
    EMPTY_S,
    FOLLOW_S,
    NEVER_WHOLE_S,
    RETRY_S,
    Inbox,
    free_name,
    is_whole,
    may_be_open_for_writing,
)

ROW = '{"messages": []}\n'
NOBODY = 65534
with tempfile.NamedTemporaryFile() as _probe:
    _closed = Path(f"{_probe.name}.closed")
    _closed.touch()
    TELLS = may_be_open_for_writing(Path(_probe.name)) and not may_be_open_for_writing(_closed)
    _closed.unlink()

Told = list[tuple[str, str]]
Look = Callable[[float], list[Any]]


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def look(home: Home, client: JobsClient, told: Told) -> Look:
    """One look at a given second."""
    return open_inbox(home, client, told).poll


def open_inbox(home: Home, client: JobsClient, told: Told) -> Inbox:
    return Inbox(home, client, lambda kind, text, _data: told.append((kind, text)))


def refused(home: Home) -> dict[str, str]:
    """Name → reason of everything refused; every reason stands beside its file."""
    folder = home.inbox / "refused"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    files = [name for name in names if not name.endswith(".reason.txt")]
    assert len(names) == 2 * len(files)
    return {name: (folder / f"{name}.reason.txt").read_text().strip() for name in files}


def test_a_file_is_taken_once_after_a_second_of_rest(home: Home, look: Look, told: Told) -> None:
    (home.inbox / "a.jsonl").write_text(ROW)
    assert look(0.0) == look(0.9) == []
    assert [job.file for job in look(1.0)] == ["a.jsonl"]
    assert look(2.0) == look(100.0) == []
    assert (home.inbox / "a.jsonl").read_text() == ROW
    assert [kind for kind, _ in told] == ["submitted"]


def test_a_file_that_rested_elsewhere_is_taken_as_it_is_renamed_in(home: Home, look: Look) -> None:
    part = home.inbox / "a.jsonl.part"
    part.write_text(ROW)
    os.utime(part, (0, 0))
    part.rename(home.inbox / "a.jsonl")
    assert [job.file for job in look(0.0)] == ["a.jsonl"]


@pytest.mark.skipif(not TELLS, reason="this file system does not say whether a file is open for writing")
@pytest.mark.parametrize("written_still", [False, True])
def test_a_file_just_written_is_taken_as_it_is_renamed_in_unless_its_writer_has_it_open(
    home: Home, look: Look, written_still: bool
) -> None:
    part = home.inbox / "a.jsonl.part"
    with part.open("w") as file:
        file.write(ROW)
        file.flush()
        before = part.stat().st_ctime_ns
        while part.stat().st_ctime_ns == before:  # the clock of the file system is coarse
            part.rename(home.inbox / "a.jsonl")
            part = home.inbox / "a.jsonl"
        if not written_still:
            file.close()
        assert [job.file for job in look(0.0)] == ([] if written_still else ["a.jsonl"])
    assert look(0.9) == []
    assert [job.file for job in look(1.0)] == (["a.jsonl"] if written_still else [])


def test_it_is_told_when_a_file_will_have_rested(home: Home, client: JobsClient, told: Told) -> None:
    inbox = open_inbox(home, client, told)
    assert inbox.due(0.0) == float("inf")
    (home.inbox / "a.jsonl").write_text(ROW)
    inbox.poll(0.0)
    assert inbox.due(0.25) == 0.75
    assert len(inbox.poll(1.0)) == 1
    assert inbox.due(1.0) == float("inf")


def test_growth_starts_the_second_afresh(home: Home, look: Look) -> None:
    path = home.inbox / "a.jsonl"
    path.write_text(ROW)
    look(0.0)
    path.write_text(ROW * 2)
    assert look(1.0) == look(1.9) == []
    assert len(look(2.0)) == 1


def test_the_folder_gives_the_priority(home: Home, look: Look) -> None:
    for number, folder in enumerate((home.inbox, *home.inboxes.values())):
        (folder / f"{number}.jsonl").write_text(f'{{"text": "{number}"}}')
    look(0.0)
    found = {(job.file, job.priority) for job in look(1.0)}
    assert found == {
        ("0.jsonl", Priority.NORMAL),
        ("1.jsonl", Priority.HIGH),
        ("2.jsonl", Priority.NORMAL),
        ("3.jsonl", Priority.LOW),
    }


@pytest.mark.parametrize("name", [".hidden.jsonl", "a.jsonl.tmp", "a.jsonl.part", ".~lock.a.jsonl"])
def test_what_is_being_written_under_another_name_is_left_alone(home: Home, look: Look, name: str) -> None:
    (home.inbox / name).write_text(ROW)
    assert look(0.0) == look(1.0) == look(100.0) == []
    assert (home.inbox / name).exists()


def test_half_a_line_is_waited_for_and_told_once(home: Home, look: Look, told: Told) -> None:
    path = home.inbox / "a.jsonl"
    path.write_text(ROW + '{"mess')
    for second in (0.0, 1.0, NEVER_WHOLE_S, NEVER_WHOLE_S + 1, NEVER_WHOLE_S + 50):
        assert look(second) == []
    assert [kind for kind, _ in told] == ["inbox"]
    path.write_text(ROW + ROW)
    look(200.0)
    assert len(look(201.0)) == 1


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        (b"a\n", True),
        (b'{"a": 1}', True),
        (b'x\n{"a": 1}', True),
        (b'{"a": 1', False),
        (b'{"a": "\xc3', False),
        (b" ", False),
        (b"[" * 100_000, False),
        (b'{"a":1}\n' * 800_000 + b'{"a": 1}', True),
        (b'"' + b"x" * (5 * 1024 * 1024) + b'"', False),
    ],
)
def test_wholeness_reads_the_last_line(tmp_path: Path, content: bytes, whole: bool) -> None:
    (tmp_path / "f").write_bytes(content)
    assert is_whole(tmp_path / "f") is whole


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers(-9, 9)), min_size=1, max_size=3), st.data())
@settings(max_examples=40)
def test_no_true_prefix_of_a_last_line_is_whole(rows: list[dict[str, int]], data: st.DataObject) -> None:
    content = b"\n".join(orjson.dumps(row) for row in rows)
    last = content.rpartition(b"\n")[2]
    cut = data.draw(st.integers(1, len(last) - 1)) if len(last) > 1 else 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(content)
        assert is_whole(path)
        path.write_bytes(content[: len(content) - cut] if cut else b"{")
        assert not is_whole(path)


def test_what_can_never_be_a_job_moves_with_its_reason(home: Home, look: Look, tmp_path: Path) -> None:
    outside = tmp_path / "outside.jsonl"
    outside.write_text(ROW)
    (home.inbox / "link.jsonl").symlink_to(outside)
    (home.inbox / "dangling.jsonl").symlink_to(tmp_path / "nowhere")
    (home.inbox / "folder").mkdir()
    (home.inbox / "folder" / "x.jsonl").write_text(ROW)
    os.mkfifo(home.inbox / "pipe.jsonl")
    (home.inbox / "empty.jsonl").touch()
    Path(os.fsdecode(os.fsencode(home.inbox) + b"/bad-\xff.jsonl")).write_text(ROW)
    assert look(0.0) == look(1.0) == look(1.0 + EMPTY_S) == []
    found = refused(home)
    assert set(found) == {"link.jsonl", "dangling.jsonl", "folder", "pipe.jsonl", "empty.jsonl", "bad-\ufffd.jsonl"}
    assert "symbolic link" in found["link.jsonl"]
    assert "empty" in found["empty.jsonl"]
    assert outside.read_text() == ROW, "a link is moved, never what it points to"
    assert (home.inbox / "refused" / "folder" / "x.jsonl").read_text() == ROW


def test_an_empty_file_has_time_to_be_written(home: Home, look: Look) -> None:
    path = home.inbox / "a.jsonl"
    path.touch()
    look(0.0)
    assert look(EMPTY_S - 0.1) == []
    path.write_text(ROW)
    look(EMPTY_S)
    assert len(look(EMPTY_S + 1)) == 1


def test_duplicates_are_refused_and_collide_with_nothing(home: Home, look: Look) -> None:
    (home.inbox / "a.jsonl").write_text(ROW)
    look(0.0)
    assert len(look(1.0)) == 1
    for second in (10.0, 20.0):
        (home.inboxes[Priority.HIGH] / "b.jsonl").write_text(ROW)
        look(second)
        look(second + 1)
    found = refused(home)
    assert set(found) == {"b.jsonl", "b-2.jsonl"}
    assert "already in the queue" in found["b.jsonl"]
    assert (home.inbox / "a.jsonl").exists()


def test_a_restarted_supervisor_knows_the_files_it_has_taken(home: Home, client: JobsClient, told: Told) -> None:
    (home.inbox / "a.jsonl").write_text(ROW)
    first = open_inbox(home, client, told)
    first.poll(0.0)
    job = first.poll(1.0)[0]
    second = open_inbox(home, client, told)
    for moment in (0.0, 1.0, 2.0):
        assert second.poll(moment) == []
    assert refused(home) == {}
    assert (home.inbox / "a.jsonl").exists()
    job_rows.set_state(client.db, job.id, JobState.FAILED, "no usable line")
    second.poll(3.0 + FOLLOW_S)
    assert "no usable line" in refused(home)["a.jsonl"]


def test_new_content_under_an_old_name_is_a_new_file(home: Home, look: Look) -> None:
    path = home.inbox / "a.jsonl"
    path.write_text(ROW)
    look(0.0)
    look(1.0)
    path.write_text('{"text": "another"}\n')
    look(2.0)
    assert len(look(3.0)) == 1


@pytest.fixture
def shared_home() -> Iterator[Home]:
    """A home that another user may use: pytest's own folders are closed to all but their owner."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        home = Home.create(Path(folder) / "home", Config())
        for path in (home.root, *home.root.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        yield home


def test_a_file_that_cannot_be_read_harms_no_other(shared_home: Home, told: Told) -> None:
    home = shared_home
    (home.inbox / "a-closed.jsonl").write_text(ROW)
    (home.inbox / "a-closed.jsonl").chmod(0)
    if os.geteuid() == 0:  # root reads everything
        os.seteuid(NOBODY)
    try:
        with jobs.client(home) as client:
            inbox = open_inbox(home, client, told)
            (home.inbox / "b-open.jsonl").write_text('{"text": "b"}\n')
            inbox.poll(0.0)
            assert [job.file for job in inbox.poll(1.0)] == ["b-open.jsonl"]
            for second in (2.0, 20.0, 1.0 + RETRY_S, 2.0 + 2 * RETRY_S):
                assert inbox.poll(second) == []
            assert [text.split(" ")[0] for kind, text in told if kind == "inbox"] == ["a-closed.jsonl"], "told once"
            if os.getuid() == 0:
                os.seteuid(0)
            (home.inbox / "a-closed.jsonl").chmod(0o644)
            again = inbox.poll(200.0)
            assert [job.file for job in [*again, *inbox.poll(201.0)]] == ["a-closed.jsonl"]
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@contextmanager
def no_room() -> Iterator[None]:
    """New files get their name, and not one byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_reason_that_finds_no_room_leaves_nothing_behind(home: Home, look: Look, told: Told, tmp_path: Path) -> None:
    (home.inbox / "link.jsonl").symlink_to(tmp_path / "nowhere")
    look(0.0)
    with no_room():
        for number in range(1, 4):
            look(number * (RETRY_S + 1))
    assert list((home.inbox / "refused").iterdir()) == []
    assert [kind for kind, _ in told] == ["inbox"], "told once"
    look(10 * RETRY_S)
    assert set(refused(home)) == {"link.jsonl"}


def rename_table(client: JobsClient, old: str, new: str) -> None:
    with client.db.write() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")


def test_a_database_that_fails_is_asked_again_later_for_each_file(
    home: Home, client: JobsClient, look: Look, told: Told
) -> None:
    for name in ("a", "b"):
        (home.inbox / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    look(0.0)
    rename_table(client, "files", "files_away")
    for second, names in ((1.0, ["a.jsonl"]), (1.5, ["a.jsonl", "b.jsonl"]), (2.0, ["a.jsonl", "b.jsonl"])):
        assert look(second) == []
        assert [text.partition(" waits: ")[0] for _, text in told] == names, "one wait for an answer in a round"
    assert {text.partition(" waits: ")[2] for _, text in told} == {
        "the database fails (OperationalError); it stays where it is and is tried again"
    }
    rename_table(client, "files_away", "files")
    assert look(1.0 + RETRY_S - 0.1) == [], "they are not read again so soon"
    assert [job.file for job in look(2.0 + RETRY_S)] == ["a.jsonl", "b.jsonl"]


def test_free_names_fit_the_file_system(tmp_path: Path) -> None:
    long = "ä" * 127 + ".jsonl"
    found = free_name(tmp_path, long)
    found.touch()
    found.with_name(f"{found.name}.reason.txt").touch()
    again = free_name(tmp_path, long)
    again.touch()
    assert again != found
