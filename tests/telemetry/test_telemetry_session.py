"""Sessions: what is on disk while recording, after stop, after a kill and after a full disk; replaying repeats them."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from full_disk import full_disk
from stokehold.core.config import TelemetryConfig
from stokehold.core.errors import DiskFullError, InputError, NotFoundError, StokeholdError, UsageError
from stokehold.core.records import Session, Source
from stokehold.telemetry.analysis import SessionAnalysis
from stokehold.telemetry.readings import DeviceReadings, Faults, Metric, Tick
from stokehold.telemetry.replay import ReplayedSensors
from stokehold.telemetry.sampler import Sampler
from stokehold.telemetry.session import Recorder, SessionFile, load_session
from stokehold.telemetry.table import COLUMNS, header, read_table, row
from stokehold.telemetry.workload import Workload, WorkloadSource

FAST = TelemetryConfig(interval_s=0.02)
PATIENCE_S = 60.0


def two_device_rows(ticks: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for i in range(ticks):
        shared = {"monotonic_s": float(i), "rated_power_w": 200.0, "temperature_limit_c": 83.0}
        rows.append(
            {**shared, "device": "cpu", "utilisation_pct": 20.0, "memory_used_gb": 4.0, "memory_total_gb": 16.0}
        )
        rows.append(
            {
                **{**shared, "device": "gpu0", "utilisation_pct": 90.0 + i % 3, "power_w": 150.0 + i},
                **{"temperature_c": 60.0 + i // 4, "memory_used_gb": 7.5, "memory_total_gb": 24.0},
            }
        )
    return rows


def wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def only_csv(folder: Path) -> Path:
    (path,) = folder.glob("rle_*Z.csv")
    return path


def test_a_session_of_this_machine(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, FAST, "tiny", "full", ambient_c=21.5, notes="by the window")
    recorder.start()
    csv = only_csv(tmp_path)
    partial = json.loads(csv.with_name(csv.stem + "_metadata.json").read_text())
    assert partial["complete"] is False
    assert partial["summary"] is None
    recorder.mark("training_step", 41)
    recorder.count(1000)
    wait_for(lambda: any(r["step"] == "41" for r in read_table(csv).rows), "no row with the step")
    recorder.mark(None)
    wait_for(lambda: read_table(csv).rows[-1]["workload_source"] == WorkloadSource.UTILISATION, "no guess")
    session = recorder.stop()
    assert recorder.stop() is session
    assert session == load_session(csv)
    assert (session.model_name, session.training_mode) == ("tiny", "full")
    assert session.summary["complete"] is True
    assert session.summary["samples"] == sum(r["device"] == "cpu" for r in read_table(csv).rows)
    metadata = json.loads(csv.with_name(csv.stem + "_metadata.json").read_text())
    assert metadata["ambient_c"] == 21.5
    assert metadata["hardware"]["cpu"]["logical_cores"] == os.cpu_count()
    marked = [r for r in read_table(csv).rows if r["step"] == "41"]
    assert {(r["workload_state"], r["workload_source"], r["tokens"]) for r in marked} <= {
        ("training_step", "trainer", "0"),
        ("training_step", "trainer", "1000"),
    }


def test_rows_are_ordered_and_carry_provenance(tmp_path: Path) -> None:
    with Recorder(tmp_path, FAST) as recorder:
        csv = only_csv(tmp_path)
        wait_for(lambda: len(read_table(csv).rows) >= 4, "too few rows")
    assert recorder.energy_j() is None or recorder.energy_j() >= 0
    rows = read_table(csv).rows
    times = [float(r["monotonic_s"]) for r in rows if r["device"] == "cpu"]
    assert times == sorted(times)
    for line in rows:
        assert datetime.fromisoformat(line["timestamp_utc"]).utcoffset() == timedelta(0)
        for metric in Metric:
            assert (line[metric] == "") == (line[f"{metric}_source"] == Source.UNAVAILABLE)
    assert csv.read_text().startswith("# stokehold rle session, schema 1\n")


def test_latest_is_the_status_payload_with_null_for_unknown(tmp_path: Path) -> None:
    sensors = ReplayedSensors.from_rows(two_device_rows(3))
    recorder = Recorder(tmp_path, TelemetryConfig(interval_s=3600), sensors=sensors)
    assert recorder.latest()["gpu"] == dict.fromkeys(("temperature_c", "vram_used_gb", "vram_total_gb", "power_w"))
    assert recorder.latest()["ram"] == {"used_gb": None, "total_gb": None, "percent": None}
    recorder.start()
    latest = recorder.latest()
    assert latest["gpu"] == {"temperature_c": 60.0, "vram_used_gb": 7.5, "vram_total_gb": 24.0, "power_w": 150.0}
    assert latest["ram"] == {"used_gb": 4.0, "total_gb": 16.0, "percent": 25.0}
    assert latest["disk"]["free_gb"] > 0
    assert [d.device for d in recorder.devices()] == ["cpu", "gpu0"]
    recorder.stop()


def test_a_replay_ends_with_a_reason_and_energy_is_counted(tmp_path: Path) -> None:
    sensors = ReplayedSensors.from_rows(two_device_rows(5))
    recorder = Recorder(tmp_path, FAST, sensors=sensors)
    recorder.start()
    recorder.count(10)
    wait_for(lambda: recorder.faults.all(), "the replay never ended")
    session = recorder.stop()
    assert session.summary["samples"] == 5
    assert session.summary["energy_by_device_j"]["cpu"] is None
    assert session.summary["energy_j"] == recorder.energy_j() > 0
    assert session.summary["joules_per_token"] == session.summary["energy_j"] / 10
    assert session.summary["max_power_w"] == {"cpu": None, "gpu0": 154.0}
    assert "replayed log is over" in recorder.faults.all()[0].reason


def write_session(path: Path, rows: list[dict[str, object]]) -> dict[str, object]:
    """The rows as a session CSV, and their summary, with a trainer that says nothing."""
    analysis, file = SessionAnalysis(), SessionFile(path)
    for tick in ReplayedSensors.from_rows(rows).ticks():
        for device, derived in zip(tick.devices, analysis.observe(tick), strict=True):
            file.append(row(tick, device, derived, Workload(None, WorkloadSource.UNKNOWN), 0))
    file.close()
    return analysis.summary(0)


def test_replaying_a_csv_repeats_its_analysis_exactly(tmp_path: Path) -> None:
    path = tmp_path / "rle_x.csv"
    summary = write_session(path, two_device_rows(40))
    again = SessionAnalysis()
    derived = [d for tick in ReplayedSensors.from_csv(path).ticks() for d in again.observe(tick)]
    assert again.summary(0) == summary
    assert summary["rle_range"]["gpu0"] is not None  # type: ignore[index]
    written = [r["rle"] for r in read_table(path).rows]
    assert written == ["" if d.rle.rle is None else format(d.rle.rle, ".6g") for d in derived]
    assert sum(bool(cell) for cell in written) == 30


KILLED = """
import sys, time
from pathlib import Path
from stokehold.core.config import TelemetryConfig
from stokehold.telemetry.session import Recorder
recorder = Recorder(Path(sys.argv[1]), TelemetryConfig(interval_s=0.02), "tiny", "full")
recorder.start()
recorder.mark("training_step", 1)
recorder.count(500)
time.sleep(600)
"""


def test_a_killed_recording_is_a_readable_session(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    try:
        wait_for(lambda: list(tmp_path.glob("*_metadata.json")), "the recording never began")
        csv = only_csv(tmp_path)
        wait_for(lambda: any(r["tokens"] == "500" for r in read_table(csv).rows), "no rows")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with csv.open("ab") as file:
        file.write(b"2026-01-01T00:00:00+00:00,12")
    table = read_table(csv)
    assert table.torn == 1
    session = load_session(csv)
    assert session.summary["complete"] is False
    assert session.summary["samples"] == len({r["monotonic_s"] for r in table.rows})
    assert session.summary["tokens"] == 500
    assert session.seconds > 0
    assert session.model_name == "tiny"


@pytest.fixture
def tiny_files() -> Iterator[None]:
    """No file of this process may grow beyond 4 kB: a full disk, as a program meets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported_and_spoils_no_later_row(tmp_path: Path, tiny_files: None) -> None:
    recorder = Recorder(tmp_path, FAST)
    recorder.start()
    wait_for(lambda: any(f.where == "sink" for f in recorder.faults.all()), "the disk was never full")
    assert recorder.latest()["ram"]["used_gb"] is not None
    csv = only_csv(tmp_path)
    before = len(read_table(csv).rows)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    wait_for(lambda: len(read_table(csv).rows) > before + 2, "no rows after there was space again")
    session: Session = recorder.stop()
    assert read_table(csv).torn <= 1
    assert session.summary["samples"] > sum(r["device"] == "cpu" for r in read_table(csv).rows)


