"""`python -m reference`: writes docs/reference/ anew."""

from __future__ import annotations

import json
from pathlib import Path

from lem_domain.config.schema import campaign_file_schema
from reference.page import page

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


def written() -> dict[str, str]:
    """Every file of the folder, by its name."""
    schema = json.dumps(campaign_file_schema(), indent=1, ensure_ascii=False) + "\n"
    return {"configuration.md": page(), "campaign.schema.json": schema}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in written().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
