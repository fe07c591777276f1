"""Prints the OpenAPI document; a test compares it with docs/reference/openapi.json."""

from __future__ import annotations

import json
import sys

from sqlalchemy.engine import make_url

from lem_server.app import create_app
from lem_server.settings import Settings


def document() -> str:
    """Return the document as JSON text in a stable form."""
    app = create_app(Settings(), make_url("postgresql+asyncpg://nowhere/lem"))
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
