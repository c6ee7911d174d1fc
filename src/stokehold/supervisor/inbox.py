"""The door: files dropped into `inbox/` (or `inbox/{high,normal,low}/`) become jobs; nothing is ever deleted here.

A file is complete when it was not written to for `STABLE_S`, here or where it was renamed from, or was renamed and
nobody has it open for writing; and its last line is a whole JSON value or ends in a newline. What can never become a
job (a link, a folder, an empty file, a duplicate) moves to `inbox/refused/` with the reason beside it. A file that
cannot be read now stays and is tried again; others are not held up by it.

Looking is the truth; change notices of the file system only make us look sooner.
"""

import fcntl
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import orjson
from sqlalchemy.exc import SQLAlchemyError

from stokehold.core.errors import InputError, NotFoundError, StokeholdError
from stokehold.core.records import Job, JobState, Priority
from stokehold.store.db import job_rows
from stokehold.store.db.jobs import JobsClient
from stokehold.store.files import hash_file
from stokehold.store.home import Home

STABLE_S = 1.0
EMPTY_S = 5.0
"""An empty file is refused only after this: most are about to be written."""

NEVER_WHOLE_S = 60.0
"""After this a person is told, once, that a file does not get complete."""

RETRY_S = 30.0
"""Between two tries of a file that cannot be read or moved."""

FOLLOW_S = 5.0
"""Between two looks at the job of a file that is in the queue."""

TAIL_BYTES = 4 * 1024 * 1024
"""Longest last line without a newline that is looked at for whole JSON."""

IGNORED = ("*.tmp", "*.part", ".*")
REFUSED = "refused"
NAME_BYTES = 200
"""Longest name kept in `refused/`: file systems take 255, and the reason's name is longer."""

EMPTY = "the file is empty"
UNFINISHED = "unfinished"
OVER_SHORT = (JobState.FAILED, JobState.CANCELLED)

Report = Callable[[str, str, dict[str, str]], None]
"""(kind, text, data): becomes an event."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What changes with a file's content, or with who may read it."""

    bytes: int
    mtime_ns: int
    inode: int
    mode: int


@dataclass
class Seen:
    """What is remembered of one path between two looks; times are monotonic seconds."""

    mark: Mark
    since_s: float
    first_s: float
    job: str | None = None
    retry_s: float = 0.0
    told: set[str] = field(default_factory=set)


class Inbox:
    """Looks at the inbox of a home each time `poll` is called, and remembers what it saw."""

    def __init__(self, home: Home, jobs: JobsClient, report: Report) -> None:
        self._home, self._jobs, self._report = home, jobs, report
        self._seen: dict[Path, Seen] = {}

    def poll(self, now_s: float) -> list[Job]:
        """One look; returns the jobs it made. `now_s` is monotonic."""
        made = []
        present = list(candidates(self._home))
        self._seen = {path: self._seen[path] for path, _ in present if path in self._seen}
        for path, priority in present:
            try:
                job = self._look(path, priority, now_s)
            except FileNotFoundError:
                continue  # taken away since the listing
            except OSError as error:
                self._later(path, now_s, f"{shown(path)} cannot be read or moved: {error.strerror or error}")
                continue
            except StokeholdError as error:
                self._later(path, now_s, f"{shown(path)} cannot be taken: {error}")
                continue
            except SQLAlchemyError as error:  # its text has numbers of its own, and would be news at every try
                self._later(path, now_s, f"{shown(path)} waits: the database fails ({type(error).__name__})")
                break  # the others need it too, and each may wait long for its answer: they come in the next rounds
            if job is not None:
                made.append(job)
        return made

    def due(self, now_s: float) -> float:
        """Seconds until a file may have rested long enough, infinity where none rests."""
        ends = (seen.since_s + STABLE_S for seen in self._seen.values() if seen.job is None)
        return min((end - now_s for end in ends if end > now_s), default=float("inf"))

    def _look(self, path: Path, priority: Priority, now_s: float) -> Job | None:
        status = path.lstat()
        mark = Mark(status.st_size, status.st_mtime_ns, status.st_ino, status.st_mode)
        seen = self._seen.get(path)
        if seen is None or seen.mark != mark:
            fresh = seen is None or seen.job is not None
            first_s, told = (now_s, set()) if seen is None or fresh else (seen.first_s, seen.told)
            self._seen[path] = seen = Seen(mark, now_s - rested_s(path, status), first_s, told=told)
        if now_s < seen.retry_s or now_s - seen.since_s < STABLE_S:
            self._tell_unfinished(path, seen, now_s)
            return None
        if seen.job is not None:
            seen.retry_s = now_s + FOLLOW_S
            self._follow(path, seen, seen.job)
            return None
        if (reason := refusal(status, path.name)) is not None:
            if reason is not EMPTY or now_s - seen.since_s >= EMPTY_S:
                self._refuse(path, reason)
            return None
        if not is_whole(path):
            self._tell_unfinished(path, seen, now_s)
            return None
        return self._submit(path, priority, seen)

    def _submit(self, path: Path, priority: Priority, seen: Seen) -> Job | None:
        try:
            job = self._jobs.submit_file(path, priority)
        except NotFoundError as error:  # between our look and its reading
            raise FileNotFoundError(str(path)) from error
        except InputError as error:
            seen.job = self._job_from(path)
            if seen.job is None:
                self._refuse(path, f"{error.what}\n{error.fix}")
            return None
        seen.job = job.id
        self._report("submitted", f"{shown(path)} is in the queue", {"file": shown(path), "job": job.id})
        return job

    def _job_from(self, path: Path) -> str | None:
        """The unfinished job made from this very file: after a restart of ours it meets itself as its duplicate."""
        content = hash_file(path)
        for job in job_rows.list_jobs(self._jobs.db, job_rows.UNFINISHED):
            if job.kind == "ingest" and job.file == path.name:
                payload = job_rows.get_payload(self._jobs.db, job.id)
                if (payload.get("path"), payload.get("content_hash")) == (str(path.absolute()), content):
                    return job.id
        return None

    def _follow(self, path: Path, seen: Seen, job_id: str) -> None:
        """A file whose job came to nothing leaves the inbox, so that the reason is found beside it."""
        try:
            job = job_rows.get_job(self._jobs.db, job_id)
        except NotFoundError:  # the database was taken back to before the file came
            seen.job = None
            return
        if job.state in OVER_SHORT:
            self._refuse(path, f"{job.id} was {job.state.value}: {job.error or 'by hand'}\n`stoke retry {job.id}`")

    def _tell_unfinished(self, path: Path, seen: Seen, now_s: float) -> None:
        if now_s - seen.first_s >= NEVER_WHOLE_S and seen.job is None and UNFINISHED not in seen.told:
            seen.told.add(UNFINISHED)
            text = f"{shown(path)} is not complete yet: it keeps changing, or its last line is not whole JSON"
            self._report("inbox", f"{text} (a newline at its end makes it complete)", {"file": shown(path)})

    def _later(self, path: Path, now_s: float, text: str) -> None:
        seen = self._seen.setdefault(path, Seen(Mark(-1, -1, -1, -1), now_s, now_s))
        seen.retry_s = now_s + RETRY_S
        if text not in seen.told:
            seen.told.add(text)
            self._report("inbox", f"{text}; it stays where it is and is tried again", {"file": shown(path)})

    def _refuse(self, path: Path, reason: str) -> None:
        """Moves the path itself (never what a link points to) to `refused/`, the reason first."""
        folder = self._home.inbox / REFUSED
        folder.mkdir(exist_ok=True)
        target = free_name(folder, shown(path))
        note = target.with_name(f"{target.name}.reason.txt")
        try:
            note.write_text(f"{reason}\n", "utf-8")
            path.rename(target)
        except OSError:
            note.unlink(missing_ok=True)  # a full disk takes the name and not the text
            raise
        self._seen.pop(path, None)
        text = f"{shown(path)} was refused: {reason.splitlines()[0]}"
        self._report("refused", text, {"file": shown(path), "moved_to": str(target)})


