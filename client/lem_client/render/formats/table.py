"""Results as a table for a terminal, with notes below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lem_client.render.result_table import result_table
from lem_client.render.terminal import clean
from lem_client.render.terminal import table as terminal_table
from lem_domain.wire.campaigns import CampaignResults

if TYPE_CHECKING:
    from rich.console import RenderableType

_LEFT = ("experiment", "verdict", "method")


def render(results: CampaignResults) -> RenderableType:
    """Lay out the result table."""
    from rich.console import Group  # noqa: PLC0415 - not needed for the other formats

    shown = result_table(results)
    right = tuple(heading for heading in shown.headings if heading not in _LEFT)
    return Group(terminal_table(shown.headings, shown.rows, right=right), *map(clean, shown.notes))
