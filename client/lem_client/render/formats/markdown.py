"""Results as a Markdown table, with the notes as a list below."""

from __future__ import annotations

from collections.abc import Sequence

from lem_client.render.markdown_text import as_text
from lem_client.render.result_table import result_table
from lem_client.render.terminal import clean
from lem_domain.wire.campaigns import CampaignResults


def render(results: CampaignResults) -> str:
    """Return the table in Markdown."""
    table = result_table(results)
    lines = [f"### {as_text(results.name)}", "", _row(table.headings)]
    lines.append(
        "|" + "|".join(" --- " if index in (0, 2, 4) else " ---: " for index in range(len(table.headings))) + "|"
    )
    lines.extend(_row(row) for row in table.rows)
    if table.notes:
        lines.extend(("", *(f"- {as_text(note)}" for note in table.notes)))
    return clean("\n".join(lines) + "\n")


def _row(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {as_text(cell)} " for cell in cells) + "|"
