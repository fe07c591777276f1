"""The client stays thin: nothing heavy is imported, by the library or by the command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("numpy", "torch", "transformers", "sqlalchemy", "fastapi", "uvicorn", "pyarrow", "lem_server", "lem_worker")


@pytest.mark.parametrize("module", ["lem_client", "lem_client.cli.main"])
def test_nothing_heavy_is_imported(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in json.loads(output)}
    assert not loaded & set(HEAVY)
