"""Cursors of lists: opaque to clients, a place in the order of the list's keys to the server."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, TypeVar

from fastapi import Query
from pydantic import Field, TypeAdapter, ValidationError

from lem_domain.errors import ProblemCode
from lem_server.http.problems import ProblemError

MAX_PAGE = 500

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most items of the page.")]
Cursor = Annotated[
    str | None,
    Query(max_length=500, description="`next` of the page before; left out for the first page."),
]

Int4 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Int8 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""What a place may hold: the database's own ranges, so that a made-up cursor is refused before it gets there."""

T = TypeVar("T")


def encode_cursor(kind: str, place: tuple[object, ...]) -> str:
    """A place as an opaque text; `kind` names the list, so that no other takes it."""
    text = json.dumps([kind, *(part if isinstance(part, int) else str(part) for part in place)], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def decode_cursor(kind: str, cursor: str | None, place: TypeAdapter[T]) -> T | None:
    """The place behind a cursor; None where there is none.

    Raises:
        ProblemError: `bad_request`.
    """
    if cursor is None:
        return None
    try:
        found, *parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if found != kind:
            raise ValueError(found)
        return place.validate_python(tuple(parts))
    except (ValueError, TypeError, binascii.Error, ValidationError, RecursionError):
        raise ProblemError(
            ProblemCode.BAD_REQUEST,
            "the cursor is not one that this list gave; take `next` of the page before, or leave it out.",
        ) from None
