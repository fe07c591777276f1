"""The query parameter that names a method, where results are read."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from lem_domain.results.method import DEFAULT_METHOD, MethodVersion

StoredMethod = Annotated[
    MethodVersion | None,
    Query(description=f"Version of the formulas; if omitted `{DEFAULT_METHOD.value}`, or another one that is stored."),
]