def test_rows_after_a_torn_one_begin_on_their_own_line(tmp_path: Path, tiny_files: None) -> None:
    file = SessionFile(tmp_path / "rle_x.csv")
    whole = ",".join(["x"] * len(COLUMNS)) + "\n"
    with pytest.raises(OSError, match="only part of a row"):
        file.append(whole * 200)
    with pytest.raises(OSError, match="File too large"):
        file.append(whole)
    before = len(read_table(file.path).rows)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    file.append(whole)
    file.append(whole)
    file.close()
    assert len(read_table(file.path).rows) == before + 2
    assert read_table(file.path).torn == 1


@pytest.mark.parametrize("refused", [".csv", ".staging"])
def test_a_session_that_has_no_room_to_begin_says_so_and_leaves_nothing(tmp_path: Path, refused: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for folder in (tmp_path / "new" / "session", mine):
        with pytest.raises(DiskFullError, match="cannot record telemetry"):
            Recorder(full_disk(folder, refused), FAST).start()
    assert (tmp_path / "new").is_dir()
    assert list((tmp_path / "new").iterdir()) == []
    assert list(mine.iterdir()) == [], "a folder that was there stays"


def test_what_a_full_disk_ends_is_kept_where_something_was_trained(tmp_path: Path) -> None:
    full = DiskFullError("no space left on the disk")
    for name, tokens, error in (("idle", 0, full), ("trained", 7, full), ("failed", 0, ValueError("no space"))):
        recorder = Recorder(tmp_path / name, FAST)
        recorder.count(tokens)
        with pytest.raises(type(error), match="no space"), recorder:
            raise error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failed", "trained"]
    assert load_session(only_csv(tmp_path / "trained")).summary["tokens"] == 7


class Unreliable:
    """A source of readings that fails on every second look."""

    def __init__(self) -> None:
        self.looks = 0

    def read(self) -> tuple[DeviceReadings, ...]:
        self.looks += 1
        if self.looks % 2:
            raise RuntimeError("the bus is busy")
        return ()


def test_the_thread_outlives_failing_sensors_and_a_failing_sink() -> None:
    enough = threading.Event()
    ticks: list[Tick] = []

    def sink(tick: Tick) -> None:
        ticks.append(tick)
        if len(ticks) == 4:
            enough.set()
        raise ValueError("the sink is blocked")

    sampler = Sampler(Unreliable(), 0.005, sink, Faults())
    sampler.start()
    assert enough.wait(PATIENCE_S)
    sampler.stop()
    after = len(ticks)
    sampler.stop()
    reasons = {fault.where: fault for fault in sampler.faults.all()}
    assert reasons["sensors"].reason == "RuntimeError: the bus is busy"
    assert reasons["sensors"].count >= 4
    assert reasons["sink"].reason == "ValueError: the sink is blocked"
    assert len(ticks) == after
    assert [t.monotonic_s for t in ticks] == sorted(t.monotonic_s for t in ticks)
    assert all(t.utc.tzinfo is UTC for t in ticks)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StokeholdError, match="cannot record telemetry"):
        Recorder(tmp_path / "taken" / "session", FAST).start()


