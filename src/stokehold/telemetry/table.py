"""The session CSV: a comment line with the schema version, a header, one row per device and tick.

Readings are written in full, so that an analysis of the file repeats the live one exactly; an empty cell is unknown.
A file cut off by a crash is read up to its last whole row.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stokehold.core.errors import InputError
from stokehold.telemetry.analysis import Derived
from stokehold.telemetry.readings import DeviceReadings, Limit, Metric, Tick
from stokehold.telemetry.workload import Workload

SCHEMA = 1
SCHEMA_LINE = "# stokehold rle session, schema "

READING_COLUMNS = tuple((str(metric), f"{metric}_source") for metric in Metric)
LIMIT_COLUMNS = (
    ("rated_power_w", "rated_power_from"),
    ("temperature_limit_c", "temperature_limit_from"),
    ("memory_temperature_limit_c", "memory_temperature_limit_from"),
)
DERIVED_COLUMNS = (
    *("slope_c_per_s", "eta", "alpha", "sigma", "t_sustain_s", "e_th", "e_pw", "rle"),
    *("rle_smoothed", "rle_peak", "degenerate", "collapsed"),
)
COLUMNS = (
    *("timestamp_utc", "monotonic_s", "device", "kind"),
    *(name for pair in (*READING_COLUMNS, *LIMIT_COLUMNS) for name in pair),
    *DERIVED_COLUMNS,
    *("workload_state", "workload_source", "step", "tokens"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """A session CSV as read: `rows` map column to text, `torn` counts lines that were not whole rows."""

    schema: int
    rows: tuple[Mapping[str, str], ...]
    torn: int


def header() -> str:
    """The first two lines of the file."""
    return f"{SCHEMA_LINE}{SCHEMA}\n{_line(COLUMNS)}"


def row(tick: Tick, device: DeviceReadings, derived: Derived, workload: Workload, tokens: int) -> str:
    """One line of the file. `tokens` is the session's count so far."""
    cells: list[object] = [tick.utc.isoformat(), tick.monotonic_s, device.device, device.kind]
    for metric in Metric:
        reading = device.reading(metric)
        cells += [reading.value, reading.source]
    for limit in (device.limits.rated_power_w, device.limits.temperature_c, device.limits.memory_temperature_c):
        cells += _limit_cells(limit)
    now = derived.rle
    parts = (derived.slope_c_per_s, now.eta, now.alpha, now.sigma, now.t_sustain_s, now.e_th, now.e_pw, now.rle)
    cells += [_rounded(value) for value in (*parts, derived.rle_smoothed, derived.rle_peak)]
    cells += [int(now.degenerate), int(derived.collapsed)]
    cells += [workload.state, workload.source, workload.step, tokens]
    return _line(cells)


def read_table(path: Path) -> Table:
    """The whole rows of the file; `InputError` when it is no session CSV or of a newer schema."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = text.split("\n")
    whole, rest = lines[:-1], lines[-1]
    if not whole or not whole[0].startswith(SCHEMA_LINE):
        raise InputError("not a session CSV", str(path), f"its first line must begin with {SCHEMA_LINE!r}")
    schema = _schema(whole[0], path)
    columns = whole[1].split(",") if len(whole) > 1 else []
    parsed = list(csv.reader(line for line in whole[2:] if line))
    rows = tuple(dict(zip(columns, cells, strict=True)) for cells in parsed if len(cells) == len(columns))
    return Table(schema, rows, len(parsed) - len(rows) + bool(rest))


def _schema(line: str, path: Path) -> int:
    word = line.removeprefix(SCHEMA_LINE)
    if not word.isdecimal() or int(word) > SCHEMA:
        raise InputError(f"session CSV of schema {word!r}, this program reads {SCHEMA}", str(path), "use a newer stoke")
    return int(word)


def _line(cells: Iterable[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _limit_cells(limit: Limit | None) -> list[object]:
    return [None, None] if limit is None else [limit.value, limit.source]


def _rounded(value: float | None) -> str | None:
    """Six significant digits: derived numbers can be had again from the readings beside them."""
    return None if value is None else format(value, ".6g")
