"""What an attempt is: an exception, or a crash with no new step since the last; the third in a row fails the job."""

import pytest

from stokehold.core.errors import NotFoundError
from stokehold.core.records import Job, JobState, Priority
from stokehold.store.db import job_rows
from stokehold.store.db.database import Database


@pytest.fixture
def job(db: Database) -> Job:
    with db.write() as connection:
        made = job_rows.insert(connection, "train-1", "train", Priority.NORMAL, {"file": "a.jsonl", "dataset": "d1"})
    assert made is not None
    return made


def begin(db: Database, job: Job, step: int | None, branch: int = 0) -> tuple[str, int]:
    after = job_rows.begin(db, job.id, step, branch)
    return after.state.value, after.attempt


def fail(db: Database, job: Job, step: int | None) -> tuple[str, int]:
    after = job_rows.record_exception(db, job.id, "ValueError: no", step)
    return after.state.value, after.attempt


def test_a_job_begins_and_ends(db: Database, job: Job) -> None:
    assert (job.state, job.attempt, job.file, job.dataset) == (JobState.QUEUED, 0, "a.jsonl", "d1")
    assert begin(db, job, None) == ("running", 1)
    job_rows.set_progress(db, job.id, 0.25)
    assert job_rows.get_job(db, job.id).progress == 0.25
    assert job_rows.set_state(db, job.id, JobState.COMPLETED).progress == 1.0
    assert begin(db, job, 7) == ("completed", 1), "what is over does not start again"


def test_kills_with_new_steps_are_no_attempts(db: Database, job: Job) -> None:
    for step in range(0, 500, 5):
        assert begin(db, job, step) == ("running", 1)


def test_the_third_crash_without_a_new_step_fails(db: Database, job: Job) -> None:
    assert begin(db, job, 10) == ("running", 1)
    assert begin(db, job, 10) == ("running", 2)
    assert begin(db, job, 10) == ("running", 3)
    assert begin(db, job, 10) == ("failed", 3)
    assert job_rows.get_job(db, job.id).error == "crashed 3 times without a new step"


def test_a_new_step_ends_the_row(db: Database, job: Job) -> None:
    for step in (10, 10, 10, 11, 11, 11, 12):
        state, _ = begin(db, job, step)
        assert state == "running"
    assert begin(db, job, 12) == ("running", 2)


def test_going_back_counts_as_new(db: Database, job: Job) -> None:
    begin(db, job, 100)
    assert begin(db, job, 100) == ("running", 2)
    assert begin(db, job, 60, branch=1) == ("running", 1)
    assert begin(db, job, 60, branch=1) == ("running", 2)


def test_a_first_step_is_new(db: Database, job: Job) -> None:
    assert begin(db, job, None) == ("running", 1)
    assert begin(db, job, None) == ("running", 2)
    assert begin(db, job, 0) == ("running", 1)


def test_three_exceptions_in_a_row_fail(db: Database, job: Job) -> None:
    begin(db, job, 10)
    assert fail(db, job, 10) == ("running", 2)
    assert fail(db, job, 10) == ("running", 3)
    assert fail(db, job, 10) == ("failed", 3)
    assert job_rows.get_job(db, job.id).error == "ValueError: no"


def test_an_exception_after_new_steps_starts_the_row_and_crashes_continue_it(db: Database, job: Job) -> None:
    begin(db, job, 10)
    assert fail(db, job, 20) == ("running", 2)
    assert fail(db, job, 30) == ("running", 2)
    assert begin(db, job, 30) == ("running", 3)
    assert fail(db, job, 30) == ("failed", 3)


def test_an_orderly_stop_is_no_crash(db: Database, job: Job) -> None:
    for state in (JobState.QUEUED, JobState.PAUSED) * 5:
        assert begin(db, job, 10) == ("running", 1)
        job_rows.set_state(db, job.id, state)


def test_cancelled_stays_cancelled(db: Database, job: Job) -> None:
    begin(db, job, 1)
    job_rows.set_state(db, job.id, JobState.CANCELLED)
    assert job_rows.set_state(db, job.id, JobState.PARTIAL).state is JobState.CANCELLED
    assert begin(db, job, 2) == ("cancelled", 1)
    assert fail(db, job, 2) == ("cancelled", 1)
    assert job_rows.set_state(db, job.id, JobState.QUEUED).state is JobState.QUEUED


def test_listing(db: Database, job: Job) -> None:
    for number in (2, 3):
        with db.write() as connection:
            job_rows.insert(connection, f"train-{number}", "train", Priority.HIGH, {})
    job_rows.set_state(db, "train-2", JobState.COMPLETED)
    assert [one.id for one in job_rows.list_jobs(db)] == ["train-1", "train-2", "train-3"]
    assert [one.id for one in job_rows.list_jobs(db, job_rows.UNFINISHED)] == ["train-1", "train-3"]
    assert [one.id for one in job_rows.list_jobs(db, limit=2)] == ["train-2", "train-3"]
    with pytest.raises(NotFoundError, match="no such job"):
        job_rows.get_job(db, "train-9")
    with pytest.raises(NotFoundError, match="no such job"):
        job_rows.set_progress(db, "train-9", 0.5)
