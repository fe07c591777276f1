"""Results as a table for a terminal, with notes below."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lem_client.render.result_table import ResultTable, result_table
from lem_client.render.terminal import clean
from lem_client.render.terminal import table as terminal_table
from lem_domain.wire.campaigns import CampaignResults

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

_LEFT = ("experiment", "verdict", "method")
_UNBOUNDED = 100_000


def render(results: CampaignResults) -> RenderableType:
    """Lay out the result table."""
    from rich.console import Group  # noqa: PLC0415 - not needed for the other formats

    shown = result_table(results)
    return Group(_Columns(shown), *map(clean, shown.notes))


class _Columns:
    """The table, or several of them below each other where the terminal is too narrow for all columns.

    Each begins with the experiment, and no number is cut: rich would shorten the columns that must not wrap.
    """

    def __init__(self, shown: ResultTable) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        every = range(len(self._shown.headings))
        whole = self._table(every)
        if _width(console, options, whole) <= options.max_width:
            yield whole
            return
        chosen: list[int] = []
        for column in every[1:]:
            if chosen and _width(console, options, self._narrow((0, *chosen, column), options)) > options.max_width:
                yield self._narrow((0, *chosen), options)
                chosen = []
            chosen.append(column)
        yield self._narrow((0, *chosen), options)

    def _narrow(self, columns: Sequence[int], options: ConsoleOptions) -> Table:
        """Return a table of some columns with headings of several lines and texts of at most a third of the width."""
        made = self._table(columns)
        for column, number in zip(made.columns, columns, strict=True):
            heading = self._shown.headings[number]
            if heading in _LEFT:
                column.max_width = options.max_width // 3
            else:
                longest = max((len(row[number]) for row in self._shown.rows), default=0)
                words = max(map(len, heading.split()))
                column.header = textwrap.fill(heading, max(longest, words))
        return made

    def _table(self, columns: Sequence[int]) -> Table:
        headings = [self._shown.headings[column] for column in columns]
        rows = [[row[column] for column in columns] for row in self._shown.rows]
        return terminal_table(headings, rows, right=[heading for heading in headings if heading not in _LEFT])


def _width(console: Console, options: ConsoleOptions, table: Table) -> int:
    """Return the width that a table takes if it may have any."""
    from rich.measure import Measurement  # noqa: PLC0415 - not needed for the other formats

    return Measurement.get(console, options.update(max_width=_UNBOUNDED), table).maximum
