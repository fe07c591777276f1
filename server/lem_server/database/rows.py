"""Reads rows whose columns have the names of a type's fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")


async def read_all(
    connection: AsyncConnection, statement: TextClause, make: Callable[..., T], **parameters: object
) -> list[T]:
    """Return every row as what `make` returns for its columns."""
    rows = await connection.execute(statement, parameters)
    return [make(**row) for row in rows.mappings()]


async def read_one(
    connection: AsyncConnection, statement: TextClause, make: Callable[..., T], **parameters: object
) -> T | None:
    """Return the only row like that, or None without one."""
    row = (await connection.execute(statement, parameters)).mappings().one_or_none()
    return None if row is None else make(**row)
