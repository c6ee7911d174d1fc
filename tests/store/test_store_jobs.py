"""Durable jobs on DBOS: each fact that the design builds on, with real worker processes."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from dbos import DBOSClient

from stokehold.core.errors import BusyError, DuplicateError, NotFoundError, StokeholdError
from stokehold.core.records import Job, JobState, Priority
from stokehold.store.db import control, job_rows, jobs, journal, tables
from stokehold.store.db.database import connect
from stokehold.store.home import Home

PROGRAM = Path(__file__).with_name("toy_worker.py")
PATIENCE_S = 240.0
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def client(home: Home) -> Iterator[jobs.JobsClient]:
    with jobs.client(home) as made:
        yield made


@pytest.fixture
def launch(home: Home) -> Iterator[Launch]:
    """Starts a toy worker and waits until it serves; whatever still lives at the end is killed."""
    living: list[subprocess.Popen[str]] = []

    def start(executor_id: str = "trainer-0", queues: str = "ingest,train,evaluate,upkeep") -> "subprocess.Popen[str]":
        command = [sys.executable, str(PROGRAM), str(home.root), executor_id, queues]
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        living.append(worker)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "launched\n"
        return worker

    yield start
    for worker in living:
        end(worker)


def end(worker: "subprocess.Popen[str]") -> None:
    worker.send_signal(signal.SIGKILL)
    worker.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)


def finished(client: jobs.JobsClient, *ids: str) -> None:
    def over() -> bool:
        return all(job_rows.get_job(client.db, job_id).state not in job_rows.UNFINISHED for job_id in ids)

    wait_for(over)


def lines(home: Home, job: Job) -> list[str]:
    path = home.logs / f"{job.id}.txt"
    return path.read_text().splitlines() if path.exists() else []


def order(home: Home) -> list[str]:
    path = home.logs / "order.txt"
    return path.read_text().splitlines() if path.exists() else []


def workflow_row(client: jobs.JobsClient, job_id: str) -> sa.Row[tuple[object, ...]] | None:
    with client.db.read() as connection:
        query = sa.text("SELECT * FROM workflow_status WHERE workflow_uuid = :job")
        return connection.execute(query, {"job": job_id}).one_or_none()


def rewrite(client: jobs.JobsClient, statement: str, **values: object) -> None:
    with client.db.write() as connection:
        connection.execute(sa.text(statement), values)


def submitted(home: Home, name: str = "tickets.jsonl", text: str = '{"text": "a"}\n') -> Path:
    path = home.inbox / name
    path.write_text(text)
    return path


def test_a_client_launches_nothing(home: Home) -> None:
    before = set(threading.enumerate())
    with jobs.client(home) as client:
        client.enqueue("ingest", {})
        assert set(threading.enumerate()) <= before
    program = (
        "import sys, threading; from pathlib import Path; from stokehold.store.db import jobs\n"
        "from stokehold.store.home import Home; import dbos._dbos as inside\n"
        "jobs.client(Home.open(Path(sys.argv[1]))).list_jobs()\n"
        "assert inside._dbos_global_instance is None and len(threading.enumerate()) == 1"
    )
    subprocess.run([sys.executable, "-c", program, str(home.root)], check=True)


def test_a_submitted_file_is_safe_before_its_job_is_enqueued(home: Home, client: jobs.JobsClient) -> None:
    path = submitted(home)
    job = client.submit_file(path, Priority.HIGH)
    assert (job.kind, job.file, job.priority, job.state) == ("ingest", path.name, Priority.HIGH, JobState.QUEUED)
    payload = job_rows.get_payload(client.db, job.id)
    path.unlink()
    assert Path(payload["blob"]).read_text() == '{"text": "a"}\n'
    assert (payload["job"], payload["bytes"], payload["file"]) == (job.id, 14, "tickets.jsonl")
    with pytest.raises(NotFoundError, match="no such file"):
        client.submit_file(path)


def test_the_same_content_is_taken_once(home: Home, client: jobs.JobsClient) -> None:
    first = client.submit_file(submitted(home))
    copy = submitted(home, "renamed.jsonl")
    with pytest.raises(DuplicateError, match=f"already in the queue as {first.id}") as refused:
        client.submit_file(copy)
    assert refused.value.fix == "`--again` to repeat"
    job_rows.set_dataset(client.db, first.id, "d7f3")
    job_rows.set_state(client.db, first.id, JobState.COMPLETED)
    with pytest.raises(DuplicateError, match=f"already accepted as d7f3 on {first.created[:10]}"):
        client.submit_file(copy)
    train = client.enqueue("train", {"dataset": "d7f3"}, job_id="train-d7f3")
    with pytest.raises(DuplicateError, match="already in the queue as train-d7f3"):
        client.submit_file(copy)
    job_rows.set_state(client.db, train.id, JobState.PARTIAL)
    with pytest.raises(DuplicateError, match="stoke retry train-d7f3"):
        client.submit_file(copy)
    job_rows.set_state(client.db, train.id, JobState.COMPLETED)
    with pytest.raises(DuplicateError, match=f"already trained as d7f3 on {first.created[:10]}"):
        client.submit_file(copy)
    assert client.submit_file(copy, again=True).state is JobState.QUEUED
    assert len(client.list_jobs()) == 3


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_content_whose_job_did_not_end_well_may_come_again(
    home: Home, client: jobs.JobsClient, state: JobState
) -> None:
    first = client.submit_file(submitted(home))
    job_rows.set_state(client.db, first.id, state)
    assert client.submit_file(submitted(home)).id != first.id


def test_two_submissions_at_once_make_one_job(home: Home) -> None:
    path = submitted(home)
    outcomes: list[str] = []

    def submit() -> None:
        with jobs.client(home) as client:
            try:
                outcomes.append(client.submit_file(path).id)
            except DuplicateError:
                outcomes.append("refused")

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, reverse=True)[:3] == ["refused"] * 3
    assert len(set(outcomes)) == 2


def test_our_row_and_theirs_come_together_or_not_at_all(client: jobs.JobsClient) -> None:
    with pytest.raises(TypeError, match="non-string keys"):  # our column takes it, DBOS's serialiser does not
        client.enqueue("ingest", {"file": "a", "cannot": {1: 2}}, job_id="j1")
    assert client.list_jobs() == []
    assert workflow_row(client, "j1") is None
    client.enqueue("ingest", {"file": "a"}, job_id="j1")
    assert workflow_row(client, "j1") is not None


def test_enqueueing_a_known_id_changes_nothing(client: jobs.JobsClient) -> None:
    first = client.enqueue("train", {"dataset": "d1"}, Priority.LOW, "train-d1")
    assert client.enqueue("train", {"dataset": "d1"}, Priority.HIGH, "train-d1") == first
    assert len(client.list_jobs()) == 1
    with pytest.raises(StokeholdError, match="no such kind"):
        client.enqueue("explode", {})


def test_high_goes_first_and_equals_in_order(home: Home, client: jobs.JobsClient, launch: Launch) -> None:
    asked = [Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.NORMAL, Priority.HIGH]
    made = [client.enqueue("ingest", {}, priority) for priority in asked]
    launch()
    finished(client, *(job.id for job in made))
    assert order(home) == [made[n].id for n in (2, 4, 1, 3, 0)]


def test_an_executor_id_is_held_by_one_living_process(home: Home, client: jobs.JobsClient, launch: Launch) -> None:
    worker = launch()
    second = subprocess.run(
        [sys.executable, str(PROGRAM), str(home.root), "trainer-0", "train"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 3
    assert f"refused: executor-trainer-0 is held by process {worker.pid}" in second.stdout
    end(worker)
    launch()


def test_a_killed_job_waits_for_its_own_executor_or_is_handed_on(
    home: Home, client: jobs.JobsClient, launch: Launch
) -> None:
    job = client.enqueue("train", {"lines": 40, "sleep_s": 0.06})
    worker = launch("trainer-0")
    wait_for(lambda: len(lines(home, job)) > 2)
    with pytest.raises(BusyError, match="executor-trainer-0 is held"):
        client.adopt_from("trainer-0")
    end(worker)
    done = len(lines(home, job))
    launch("trainer-1")
    marker = client.enqueue("ingest", {})
    finished(client, marker.id)
    time.sleep(0.3)  # fifteen polls of a worker that is known to serve
    assert len(lines(home, job)) == done, "launch recovers only its own id"
    assert client.adopt_from("trainer-0") == [job.id]
    assert client.adopt_from("trainer-0") == []
    finished(client, job.id)
    assert [line.split()[0] for line in lines(home, job)] == [str(n) for n in range(1, 41)]
    assert {line.split()[1] for line in lines(home, job)[done:]} == {"trainer-1"}


def test_a_waiting_job_of_another_version_is_stranded_until_it_is_adopted(
    home: Home, client: jobs.JobsClient, launch: Launch
) -> None:
    job = client.enqueue("ingest", {"file": "old"}, Priority.HIGH)
    rewrite(client, "UPDATE workflow_status SET application_version = 'older release'")
    launch()
    fresh = client.enqueue("ingest", {"file": "new"}, Priority.LOW)
    finished(client, fresh.id)
    assert order(home) == [fresh.id], "no worker takes a job of another version"
    assert client.adopt_old_versions() == [job.id]
    finished(client, job.id)
    assert order(home) == [fresh.id, job.id]
    assert client.adopt_old_versions() == []


def test_the_version_is_ours_and_not_a_hash_of_the_source(client: jobs.JobsClient, home: Home) -> None:
    client.enqueue("ingest", {}, job_id="j1")
    row = workflow_row(client, "j1")
    assert row is not None
    assert (row.application_version, row.name, row.queue_name) == (jobs.JOBS_VERSION, "ingest", "ingest")
    config = jobs.launch_config(home, "trainer-0")
    assert (config["application_version"], config["executor_id"]) == (jobs.JOBS_VERSION, "trainer-0")


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_pickled_row_is_refused_and_the_worker_lives_on(home: Home, launch: Launch) -> None:
    """Enqueued by a client as DBOS makes it by default, in a process that has not called our serializer()."""
    mark = home.root / "unpickled"
    jobs.client(home).close()
    program = (
        "import sys; from pathlib import Path; from dbos import DBOSClient\n"
        "sys.path.insert(0, sys.argv[3]); from test_store_jobs import Bomb\n"
        "options = {'workflow_name': 'ingest', 'queue_name': 'ingest', 'workflow_id': 'evil'}\n"
        "options['app_version'] = sys.argv[4]\n"
        "import dbos._serialization as s; assert 'refuse' not in s.DefaultSerializer.deserialize.__name__\n"
        "DBOSClient(system_database_url=sys.argv[1]).enqueue(options, Bomb(Path(sys.argv[2])))"
    )
    url, folder = f"sqlite:///{home.database}", str(PROGRAM.parent)
    subprocess.run([sys.executable, "-c", program, url, str(mark), folder, jobs.JOBS_VERSION], check=True)
    with jobs.client(home) as client:
        row = workflow_row(client, "evil")
        assert row is not None
        assert row.serialization == "py_pickle"
        pickle.loads(pickle.dumps(Bomb(mark)))  # noqa: S301 -- the bomb is live: this is what the worker must not do
        mark.unlink()
        launch()
        after = client.enqueue("ingest", {})
        finished(client, after.id)
        wait_for(lambda: (found := workflow_row(client, "evil")) is not None and found.status == "ERROR")
    assert not mark.exists()
    assert order(home) == [after.id]


def test_our_rows_are_plain_json(client: jobs.JobsClient) -> None:
    client.enqueue("train", {"dataset": "d1"}, job_id="j1")
    with client.db.read() as connection:
        query = sa.text("SELECT inputs FROM workflow_input WHERE workflow_uuid = 'j1'")
        assert connection.execute(query).scalar() == '{"namedArgs":{},"positionalArgs":[{"dataset":"d1","job":"j1"}]}'


def test_cancel_keeps_a_waiting_job_from_running(home: Home, client: jobs.JobsClient, launch: Launch) -> None:
    first, second = client.enqueue("ingest", {}), client.enqueue("ingest", {})
    assert client.cancel(first.id).state is JobState.CANCELLED
    launch()
    finished(client, second.id)
    assert order(home) == [second.id]
    assert job_rows.set_state(client.db, first.id, JobState.COMPLETED).state is JobState.CANCELLED, "it stays so"
    assert client.cancel(second.id).state is JobState.COMPLETED
    assert client.retry(first.id).state is JobState.QUEUED
    finished(client, first.id)
    assert order(home) == [second.id, first.id]
    with pytest.raises(StokeholdError, match="the job is completed"):
        client.retry(first.id)


def test_cancel_does_not_interrupt_a_running_job_it_asks_by_control(
    home: Home, client: jobs.JobsClient, launch: Launch
) -> None:
    job = client.enqueue("train", {"lines": 25, "sleep_s": 0.1})
    launch()
    wait_for(lambda: len(lines(home, job)) > 1)
    client.cancel(job.id)
    assert control.current(client.db) == "skip"
    wait_for(lambda: len(lines(home, job)) == 25)
    assert job_rows.get_job(client.db, job.id).state is JobState.CANCELLED


def test_three_exceptions_in_a_row_fail_a_job_and_retry_takes_it_up(
    home: Home, client: jobs.JobsClient, launch: Launch
) -> None:
    job = client.enqueue("evaluate", {})
    launch()
    finished(client, job.id)
    failed = job_rows.get_job(client.db, job.id)
    assert (failed.state, failed.error) == (JobState.FAILED, "ValueError: always")
    assert order(home) == [job.id] * 3
    assert client.retry(job.id).error is None
    finished(client, job.id)
    assert order(home) == [job.id] * 6


def test_reconcile_enqueues_what_a_restored_database_has_lost(
    home: Home, client: jobs.JobsClient, launch: Launch
) -> None:
    lost, halted, kept = (client.enqueue("ingest", {"n": n}) for n in range(3))
    done = client.enqueue("ingest", {})
    job_rows.set_state(client.db, done.id, JobState.COMPLETED)
    rewrite(client, "DELETE FROM workflow_status WHERE workflow_uuid IN (:a, :b)", a=lost.id, b=done.id)
    rewrite(client, "UPDATE workflow_status SET status = 'CANCELLED' WHERE workflow_uuid = :a", a=halted.id)
    assert sorted(client.reconcile()) == sorted([lost.id, halted.id])
    assert client.reconcile() == []
    launch()
    finished(client, lost.id, halted.id, kept.id)
    assert sorted(order(home)) == sorted([lost.id, halted.id, kept.id])


def test_reconcile_fails_a_job_whose_workflow_is_dead(client: jobs.JobsClient) -> None:
    job = client.enqueue("ingest", {})
    assert job_rows.begin(client.db, job.id).state is JobState.RUNNING
    rewrite(client, "UPDATE workflow_status SET status = 'ERROR' WHERE workflow_uuid = :a", a=job.id)
    assert client.reconcile() == [job.id]
    assert job_rows.get_job(client.db, job.id).error == "its workflow ended as ERROR"


def test_schedules_run_in_our_queue_without_backfill(home: Home, client: jobs.JobsClient, launch: Launch) -> None:
    client.schedule("nightly", "snapshot", "0 3 * * *", "Europe/Zurich")
    client.schedule("nightly", "snapshot", "30 3 * * *", "Europe/Zurich")
    reader = DBOSClient(
        system_database_url=f"sqlite:///{home.database}",
        serializer=jobs.serializer(),
        application_name=jobs.APPLICATION,
    )
    (schedule,) = reader.list_schedules()
    reader.destroy()
    assert (schedule["schedule"], schedule["queue_name"]) == ("30 3 * * *", "upkeep")
    assert (schedule["cron_timezone"], schedule["automatic_backfill"]) == ("Europe/Zurich", False)
    only_ingest = launch("ingest-0", "ingest")
    job_id = client.trigger("nightly")
    finished(client, client.enqueue("ingest", {}).id)
    assert job_id not in order(home), "a schedule with a queue is not served by the internal one"
    end(only_ingest)
    launch("trainer-0", "upkeep")
    wait_for(lambda: job_id in order(home))
    finished(client, job_id)
    assert job_id in {job.id for job in client.list_jobs()}
    assert job_rows.get_job(client.db, job_id).kind == "snapshot"


def test_schedules_fire_for_the_version_that_runs(home: Home, client: jobs.JobsClient, launch: Launch) -> None:
    """A newer release registered its version, then the user went back to this one."""
    end(launch())
    columns = "version_id, version_name, version_timestamp, created_at, application_name"
    values = "'other', 'newer', version_timestamp + 1, created_at, application_name"
    rewrite(client, f"INSERT INTO application_versions ({columns}) SELECT {values} FROM application_versions")
    launch()
    client.schedule("nightly", "snapshot", "0 3 * * *", "UTC")
    job_id = client.trigger("nightly")
    wait_for(lambda: job_id in order(home))


OFFLINE = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        print(event, arguments, flush=True)
sys.addaudithook(watch)
sys.path.insert(0, sys.argv[1])
import toy_worker
toy_worker.main(sys.argv[2], "trainer-0", "ingest,upkeep")
"""


