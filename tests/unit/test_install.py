"""What a plain installation brings: the thin client and nothing heavy."""

from __future__ import annotations

import re
from importlib.metadata import requires

DISTRIBUTION = "llm-energy-measurement"


def test_a_plain_installation_needs_six_packages() -> None:
    plain = {
        re.split(r"[\[<>=!~; ]", line)[0].lower() for line in requires(DISTRIBUTION) or () if "extra ==" not in line
    }
    assert plain == {"httpx", "pydantic", "pyyaml", "rich", "tenacity", "typer"}
