"""Write docs/reference/ (`python -m tools.reference`)."""

from __future__ import annotations

import json
from pathlib import Path

from lem_domain.config.schema import campaign_file_schema
from tools.reference.openapi import document
from tools.reference.page import page
from tools.reference.results import findings_page, metrics_page
from tools.reference.tables import tables_page

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


def reference_files() -> dict[str, str]:
    """The content of every file in docs/reference/, by file name."""
    schema = json.dumps(campaign_file_schema(), indent=1, ensure_ascii=False) + "\n"
    return {
        "configuration.md": page(),
        "metrics.md": metrics_page(),
        "findings.md": findings_page(),
        "tables.md": tables_page(),
        "campaign.schema.json": schema,
        "openapi.json": document(),
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in reference_files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
