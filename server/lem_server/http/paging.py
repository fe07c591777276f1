"""Pages of lists, and their cursors: opaque to clients, the sort key of the last item to the server."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.errors import ProblemCode
from lem_domain.wire.base import Page
from lem_server.http.problems import ProblemError

MAX_PAGE = 500

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Maximum number of items.")]
Cursor = Annotated[
    str | None,
    Query(max_length=500, description="`next` of the previous page; omit it for the first page."),
]

Int4 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Int8 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""Integers of a cursor. The ranges are the database's, so that a forged cursor is refused before a query."""

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def encode_cursor(kind: str, key: tuple[object, ...]) -> str:
    """Return a sort key as opaque text. `kind` names the list, so that no other list accepts the cursor."""
    text = json.dumps([kind, *(part if isinstance(part, int) else str(part) for part in key)], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def decode_cursor(kind: str, cursor: str | None, key: TypeAdapter[T]) -> T | None:
    """Return the sort key of a cursor, or None without a cursor.

    Raises:
        ProblemError: `bad_request`.
    """
    if cursor is None:
        return None
    try:
        found, *parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if found != kind:
            raise ValueError(found)
        return key.validate_python(tuple(parts))
    except (ValueError, TypeError, binascii.Error, ValidationError, RecursionError):
        raise ProblemError(
            ProblemCode.BAD_REQUEST,
            "this list did not issue the cursor; send `next` of the previous page, or omit it.",
        ) from None


class Listing(Generic[M]):
    """A list of models, read page by page. `kind` names it in its cursors; columns with types are its sort key."""

    def __init__(self, kind: str, model: type[M], **sort_key: Any) -> None:
        self._kind = kind
        self._model = model
        self._columns = tuple(sort_key)
        key: Any = tuple[tuple(sort_key.values())]  # type: ignore[misc] # built from the columns
        self._key: TypeAdapter[tuple[Any, ...]] = TypeAdapter(key)

    def after(self, cursor: str | None, *first: object) -> tuple[Any, ...]:
        """Return the sort key of a cursor, or without a cursor the one before the first page.

        Raises:
            ProblemError: `bad_request`.
        """
        return decode_cursor(self._kind, cursor, self._key) or first

    async def page(
        self, connection: AsyncConnection, statement: TextClause, limit: int, **parameters: object
    ) -> Page[M]:
        """Return the page that a statement with the parameter `limit` reads.

        Its columns have the names of the model's fields and of the sort key; others are ignored.
        """
        found = await connection.execute(statement, {**parameters, "limit": limit + 1})
        rows = [dict(row) for row in found.mappings()]
        following = None
        if len(rows) > limit:
            following = encode_cursor(self._kind, tuple(rows[limit - 1][column] for column in self._columns))
        return Page(items=tuple(self._model.model_validate(row) for row in rows[:limit]), next=following)
