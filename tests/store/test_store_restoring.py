"""A home made anew: on an empty machine, paused, each job once."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import orjson
import pytest
import sqlalchemy as sa
from matrix import every_fault
from test_store_backups import fill, tensors

from journal_step import journal_step
from stokehold.core.config import Config, describe, parse_config
from stokehold.core.errors import StokeholdError, UsageError
from stokehold.core.records import JobState
from stokehold.store.backup import offsite
from stokehold.store.backup.backups import snapshot
from stokehold.store.backup.locations import open_location
from stokehold.store.backup.restoring import restore
from stokehold.store.db import control, job_rows, journal, tables
from stokehold.store.db.database import Database, connect
from stokehold.store.db.jobs import JobsClient
from stokehold.store.db.migrations import MIGRATIONS
from stokehold.store.db.postgresql import run_client
from stokehold.store.files import verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import thinning
from stokehold.store.models import checkpoints, lineage, versions
from waiting import free_ports


def test_all_of_it_comes_back_on_an_empty_machine(home: Home, db: Database, tmp_path: Path) -> None:
    fill(home, db)
    versions.set_alias(home, db, "champion", "v0001")
    offsite.run(home, db, "x", str(tmp_path / "away"))
    db.close()
    shutil.rmtree(home.root)
    made = restore(open_location(str(tmp_path / "away")), tmp_path / "new")
    there = Home.open(tmp_path / "new")
    anew = connect(there)
    assert made.left_out == ()
    assert versions.alias(anew) == "v0001"
    assert [found.step for found in journal.steps(anew)] == [1]
    assert (there.suites / "frozen.jsonl").is_file()
    assert verify(there.versions / "v0001") == verify(checkpoints.checkpoint_folder(there, 1)) == []
    assert control.current(anew) == "pause"


def test_jobs_wait_and_each_is_enqueued_once(home: Home, tmp_path: Path) -> None:
    files = [home.inbox / f"{name}.jsonl" for name in "abc"]
    for path in files:
        path.write_text(f'{{"{path.stem}": 1}}\n')
    with JobsClient(home) as client:
        jobs = [client.submit_file(path) for path in files]
        job_rows.begin(client.db, jobs[0].id)
        snapshot(home, client.db, "x")
    made = restore(open_location(str(home.root)), tmp_path / "new")
    assert made.unfinished == 3
    there = Home.open(tmp_path / "new")
    with JobsClient(there) as client:
        assert [(job.id, job.state) for job in client.list_jobs()] == [(job.id, JobState.QUEUED) for job in jobs]
        assert client.reconcile() == [], "DBOS has each of them already"
        waiting = client._dbos.list_workflows(workflow_ids=[job.id for job in jobs])
        assert sorted(row.workflow_id for row in waiting) == sorted(job.id for job in jobs)
        assert {row.status for row in waiting} == {"ENQUEUED"}
        for job, path in zip(jobs, files, strict=True):
            content = job_rows.get_payload(client.db, job.id)["content_hash"]
            assert (there.blobs / content[:2] / content).read_bytes() == path.read_bytes()


def test_a_home_or_anything_else_in_the_way_is_refused(home: Home, db: Database, tmp_path: Path) -> None:
    snapshot(home, db, "x")
    with pytest.raises(StokeholdError, match="versions restore"):
        restore(open_location(str(home.root)), home.root)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(StokeholdError, match="not empty"):
        restore(open_location(str(home.root)), tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert restore(open_location(str(home.root)), tmp_path / "empty").home == str(tmp_path / "empty")


def test_a_checkpoint_later_than_the_copy_of_the_journal_is_left_out(home: Home, db: Database, tmp_path: Path) -> None:
    fill(home, db)
    checkpoints.publish_checkpoint(home, 9, lambda folder: (folder / "model.safetensors").write_bytes(tensors(9)), {})
    snapshot(home, db, "as if 9 had come between the journal and the blobs")
    made = restore(open_location(str(home.root)), tmp_path / "new")
    assert made.left_out == ("checkpoints/step_000000009",)
    assert [found.step for found in checkpoints.list_checkpoints(Home.open(tmp_path / "new"))] == [1]


def prepared(root: Path) -> None:
    home = Home.create(root, Config())
    db = connect(home)
    fill(home, db)
    offsite.run(home, db, "matrix", str(root / "away"))
    db.close()


def bring(home: Home) -> None:
    if not (home.root / "new").exists():
        restore(open_location(str(home.root / "away")), home.root / "new", disk=home.disk)


def brought(home: Home, _told: str | None) -> str:
    if not (home.root / "new").exists():
        return "old"
    there = Home.open(home.root / "new")
    db = connect(there)
    try:
        assert control.current(db) == "pause"
        assert [found.step for found in journal.steps(db)] == [1]
        folders = [*there.checkpoints.iterdir(), *there.versions.iterdir()]
        assert len(folders) == 2
        return "named" if any(verify(folder) for folder in folders) else "new"
    finally:
        db.close()


def test_every_fault_of_a_restore_leaves_a_home_or_none(tmp_path: Path) -> None:
    counts = every_fault(prepared, bring, brought, tmp_path)
    assert counts["kill"]["old"]
    assert counts["kill"]["new"]


PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.fixture
def server() -> Iterator[str]:
    """A real PostgreSQL server with two empty databases; its URL without a database."""
    if not PROGRAMS:
        pytest.skip("no PostgreSQL server is installed")
    programs, root = PROGRAMS[-1].parent, Path(mkdtemp(prefix="stoke-pg-"))  # pytest's folders are for us alone
    data = root / "data"
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    data.mkdir()
    root.chmod(0o755)
    if as_user:
        shutil.chown(data, "postgres", "postgres")
    (port,) = free_ports(1)

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=data)

    run("initdb", "-D", str(data), "-U", "stoke", "--auth=trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    run("pg_ctl", "-D", str(data), "-w", "-l", str(data / "log"), "-o", options, "start")
    try:
        for name in ("one", "two"):
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "stoke", name)
        yield f"postgresql+psycopg://stoke@127.0.0.1:{port}"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(root)


def test_postgresql_is_dumped_and_restored_into_another_database(tmp_path: Path, server: str) -> None:
    home = Home.create(tmp_path / "home", Config())
    home.write_config(describe(parse_config({"store": {"database_url": f"{server}/one"}})))
    (home.inbox / "a.jsonl").write_text("{}\n")
    with JobsClient(home) as client:
        job = client.submit_file(home.inbox / "a.jsonl")
        journal.append(client.db, journal_step(1))
        taken, _ = offsite.run(home, client.db, "x", str(tmp_path / "away"))
    assert taken.database == "postgresql"
    away = open_location(str(tmp_path / "away"))
    with pytest.raises(UsageError, match="database-url"):
        restore(away, tmp_path / "new")
    with pytest.raises(StokeholdError, match="not empty"):
        restore(away, tmp_path / "new", new_url=f"{server}/one")
    assert not (tmp_path / "new").exists()
    restore(away, tmp_path / "new", new_url=f"{server}/two")
    there = Home.open(tmp_path / "new")
    assert sa.make_url(there.config().store.database_url).database == "two"
    with JobsClient(there) as client:
        assert [found.id for found in client.list_jobs([JobState.QUEUED])] == [job.id]
        assert [found.step for found in journal.steps(client.db)] == [1]
        assert client.reconcile() == []


def test_a_home_on_postgresql_is_copied_before_it_is_migrated(tmp_path: Path, server: str) -> None:
    home = Home.create(tmp_path / "home", Config())
    home.write_config(describe(parse_config({"store": {"database_url": f"{server}/one"}})))
    kept = home.backups / f"before-schema-{len(MIGRATIONS)}.pgdump"
    db = connect(home)
    journal.append(db, journal_step(1))
    assert not kept.exists(), "there was nothing older"
    with db.write() as connection:  # as the program before the last migration left it
        connection.execute(sa.text("DROP TABLE journal_lost"))
        connection.execute(sa.text("UPDATE schema_version SET version = 6"))
    db.close()
    db = connect(home)
    assert sa.inspect(db.engine).has_table("journal_lost")
    db.close()
    assert [path.name for path in home.backups.iterdir()] == [kept.name]
    run_client("pg_restore", f"{server}/two", "--no-owner", "--exit-on-error", str(kept))
    there = sa.create_engine(f"{server}/two")
    with there.begin() as connection:
        assert connection.execute(sa.text("SELECT step FROM journal")).scalars().all() == [1]
        assert connection.execute(sa.text("SELECT version FROM schema_version")).scalar() == 6
        assert not sa.inspect(connection).has_table("journal_lost")
    there.dispose()
    kept.unlink()
    connect(home).close()
    assert not kept.exists(), "what is as it should be is not copied"


def test_sums_of_the_journal_are_whole_numbers_on_every_database(tmp_path: Path, server: str) -> None:
    told = []
    for url in (f"sqlite:///{tmp_path / 'stoke.db'}", f"{server}/one"):
        db = connect(url)
        for step in (3, 4):
            journal.append(db, journal_step(step))
        with db.write() as connection:
            rows = [SimpleNamespace(**asdict(journal_step(step))) for step in (1, 2)]
            connection.execute(tables.journal_aggregates.insert(), [thinning.aggregate(rows)])  # type: ignore[arg-type]
        totals = journal.job_totals(db, ["train-a"])
        assert totals.tokens / totals.seconds == 200.0
        told.append(orjson.dumps([totals, journal.examples_by_dataset(db, 4), lineage.trained_files(db)]))
        db.close()
    assert told[0] == told[1]