def test_nothing_leaves_the_machine(home: Home, client: jobs.JobsClient) -> None:
    """Launch, work and stop with every socket watched, in an environment that asks for DBOS's cloud."""
    made = client.enqueue("ingest", {})
    environment = os.environ | {"DBOS__CLOUD": "true", "DBOS__CONDUCTOR_KEY": "key", "DBOS__CONDUCTOR_APP_NAME": "app"}
    command = [sys.executable, "-c", OFFLINE, str(PROGRAM.parent), str(home.root)]
    worker = subprocess.Popen(
        command,
        env=environment | {"DBOS__CONDUCTOR_URL": "ws://127.0.0.1:9"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        finished(client, made.id)
        out, errors = worker.communicate("stop\n", timeout=PATIENCE_S)
    finally:
        worker.kill()
    assert out == "launched\n", errors
    assert worker.returncode == 0
    assert "console.dbos.dev" not in errors


def test_dbos_commits_are_on_disk_before_they_return(home: Home, client: jobs.JobsClient) -> None:
    config = jobs.launch_config(home, "trainer-0")
    engine = config["system_database_engine"]
    assert engine is not None
    with engine.begin() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    engine.dispose()
    assert pragmas == ["wal", 2]


def test_two_workers_and_a_journal_share_one_file(home: Home, client: jobs.JobsClient, launch: Launch) -> None:
    """No lost write and no "database is locked" while two DBOS processes and a trainer write."""
    made = [client.enqueue(kind, {"lines": 20, "sleep_s": 0}) for kind in ("ingest", "train") * 20]
    launch("trainer-0", "train")
    launch("ingest-0", "ingest")
    db = connect(home)
    for number in range(100):
        journal.add_sample(db, number, "p", "g", "a", False)
    finished(client, *(job.id for job in made))
    with db.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(tables.samples)).scalar() == 100
    db.close()
    assert {job.state for job in client.list_jobs()} == {JobState.COMPLETED}
    assert sorted(order(home)) == sorted(job.id for job in made if job.kind == "ingest")
