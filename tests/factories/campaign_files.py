"""Campaign files for end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import yaml


def campaign(folder: Path, name: str = "campaign", **document: object) -> Path:
    """Write a campaign file."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
