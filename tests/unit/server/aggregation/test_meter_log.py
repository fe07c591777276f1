"""A meter's log is read in the forms that meters write, and what can't be read is refused with its line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from lem_domain.wire.calibration import MeterLogOptions
from lem_server.aggregation.calibration.meter_log import read_meter_log, utc_text
from lem_server.aggregation.errors import CalibrationRefused

BEGIN = datetime(2026, 12, 1, 8, 30, tzinfo=UTC)
BEGIN_NS = int(BEGIN.timestamp()) * 10**9


def rows(*, count: int = 25, time: Any = None, separator: str = ",", header: str = "time,power_w") -> list[str]:
    """A row per second of 100 W, 101 W, …; `time` writes the time of a second."""
    write = time or (lambda at: (BEGIN + timedelta(seconds=at)).isoformat())
    return [header.replace(",", separator), *(f"{write(at)}{separator}{100 + at}" for at in range(count))]


def read(lines: list[str], **options: Any) -> tuple[list[int], list[float], int]:
    found = read_meter_log("\n".join(lines).encode(), MeterLogOptions.model_validate(options))
    return [one - BEGIN_NS for one in found.times_ns.tolist()], found.watts.tolist(), found.empty_rows


def local(at: int) -> str:
    return (BEGIN + timedelta(seconds=at)).astimezone(timezone(timedelta(hours=1))).strftime("%Y-%m-%d %H:%M:%S.%f")


SECONDS = [at * 10**9 for at in range(25)]
WATTS = [100.0 + at for at in range(25)]


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        (rows(), {}),
        (rows(header="Timestamp,Power (W)"), {}),
        (rows(header="a,b"), {"time_column": "a", "power_column": "b"}),
        (rows(time=local), {"timezone": "Europe/Berlin"}),
        (rows(time=lambda at: local(at).replace("-", "/")), {"timezone": "Europe/Berlin"}),
        (rows(time=lambda at: BEGIN_NS // 10**9 + at), {}),
        (rows(time=lambda at: f"{BEGIN_NS // 10**9 + at}.0"), {}),
        (rows(time=lambda at: BEGIN_NS // 10**6 + at * 1000), {}),
        (rows(time=lambda at: BEGIN_NS // 10**3 + at * 10**6), {}),
        (rows(time=lambda at: BEGIN_NS + at * 10**9), {}),
        ([line.replace(",", "\t") for line in rows()], {}),
        (["\ufeff" + rows()[0], *rows()[1:]], {}),
        (["", *rows(), ""], {}),
    ],
)
def test_common_forms_are_read(lines: list[str], options: dict[str, Any]) -> None:
    assert read(lines, **options) == (SECONDS, WATTS, 0)


def test_a_decimal_comma_after_semicolons_and_other_units_are_read() -> None:
    lines = [line if not at else f"{line},5" for at, line in enumerate(rows(separator=";"))]
    assert read(lines)[1] == [one + 0.5 for one in WATTS]
    assert read(rows(), unit="mW")[1] == pytest.approx([one / 1e3 for one in WATTS])
    assert read(rows(), unit="kW")[1] == [one * 1e3 for one in WATTS]


def test_rows_of_one_time_are_averaged_and_empty_ones_counted() -> None:
    first, *others = rows(count=30)
    lines = [first, *(line for row in others for line in (row, row.rpartition(",")[0] + ",200")), others[-1][:26], ""]
    times, watts, empty = read([*lines, others[-1].rpartition(",")[0] + ","])
    assert len(times) == 30 and watts[:2] == [150, 150.5] and empty == 2


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ([], {}, "the log is empty"),
        (["", ""], {}, "the log is empty"),
        (rows(count=0), {}, "0 times with a power; at least 20"),
        (rows(count=19), {}, "19 times with a power; at least 20"),
        (rows(), {"power_column": "W"}, "no column 'W'; its columns are time, power_w"),
        (rows(header="time,volts"), {}, "power_column. The columns are time, volts"),
        (rows(header="when,power"), {}, "time_column. The columns are when, power"),
        (rows(header="time,timestamp,power"), {}, "2 columns are named like it"),
        (rows(time=local), {}, "line 2: .* name the log's time zone"),
        (rows(time=local), {"timezone": "Mars/Olympus"}, "there is no time zone 'Mars/Olympus'"),
        (rows(time=local), {"timezone": "../etc/passwd"}, "there is no time zone"),
        (rows(time=lambda at: at), {}, "line 2: '0' is no time"),
        (rows(time=lambda at: "yesterday"), {}, "line 2: 'yesterday' is no time"),
        ([*rows(), rows()[3]], {}, "line 27: the time .* is before"),
        ([*rows()[:5], rows()[5] + " W", *rows()[6:]], {}, "line 6: '104 W' is no power"),
        ([*rows()[:5], "2026-12-01T08:30:04Z,nan"], {}, "line 6: 'nan' is no power"),
    ],
)
def test_what_can_t_be_read_is_refused(lines: list[str], options: dict[str, Any], words: str) -> None:
    with pytest.raises(CalibrationRefused, match=words):
        read(lines, **options)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(CalibrationRefused, match="not text in UTF-8"):
        read_meter_log(b"\xff\xfe\x00", MeterLogOptions())


def test_the_hour_that_summer_time_repeats_goes_back() -> None:
    """After 02:59:59 in Berlin on 2026-10-25 comes 02:00:00 again, which a log without offsets can't show."""
    lines = rows(time=lambda at: f"2026-10-25 02:{59 if at < 20 else 0:02}:{at + 20:02}")
    with pytest.raises(CalibrationRefused, match="end of summer time"):
        read(lines, timezone="Europe/Berlin")


def test_times_are_shown_in_utc() -> None:
    assert utc_text((BEGIN_NS, BEGIN_NS + 10**9)) == "2026-12-01 08:30:00 to 2026-12-01 08:30:01 UTC"
