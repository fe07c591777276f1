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
    """Store a set; return False when it exists, which leaves it unchanged."""
    inserted = await connection.execute(
        _INSERT, {"sha256": sha256, "name": name, "prompts": len(texts), "texts": list(texts)}
    )
    return inserted.one_or_none() is not None


# Every statement uses the primary key.
_LIST = text("SELECT sha256, name, prompts FROM datasets WHERE sha256 > :after ORDER BY sha256 LIMIT :limit")


async def list_datasets(connection: AsyncConnection, *, after: bytes, limit: int) -> list[DatasetRow]:
    """Return one page of uploaded sets, ordered by digest, without their texts."""
    return [DatasetRow(*row) for row in await connection.execute(_LIST, {"after": after, "limit": limit})]


async def get_dataset(connection: AsyncConnection, sha256: bytes) -> tuple[DatasetRow, list[str]] | None:
    """Return a set and its texts."""
    row = (
        await connection.execute(
            text("SELECT sha256, name, prompts, texts FROM datasets WHERE sha256 = :sha256"), {"sha256": sha256}
        )
    ).one_or_none()
    return None if row is None else (DatasetRow(*row[:3]), list(row[3]))


_EXISTING = text("SELECT sha256 FROM datasets WHERE sha256 = ANY(:wanted)").bindparams(
    bindparam("wanted", type_=ARRAY(LargeBinary))
)


async def existing(connection: AsyncConnection, wanted: Collection[bytes]) -> set[bytes]:
    """Return the digests that are stored."""
    return set((await connection.execute(_EXISTING, {"wanted": list(wanted)})).scalars())