def test_a_recorder_is_used_once_and_in_order(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, FAST)
    with pytest.raises(UsageError, match="never started"):
        recorder.stop()
    recorder.start()
    with pytest.raises(UsageError, match="already started"):
        recorder.start()
    recorder.stop()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"utilisation_pct": "ninety"}, "row 2"),
        ({"device": None, "monotonic_s": ""}, "row 2"),
        ({"rated_power_w": ""}, "rated_power_w"),
        ({"utilisation_pct_source": "unavailable"}, "marked unavailable"),
        ({"monotonic_s": -5.0}, "backwards"),
    ],
)
def test_rows_that_do_not_fit_are_named(spoil: dict[str, object], reason: str) -> None:
    rows = two_device_rows(1)
    with pytest.raises(InputError, match=reason):
        ReplayedSensors.from_rows([rows[0], {**rows[1], **spoil}])


def test_a_replay_says_when_it_is_over_and_unmarked_values_are_marked() -> None:
    sensors = ReplayedSensors.from_rows(two_device_rows(1), unmarked=Source.ESTIMATED)
    assert sensors.read()[1].reading(Metric.POWER_W).source is Source.ESTIMATED
    with pytest.raises(NotFoundError, match="over"):
        sensors.read()


def test_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rle_x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a session CSV"):
        read_table(path)
    path.write_text(header().replace("schema 1", "schema 2"))
    with pytest.raises(InputError, match="newer"):
        read_table(path)
    with pytest.raises(InputError, match="without its metadata"):
        load_session(path)
