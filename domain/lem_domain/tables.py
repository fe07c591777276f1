"""The tables that a campaign is exported as, and their formats; docs/reference/tables.md has the columns."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class TableName(StrEnum):
    """The tables of a campaign."""

    RUNS = "runs"
    EXPERIMENTS = "experiments"
    REQUESTS = "requests"
    TOKENS = "tokens"
    POWER = "power"
    HOST_POWER = "host_power"
    PHASES = "phases"
    EVENTS = "events"


class TableFormat(StrEnum):
    """The formats of a table. The value is also the usual suffix of a file."""

    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"
    ARROW = "arrow"

    @property
    def is_text(self) -> bool:
        """Whether a terminal can show it."""
        return self not in (TableFormat.PARQUET, TableFormat.ARROW)


OPEN_RUNS_HEADER: Final = "Lem-Open-Runs"
"""Header of an exported table: runs that are still queued or live, whose rows may be missing or few."""
