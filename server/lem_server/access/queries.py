"""SQL of tokens; the unique index on the digest serves the look-up of every request."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam
from sqlalchemy.types import Text


class TokenRow(NamedTuple):
    """A stored token."""

    id: UUID
    name: str
    kind: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    expired: bool


_COLUMNS = (
    "id, name, kind, scopes, created_at, expires_at, revoked_at, last_used_at, coalesce(expires_at <= now(), false)"
)


async def by_digest(connection: AsyncConnection, digest: bytes) -> TokenRow | None:
    """Return the token with this digest. Index uq_api_tokens_sha256."""
    row = (
        await connection.execute(text(f"SELECT {_COLUMNS} FROM api_tokens WHERE sha256 = :d"), {"d": digest})  # noqa: S608
    ).one_or_none()
    return None if row is None else TokenRow(*row)


async def touch(connection: AsyncConnection, token_id: UUID) -> None:
    """Record the use of a token, at most once a minute, so that most requests only read."""
    await connection.execute(
        text("""
            UPDATE api_tokens SET last_used_at = now()
             WHERE id = :id AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
        """),
        {"id": token_id},
    )


_INSERT = text(f"""
    INSERT INTO api_tokens (id, name, kind, sha256, scopes, expires_at)
    VALUES (:id, :name, :kind, :digest, :scopes, now() + CAST(:days AS integer) * interval '1 day')
    RETURNING {_COLUMNS}
""").bindparams(bindparam("scopes", type_=ARRAY(Text)))  # noqa: S608 - constants only


async def insert(
    connection: AsyncConnection,
    *,
    token_id: UUID,
    name: str,
    kind: str,
    digest: bytes,
    scopes: list[str],
    expires_in_days: int | None,
) -> TokenRow:
    """Store a token's digest."""
    row = await connection.execute(
        _INSERT,
        {
            "id": token_id,
            "name": name,
            "kind": kind,
            "digest": digest,
            "scopes": scopes,
            "days": expires_in_days,
        },
    )
    return TokenRow(*row.one())


async def replace_digest(connection: AsyncConnection, token_id: UUID, digest: bytes) -> TokenRow | None:
    """Give a token another secret; None when it was revoked or does not exist."""
    row = (
        await connection.execute(
            text(
                "UPDATE api_tokens SET sha256 = :digest WHERE id = :id AND revoked_at IS NULL "  # noqa: S608
                f"RETURNING {_COLUMNS}"
            ),
            {"id": token_id, "digest": digest},
        )
    ).one_or_none()
    return None if row is None else TokenRow(*row)


async def list_tokens(connection: AsyncConnection, *, after: UUID | None, limit: int) -> list[TokenRow]:
    """Return one page of tokens, oldest first."""
    rows = await connection.execute(
        text(
            f"SELECT {_COLUMNS} FROM api_tokens WHERE CAST(:after AS uuid) IS NULL OR id > :after "  # noqa: S608
            "ORDER BY id LIMIT :limit"
        ),
        {"after": after, "limit": limit},
    )
    return [TokenRow(*row) for row in rows]


async def revoke(connection: AsyncConnection, token_id: UUID) -> bool:
    """Revoke a token; return False when it does not exist."""
    done = await connection.execute(
        text("UPDATE api_tokens SET revoked_at = coalesce(revoked_at, now()) WHERE id = :id"), {"id": token_id}
    )
    return done.rowcount == 1


async def others_than_owner(connection: AsyncConnection) -> bool:
    """Return whether there is a valid token of another kind than `owner`."""
    row = await connection.execute(
        text("""
            SELECT 1 FROM api_tokens
             WHERE kind <> 'owner' AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) LIMIT 1
        """)
    )
    return row.one_or_none() is not None
