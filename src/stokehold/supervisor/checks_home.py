"""Checks of the home: its folders, its file system, its database, its settings, and who else is at work in it."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import psutil
import sqlalchemy as sa

from stokehold.core.config import Config
from stokehold.core.errors import StokeholdError
from stokehold.core.memory import ModelShape, estimate
from stokehold.store.db.database import connect, database_url, network_file_system
from stokehold.store.files import STAGING
from stokehold.store.home import Home
from stokehold.store.models import checkpoints
from stokehold.supervisor.checks import Check, bad, good, look, size
from stokehold.supervisor.processes import holder
from stokehold.supervisor.trainer import read_trainer

LOCKS = ("supervisor", "trainer", "executor-trainer-0")
FEW_INODES = 10_000
SPARE_SHARE = 0.02
"""Share of a disk that is left alone: file systems slow down, and logs stop, when they fill up."""


def folders(home: Home) -> Check:
    """Every folder takes a new file."""
    for folder in (home.root, *home.inboxes.values(), *home.folders):
        probe = folder / f"{STAGING}preflight-{uuid4().hex}"
        try:
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            return bad(
                "folders", f"{folder}: {reason}", "make it writable for this user, on a disk that is not read-only"
            )
    return good("folders", f"{home.root} is writable")


def file_system(home: Home, mounts: str | None = None) -> Check:
    """Locks and write-ahead logs hold on local file systems only; `mounts` is text in the form of /proc/mounts."""
    kind = network_file_system(home.root, mounts)
    if kind is None:
        return good("file system", "local")
    fix = "move the home to a local disk"
    if home.config().store.database_url:
        return look("file system", f"{kind}, over a network: locks may not hold", fix)
    return bad("file system", f"{kind}, over a network: the database cannot live there", fix)


def disk(home: Home, config: Config, shape: ModelShape | None) -> Check:
    """Room for the checkpoints that are kept, and for one that is being written."""
    usage, inodes = shutil.disk_usage(home.root), os.statvfs(home.root)
    free = int(usage.free - SPARE_SHARE * usage.total)
    found = f"{size(usage.free)} free of {size(usage.total)}"
    if inodes.f_files and inodes.f_favail < FEW_INODES:
        return bad("disk", f"room for {inodes.f_favail} more files", "remove small files, or use another disk")
    if shape is None:
        return good("disk", found)
    one = estimate(shape, config).snapshot
    kept = config.store.keep_checkpoints
    lacking = max(0, kept - len(checkpoints.list_checkpoints(home))) + 1
    found += f"; a checkpoint takes {size(one)}, {kept} are kept"
    if free < one:
        return bad("disk", found, f"free {size(one - free)}: not one more checkpoint fits")
    if free < lacking * one:
        fix = f"free {size(lacking * one - free)}, or lower store.keep_checkpoints"
        return look("disk", found, fix)
    return good("disk", found)


def database(home: Home) -> Check:
    """The database opens and its pages are whole."""
    url = database_url(home)
    if not url.startswith("sqlite"):
        return _server(url)
    path = Path(sa.make_url(url).database or "")
    if not path.exists():
        return good("database", "made at the first use")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            said = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        if said == "ok":
            connect(home).close()
            return good("database", f"whole, {size(path.stat().st_size)}")
    except (sqlite3.Error, sa.exc.SQLAlchemyError, StokeholdError) as error:
        said = str(error).partition("\n")[0]
    fix = f"restore it from a backup, or move {path.name} away with its -wal and -shm: models and files stay"
    return bad("database", said, fix)


def _server(url: str) -> Check:
    name = sa.make_url(url).render_as_string(hide_password=True)
    try:
        connect(url).close()
    except (sa.exc.SQLAlchemyError, StokeholdError) as error:
        return bad("database", f"{name}: {str(error).partition(chr(10))[0]}", "start the server, or correct the URL")
    return good("database", name)


def processes(home: Home) -> Check:
    """Who holds the home, who should have let go of it, and what a crash left unfinished."""
    if (held := holder(home, LOCKS)) is not None:
        return look("processes", f"in use by {held}", "`stoke down` stops it")
    if orphans := _orphans(home):
        listed = ", ".join(f"{process.pid}" for process in orphans)
        return look("processes", f"still running without its lock: process {listed}", f"`kill {listed}`")
    trainer = read_trainer(home.status)
    if trainer is not None and trainer.crashed:
        return look("processes", f"the trainer went while {trainer.state}", "`stoke up` goes on from its checkpoint")
    return good("processes", "none holds this home")


def _orphans(home: Home) -> Sequence[psutil.Process]:
    """Workers of this home; whoever started this command is none."""
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid not in ours and str(home.root) in words and any(_is_worker(word) for word in words):
            found.append(process)
    return found


def _is_worker(word: str) -> bool:
    return word.startswith(("stokehold.pipeline.", "stokehold.supervisor.", "stokehold.web."))
