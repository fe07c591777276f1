"""Reads a meter's log: a CSV file with a column of times and one of powers."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from lem_domain.wire.calibration import MeterLogOptions
from lem_server.aggregation.energy.traces import FloatArray
from lem_server.aggregation.errors import CalibrationRefused
from lem_server.aggregation.evidence_reader import IntArray

MAX_ROWS = 1_000_000
FEWEST_ROWS = 20
_TIME_NAMES = (
    "time",
    "timestamp",
    "datetime",
    "date_time",
    "date",
    "time_utc",
    "timestamp_utc",
    "time_unix_ns",
    "unix",
)
_POWER_NAMES = ("power", "power_w", "watts", "watt", "w", "p", "power_mw", "power_kw", "power (w)", "power [w]")
_WATTS = {"W": 1.0, "mW": 1e-3, "kW": 1e3}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIX_TIME = re.compile(r"\d{9,19}(\.\d+)?")
_NS_PER_UNIT = ((10**17, 1), (10**14, 10**3), (10**11, 10**6), (0, 10**9))
"""A number of this size since 1970 is in ns, µs, ms or s (from 1973 on)."""


class MeterLog(NamedTuple):
    """Powers in W with their times in ns since 1970 (UTC), rising; and the number of rows without a power."""

    times_ns: IntArray
    watts: FloatArray
    empty_rows: int


def read_meter_log(body: bytes, options: MeterLogOptions) -> MeterLog:
    """Read a log. Powers of one time are averaged, because some meters write several rows per second.

    Times are ISO 8601, with an offset from UTC or in `options.timezone`, or numbers since 1970 in s, ms, µs or ns. The
    separator is a comma, a semicolon (then a comma may be the decimal point) or a tab.

    Raises:
        CalibrationRefused: what is wrong with the log, with the line.
    """
    zone = _zone(options.timezone)
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationRefused("the log is not text in UTF-8; export it from the meter as CSV.") from error
    first = text.lstrip().partition("\n")[0]
    separator = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text), delimiter=separator)
    try:
        header = [name.strip() for name in next((row for row in rows if row), [])]
        if not header:
            raise CalibrationRefused("the log is empty.")
        time_at = _column(header, options.time_column, _TIME_NAMES, "time_column")
        power_at = _column(header, options.power_column, _POWER_NAMES, "power_column")
        times: list[int] = []
        watts: list[float] = []
        empty = 0
        for row in rows:
            cell = row[power_at].strip() if power_at < len(row) else ""
            if not cell:
                empty += bool(row)
                continue
            where = f"line {rows.line_num}"
            times.append(_time_ns(row[time_at].strip(), zone, where))
            watts.append(_power(cell, separator, where) * _WATTS[options.unit])
            if len(times) > 1 and times[-1] < times[-2]:
                raise CalibrationRefused(
                    f"{where}: the time {row[time_at].strip()!r} is before that of the line before; sort the log, and "
                    "if its clock was set back meanwhile (end of summer time) use the part before or after."
                )
            if len(times) > MAX_ROWS:
                raise CalibrationRefused(f"the log has more than {MAX_ROWS:,} rows; cut it to the time of the run.")
    except csv.Error as error:
        raise CalibrationRefused(f"line {rows.line_num} can't be read as CSV: {error}.") from error
    at, first_of, counts = np.unique(np.array(times, dtype=np.int64), return_index=True, return_counts=True)
    if len(at) < FEWEST_ROWS:
        raise CalibrationRefused(f"the log has {len(at)} times with a power; at least {FEWEST_ROWS} are needed.")
    return MeterLog(at, np.add.reduceat(np.array(watts), first_of) / counts, empty)


def _column(header: Sequence[str], given: str | None, usual: Sequence[str], option: str) -> int:
    listed = ", ".join(header[:30])
    if given is not None:
        if given not in header:
            raise CalibrationRefused(f"the log has no column {given!r}; its columns are {listed}.")
        return header.index(given)
    found = [index for index, name in enumerate(header) if name.lower() in usual]
    if len(found) != 1:
        which = "no column is" if not found else f"{len(found)} columns are"
        raise CalibrationRefused(f"{which} named like it; name it with {option}. The columns are {listed}.")
    return found[0]


def _zone(name: str | None) -> ZoneInfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise CalibrationRefused(f"there is no time zone {name!r}; give an IANA name, such as Europe/Paris.") from error


def _time_ns(cell: str, zone: ZoneInfo | None, where: str) -> int:
    if _UNIX_TIME.fullmatch(cell):
        whole, _, rest = cell.partition(".")
        per = next(ns for least, ns in _NS_PER_UNIT if int(whole) >= least)
        return int(whole) * per + round(float(f"0.{rest or 0}") * per)
    try:
        at = datetime.fromisoformat(cell.replace("/", "-"))
    except ValueError as error:
        raise CalibrationRefused(
            f"{where}: {cell!r} is no time; write ISO 8601 (2026-12-01T08:30:00+01:00) or seconds since 1970."
        ) from error
    if at.tzinfo is None:
        if zone is None:
            raise CalibrationRefused(f"{where}: {cell!r} has no offset from UTC; name the log's time zone (timezone).")
        at = at.replace(tzinfo=zone)
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000


def _power(cell: str, separator: str, where: str) -> float:
    try:
        value = float(cell.replace(",", ".") if separator == ";" else cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CalibrationRefused(f"{where}: {cell!r} is no power; check the column, and remove units from its values.")
    return value


def utc_text(times_ns: Sequence[int]) -> str:
    """Return the first and the last of several times in words."""
    shown = [(_EPOCH + timedelta(microseconds=one // 1000)).strftime("%Y-%m-%d %H:%M:%S") for one in times_ns]
    return f"{shown[0]} to {shown[-1]} UTC"
