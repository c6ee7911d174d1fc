"""Sensors that repeat a log: a session CSV or rows of numbers. For analysis after the fact, and for trying things."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from stokehold.core.errors import InputError, NotFoundError
from stokehold.core.records import Reading, Source
from stokehold.telemetry.readings import UNAVAILABLE, DeviceReadings, Limit, Limits, LimitSource, Metric, Tick
from stokehold.telemetry.table import LIMIT_COLUMNS, read_table


class ReplayedSensors:
    """The ticks of a log, in order, as a `Sensors`: each `read` gives the next tick's readings.

    After the last, `read` raises `NotFoundError`: a replay never repeats a reading as if it were new.
    """

    def __init__(self, ticks: Iterable[Tick]) -> None:
        self._ticks = tuple(ticks)
        self._next = 0

    @classmethod
    def from_csv(cls, path: Path) -> "ReplayedSensors":
        """A session CSV; `InputError` when it is none."""
        return cls.from_rows(read_table(path).rows, where=str(path))

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], *, unmarked: Source = Source.MEASURED, where: str = "rows"
    ) -> "ReplayedSensors":
        """Rows with the columns of the session CSV, in time order; rows of one `monotonic_s` are one tick.

        Needed: `monotonic_s` and `device`. A value without its `…_source` column is taken as `unmarked`; limits are
        needed as `rated_power_w` and `temperature_limit_c`. `InputError` names the row (from 1) that does not fit.
        """
        numbered = [_checked(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)]
        ticks = []
        for monotonic_s, group in groupby(numbered, key=lambda item: item[0]):
            members = list(group)
            ticks.append(Tick(monotonic_s, members[0][1], tuple(_device(row, unmarked) for _, _, row in members)))
        for before, after in pairwise(ticks):
            if after.monotonic_s < before.monotonic_s:
                raise InputError(f"time runs backwards at {after.monotonic_s} s", where, "sort the rows by monotonic_s")
        return cls(ticks)

    def ticks(self) -> Iterator[Tick]:
        """Every tick with its recorded time, from the first, whatever `read` has given."""
        return iter(self._ticks)

    def read(self) -> tuple[DeviceReadings, ...]:
        if self._next >= len(self._ticks):
            raise NotFoundError("the replayed log is over", f"{len(self._ticks)} ticks")
        self._next += 1
        return self._ticks[self._next - 1].devices


def _checked(row: Mapping[str, Any], where: str) -> tuple[float, datetime, Mapping[str, Any]]:
    """(seconds, UTC, row); every cell is parsed here once so that an error can name its row."""
    try:
        monotonic_s = float(row["monotonic_s"])
        stamp = row.get("timestamp_utc")
        utc = datetime.fromisoformat(stamp) if stamp else datetime.fromtimestamp(monotonic_s, UTC)
        _device(row, Source.MEASURED)
    except (KeyError, ValueError) as error:
        raise InputError(f"not a telemetry row ({type(error).__name__}: {error})", where) from error
    return monotonic_s, utc, row


def _device(row: Mapping[str, Any], unmarked: Source) -> DeviceReadings:
    name = str(row["device"])
    rated, limit, memory = (_limit(row, *columns) for columns in LIMIT_COLUMNS)
    if rated is None or limit is None:
        raise ValueError("rated_power_w and temperature_limit_c are needed")
    readings = {metric: _reading(row, metric, unmarked) for metric in Metric}
    return DeviceReadings(
        name, str(row.get("kind") or name.rstrip("0123456789")), readings, Limits(rated, limit, memory)
    )


def _reading(row: Mapping[str, Any], metric: Metric, unmarked: Source) -> Reading:
    cell = row.get(metric)
    if cell is None or cell == "":
        return UNAVAILABLE
    source = Source(row.get(f"{metric}_source") or unmarked)
    if source is Source.UNAVAILABLE:
        raise ValueError(f"{metric} has a value and is marked unavailable")
    return Reading(float(cell), source)


def _limit(row: Mapping[str, Any], column: str, source_column: str) -> Limit | None:
    cell = row.get(column)
    if cell is None or cell == "":
        return None
    return Limit(float(cell), LimitSource(row.get(source_column) or LimitSource.CONFIG))
