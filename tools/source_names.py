"""Write the names of the energy sources for the configuration (`python -m tools.source_names`).

The domain can't import the worker, which has the registry. So the names are copied into a generated module.
"""

from __future__ import annotations

from pathlib import Path

from lem_worker.sampler.sources import all_sources

FILE = Path(__file__).parents[1] / "domain" / "lem_domain" / "config" / "source_names.py"


def module_text() -> str:
    """The content of the generated module."""
    names = ", ".join(f'"{name}"' for name in all_sources())
    return (
        '"""Names of the energy sources in worker/lem_worker/sampler/sources/; written by `make reference`."""\n\n'
        "from __future__ import annotations\n\n"
        "from typing import Literal\n\n"
        f"SourceName = Literal[{names}]\n"
    )


if __name__ == "__main__":
    FILE.write_text(module_text(), encoding="utf-8")
