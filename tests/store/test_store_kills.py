"""SIGKILL at random moments, of publishing and of jobs: the old state or the new, and the work goes on."""

import json
import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa
from dbos._registrations import DEFAULT_MAX_RECOVERY_ATTEMPTS

from stokehold.core.records import JobState
from stokehold.store.db import jobs
from stokehold.store.home import Home


def test_killed_while_publishing(tmp_path: Path) -> None:
    program = Path(__file__).with_name("kill_while_publishing.py")
    command = [sys.executable, str(program), str(tmp_path), "60", "20240607"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20, "the kills came before anything was published: they proved nothing"


def test_killed_while_four_write_to_the_database(tmp_path: Path) -> None:
    """What a commit has said is kept, whoever dies, and the file is whole."""
    program = Path(__file__).with_name("kill_writers.py")
    command = [sys.executable, str(program), str(tmp_path), "30", "20261121"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["kills"] >= 30
    assert figures["at_work"] >= 15, "too few kills met a writer at work"


def test_a_job_survives_more_kills_than_dbos_would_forgive(home: Home) -> None:
    """150 times SIGKILL and launch: no line of the job is lost or written twice, and kills are not attempts."""
    with jobs.client(home) as client:
        job = client.enqueue("train", {"lines": 700, "sleep_s": 0.004})
    program = Path(__file__).with_name("kill_workers.py")
    command = [sys.executable, str(program), str(home.root), job.id, "150", "20240608"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, moved = map(int, done.stdout.split())
    assert moved >= 110, "too few kills met the job at work"
    lines = (home.logs / f"{job.id}.txt").read_text().split("\n")[:-1]
    assert lines == [f"{number} trainer-0" for number in range(1, 701)]
    with jobs.client(home) as client:
        (after,) = client.list_jobs()
        assert (after.state, after.progress, after.attempt) == (JobState.COMPLETED, 1.0, 1)
        with client.db.read() as connection:
            query = sa.text("SELECT recovery_attempts FROM workflow_status WHERE workflow_uuid = :job")
            recoveries = connection.execute(query, {"job": job.id}).scalar_one()
    assert recoveries > DEFAULT_MAX_RECOVERY_ATTEMPTS + 1, "else the default would have done too"
