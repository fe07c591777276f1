"""Makes, checks and revokes tokens, and mints the owner's on the first start."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import socket
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from anyio import to_thread
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils.compat import uuid7

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.wire.access import DEFAULT_SCOPES, Scope, TokenCreate, TokenCreated, TokenKind, TokenView
from lem_server.access import queries, tokens
from lem_server.http.problems import ProblemError, not_there

logger = logging.getLogger(__name__)

OWNER_TOKEN_FILE = "owner.token"  # noqa: S105 - a file name


class Principal(NamedTuple):
    """Who makes a request."""

    token_id: UUID
    name: str
    kind: TokenKind
    scopes: frozenset[Scope]


async def authenticate(engine: AsyncEngine, token: str) -> Principal:
    """Who a token belongs to.

    Raises:
        ProblemError: `unauthenticated`, saying whether it is mistyped, unknown, revoked or expired.
    """
    if not tokens.is_well_formed(token):
        raise _unauthenticated("the token is mistyped or cut off (its checksum is wrong); copy it again.")
    async with engine.begin() as connection:
        row = await queries.by_digest(connection, tokens.digest(token))
        if row is None:
            raise _unauthenticated("this server does not know the token; use one that it made (see owner.token).")
        if row.revoked_at is not None:
            raise _unauthenticated("the token was revoked; ask for a new one.")
        if row.expired:
            raise _unauthenticated("the token has expired; ask for a new one.")
        await queries.touch(connection, row.id)
    return Principal(row.id, row.name, TokenKind(row.kind), frozenset(Scope(scope) for scope in row.scopes))


async def create(engine: AsyncEngine, request: TokenCreate) -> TokenCreated:
    """Make a token; its secret is in the answer and nowhere else."""
    async with engine.begin() as connection:
        return await create_in(connection, request)


async def create_in(connection: AsyncConnection, request: TokenCreate) -> TokenCreated:
    """The same inside a transaction of the caller's."""
    token = tokens.mint(request.kind)
    scopes = request.scopes or DEFAULT_SCOPES[request.kind]
    row = await queries.insert(
        connection,
        token_id=uuid7(),
        name=request.name,
        kind=request.kind.value,
        digest=tokens.digest(token),
        scopes=[scope.value for scope in scopes],
        expires_in_days=request.expires_in_days,
    )
    return TokenCreated(token=token, **_view(row).model_dump())


async def renew_secret(connection: AsyncConnection, token_id: UUID, kind: TokenKind) -> TokenCreated:
    """Give a token a new secret in place of one whose answer may be lost; the old one stops working.

    Raises:
        ProblemError: `conflict` when the token was revoked meanwhile.
    """
    token = tokens.mint(kind)
    row = await queries.replace_digest(connection, token_id, tokens.digest(token))
    if row is None:
        raise ProblemError(
            ProblemCode.CONFLICT,
            f"{format_id(IdKind.TOKEN, token_id)}, made under this Idempotency-Key, was revoked; send a new key.",
        )
    return TokenCreated(token=token, **_view(row).model_dump())


def without_secret(created: TokenCreated) -> TokenView:
    """What may be kept of the answer that brings a new token."""
    return TokenView.model_validate(created.model_dump(exclude={"token"}))


async def list_tokens(engine: AsyncEngine, *, after: UUID | None, limit: int) -> tuple[list[TokenView], UUID | None]:
    """One page of tokens, and the id that the next one begins after."""
    async with engine.connect() as connection:
        rows = await queries.list_tokens(connection, after=after, limit=limit + 1)
    return [_view(row) for row in rows[:limit]], rows[limit - 1].id if len(rows) > limit else None


async def revoke(engine: AsyncEngine, token_id: UUID) -> None:
    """Revoke a token, at once and for good.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.begin() as connection:
        if not await queries.revoke(connection, token_id):
            raise not_there(IdKind.TOKEN, token_id)


async def ensure_owner_token(engine: AsyncEngine, data_dir: Path) -> Path:
    """The file with the owner's token, which local clients and workers find; made where this database lacks it.

    Each data folder of each machine has one token, so that several servers on one database don't take each other's
    away. A folder that lost its file gets a new secret for that token, and the lost one stops working.
    """
    path = data_dir / OWNER_TOKEN_FILE
    await to_thread.run_sync(partial(data_dir.mkdir, parents=True, exist_ok=True))
    folder = os.open(data_dir, os.O_RDONLY)
    try:
        await to_thread.run_sync(fcntl.flock, folder, fcntl.LOCK_EX)  # servers that share the folder take turns
        if path.exists():
            async with engine.connect() as connection:
                row = await queries.by_digest(connection, tokens.digest(path.read_text().strip()))
            if row is not None and row.revoked_at is None and not row.expired:
                return path
        token = tokens.mint(TokenKind.OWNER)
        async with engine.begin() as connection:
            renewed = await _give_owner_token(connection, data_dir, tokens.digest(token))
            await to_thread.run_sync(_write_secret, path, token)
    finally:
        os.close(folder)
    if renewed:
        logger.warning("%s was missing or unknown to the database; made anew, and the former one works no more", path)
    else:
        logger.info("made the owner's token of this data folder, %s", path)
    return path


async def _give_owner_token(connection: AsyncConnection, data_dir: Path, digest: bytes) -> bool:
    """Store the secret of the folder's token; True where it takes the place of another. A revoked one stays revoked."""
    for generation in itertools.count():
        token_id = _owner_token_id(data_dir, generation)
        if await queries.replace_digest(connection, token_id, digest) is not None:
            return True
        with contextlib.suppress(IntegrityError):
            async with connection.begin_nested():
                await queries.insert(
                    connection,
                    token_id=token_id,
                    name="owner",
                    kind=TokenKind.OWNER.value,
                    digest=digest,
                    scopes=[scope.value for scope in DEFAULT_SCOPES[TokenKind.OWNER]],
                    expires_in_days=None,
                )
            return False
    raise AssertionError("generations don't end")


def _owner_token_id(data_dir: Path, generation: int) -> UUID:
    """Found again after the folder's files are lost; zeros first, so that owners' tokens lead the list."""
    whose = f"{socket.gethostname()}\0{data_dir.resolve()}\0{generation}"
    return UUID(bytes=bytes(6) + sha256(whose.encode()).digest()[:10])


async def has_tokens_besides_owner(engine: AsyncEngine) -> bool:
    """Whether somebody set up access on purpose, so that the server may be reached from elsewhere."""
    async with engine.connect() as connection:
        return await queries.others_than_owner(connection)


def _view(row: queries.TokenRow) -> TokenView:
    return TokenView(
        id=format_id(IdKind.TOKEN, row.id),
        name=row.name,
        kind=TokenKind(row.kind),
        scopes=tuple(Scope(scope) for scope in row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )


def _unauthenticated(detail: str) -> ProblemError:
    return ProblemError(ProblemCode.UNAUTHENTICATED, detail)


def _write_secret(path: Path, token: str) -> None:
    """Readable by its owner alone from the first moment, and never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    fresh.replace(path)
