"""The OpenAPI document: the one in the repository is the application's, and it says what scripts must know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.reference.openapi import document

COMMITTED = Path(__file__).parents[3] / "docs" / "reference" / "openapi.json"


def operations() -> list[tuple[str, str, dict[str, object]]]:
    paths = json.loads(document())["paths"]
    return [(method, path, operation) for path, methods in paths.items() for method, operation in methods.items()]


def test_the_committed_document_is_the_applications() -> None:
    assert COMMITTED.read_text() == document(), "run `make reference` and look at what changed"


@pytest.mark.parametrize(("method", "path", "operation"), operations(), ids=lambda value: str(value)[:60])
def test_every_api_operation_names_its_scope_and_its_refusals(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    if not path.startswith("/api/"):
        return
    assert operation["x-lem-scope"] in ("read", "submit", "ingest", "work", "admin"), (method, path)
    assert {"401", "403"} <= set(operation["responses"])
    assert operation["summary"] or operation["description"]