def candidates(home: Home) -> Iterator[tuple[Path, Priority]]:
    """What lies in the inbox, with the priority of its folder, in order of name, high first."""
    folders = [(home.inboxes[priority], priority) for priority in Priority]
    ours = {folder.name for folder, _ in folders} | {REFUSED}
    for folder, priority in [*folders, (home.inbox, Priority.NORMAL)]:
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if any(fnmatch(path.name, pattern) for pattern in IGNORED) or (folder == home.inbox and path.name in ours):
                continue
            yield path, priority


def rested_s(path: Path, status: os.stat_result) -> float:
    """`STABLE_S` for a file not written to for so long, which it may have spent elsewhere before it was renamed in, and
    for one that its writer is done with; else 0."""
    if time.time() - status.st_mtime >= STABLE_S:
        return STABLE_S
    # Writing sets both times; a rename, the last thing that a careful writer does, the second alone.
    renamed = stat.S_ISREG(status.st_mode) and status.st_ctime_ns > status.st_mtime_ns
    return STABLE_S if renamed and not may_be_open_for_writing(path) else 0.0


def may_be_open_for_writing(path: Path) -> bool:
    """Whether some process has the file open for writing, or it cannot be known."""
    if not hasattr(fcntl, "F_SETLEASE"):  # not Linux
        return True
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)  # of a writer who comes now; the default one would end us
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # refused while there is a writer
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(handle)


def refusal(status: os.stat_result, name: str) -> str | None:
    """Why something with this `lstat` can never be a job, or None."""
    if stat.S_ISLNK(status.st_mode):
        return "a symbolic link is not followed: drop the file itself"
    if stat.S_ISDIR(status.st_mode):
        return "a folder is not taken: drop its files"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if name != _utf8(name):
        return "its name is not UTF-8: rename it and drop it again"
    return None if status.st_size else EMPTY


def is_whole(path: Path) -> bool:
    """Whether the last line ends in a newline or is a whole JSON value; reads the tail only."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        if stream.read(1) == b"\n":
            return True
        stream.seek(start := max(0, size - TAIL_BYTES))
        _, newline, line = stream.read().rpartition(b"\n")
    if start > 0 and not newline:
        return False
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def free_name(folder: Path, name: str) -> Path:
    """A path in `folder` that neither a file nor a reason has yet: `a.jsonl`, `a-2.jsonl`, …"""
    plain = Path(name.encode()[:NAME_BYTES].decode(errors="ignore") if len(name.encode()) > NAME_BYTES else name)
    wanted, number = folder / plain, 1
    while os.path.lexists(wanted) or os.path.lexists(wanted.with_name(f"{wanted.name}.reason.txt")):
        number += 1
        wanted = folder / f"{plain.stem}-{number}{plain.suffix}"
    return wanted


def shown(path: Path) -> str:
    """The file's name as text that every database and terminal takes."""
    return _utf8(path.name)


def _utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")
