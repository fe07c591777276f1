"""SQL of uploaded sets of prompts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam
from sqlalchemy.types import LargeBinary

from lem_domain.ids import Sha256
from lem_domain.wire.base import Page
from lem_domain.wire.datasets import DatasetContent, DatasetView
from lem_server.database.rows import read_one
from lem_server.http.paging import Listing

_DATASETS = Listing("datasets", DatasetView, sha256=Sha256)
_COLUMNS = "encode(sha256, 'hex') AS sha256, name, false AS builtin, prompts"

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
_LIST = text(f"""
    SELECT {_COLUMNS} FROM datasets WHERE sha256 > decode(:after, 'hex') ORDER BY datasets.sha256 LIMIT :limit
""")  # noqa: S608 - constants only
_GET = text(f"SELECT {_COLUMNS}, texts FROM datasets WHERE sha256 = decode(:sha256, 'hex')")  # noqa: S608


async def list_datasets(connection: AsyncConnection, *, cursor: str | None, limit: int) -> Page[DatasetView]:
    """Return a page of uploaded sets, ordered by digest, without their texts."""
    (after,) = _DATASETS.after(cursor, "")
    return await _DATASETS.page(connection, _LIST, limit, after=after)


async def get_dataset(connection: AsyncConnection, sha256: str) -> DatasetContent | None:
    """Return a set and its texts."""
    return await read_one(connection, _GET, DatasetContent, sha256=sha256)


_EXISTING = text("SELECT sha256 FROM datasets WHERE sha256 = ANY(:wanted)").bindparams(
    bindparam("wanted", type_=ARRAY(LargeBinary))
)


async def existing(connection: AsyncConnection, wanted: Collection[bytes]) -> set[bytes]:
    """Return the digests that are stored."""
    return set((await connection.execute(_EXISTING, {"wanted": list(wanted)})).scalars())
