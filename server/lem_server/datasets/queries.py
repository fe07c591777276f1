"""SQL of uploaded sets of prompts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam
from sqlalchemy.types import LargeBinary


class DatasetRow(NamedTuple):
    """An uploaded set of prompts without its texts."""

    sha256: bytes
    name: str
    prompts: int


_INSERT = text("""
    INSERT INTO datasets (sha256, name, prompts, texts) VALUES (:sha256, :name, :prompts, :texts)
    ON CONFLICT (sha256) DO NOTHING
    RETURNING sha256
""").bindparams(bindparam("texts", type_=JSONB))


async def insert(connection: AsyncConnection, *, sha256: bytes, name: str, texts: Sequence[str]) -> bool:
    """Store a set; False when it was there, which leaves it as it was."""
    made = await connection.execute(
        _INSERT, {"sha256": sha256, "name": name, "prompts": len(texts), "texts": list(texts)}
    )
    return made.one_or_none() is not None


# The datasets' primary key, here and below.
_LIST = text("SELECT sha256, name, prompts FROM datasets WHERE sha256 > :after ORDER BY sha256 LIMIT :limit")


async def list_datasets(connection: AsyncConnection, *, after: bytes, limit: int) -> list[DatasetRow]:
    """Uploaded sets in the order of their digests; the texts stay where they are."""
    return [DatasetRow(*row) for row in await connection.execute(_LIST, {"after": after, "limit": limit})]


async def get_dataset(connection: AsyncConnection, sha256: bytes) -> tuple[DatasetRow, list[str]] | None:
    """One set with its texts."""
    row = (
        await connection.execute(
            text("SELECT sha256, name, prompts, texts FROM datasets WHERE sha256 = :sha256"), {"sha256": sha256}
        )
    ).one_or_none()
    return None if row is None else (DatasetRow(*row[:3]), list(row[3]))


_HELD = text("SELECT sha256 FROM datasets WHERE sha256 = ANY(:wanted)").bindparams(
    bindparam("wanted", type_=ARRAY(LargeBinary))
)


async def held(connection: AsyncConnection, wanted: Collection[bytes]) -> set[bytes]:
    """Which of the wanted sets are there."""
    return set((await connection.execute(_HELD, {"wanted": list(wanted)})).scalars())
