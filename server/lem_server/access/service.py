"""Creates and checks tokens, and creates the owner's token on the first start."""

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
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils.compat import uuid7

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.wire.access import DEFAULT_SCOPES, Scope, TokenCreate, TokenCreated, TokenKind, TokenView
from lem_server.access import queries, tokens
from lem_server.http.problems import ProblemError

logger = logging.getLogger(__name__)

OWNER_TOKEN_FILE = "owner.token"  # noqa: S105 - a file name


class Principal(NamedTuple):
    """The owner of a token that authenticated a request."""

    token_id: UUID
    name: str
    kind: TokenKind
    scopes: frozenset[Scope]


async def authenticate(engine: AsyncEngine, token: str) -> Principal:
    """Look a token up and record its use.

    Raises:
        ProblemError: `unauthenticated`; its message distinguishes mistyped, unknown, revoked and expired tokens.
    """
    if not tokens.is_well_formed(token):
        raise _unauthenticated("the token is mistyped or truncated (its checksum is wrong); copy it again.")
    async with engine.begin() as connection:
        row = await queries.by_digest(connection, tokens.digest(token))
        if row is None:
            raise _unauthenticated("this server does not know the token; use one that it created (see owner.token).")
        if row.revoked:
            raise _unauthenticated("the token was revoked; ask for a new one.")
        if row.expired:
            raise _unauthenticated("the token has expired; ask for a new one.")
        await queries.touch(connection, row.id)
    return Principal(row.id, row.name, TokenKind(row.kind), frozenset(Scope(scope) for scope in row.scopes))


async def create(connection: AsyncConnection, request: TokenCreate) -> TokenCreated:
    """Create a token within the caller's transaction; only the answer holds its secret."""
    token = tokens.mint(request.kind)
    scopes = request.scopes or DEFAULT_SCOPES[request.kind]
    view = await queries.insert(connection, uuid7(), request, scopes, tokens.digest(token))
    return TokenCreated(token=token, **view.model_dump())


async def renew_secret(connection: AsyncConnection, token_id: UUID, kind: TokenKind) -> TokenCreated:
    """Replace a secret whose answer may be lost; the old one stops working.

    Raises:
        ProblemError: `conflict` when the token was revoked.
    """
    token = tokens.mint(kind)
    view = await queries.replace_digest(connection, token_id, tokens.digest(token))
    if view is None:
        raise ProblemError(
            ProblemCode.CONFLICT,
            f"{format_id(IdKind.TOKEN, token_id)}, created with this Idempotency-Key, was revoked; send a new key.",
        )
    return TokenCreated(token=token, **view.model_dump())


def without_secret(created: TokenCreated) -> TokenView:
    """Return the part of the answer that may be stored."""
    return TokenView.model_validate(created.model_dump(exclude={"token"}))


async def ensure_owner_token(engine: AsyncEngine, data_dir: Path) -> Path:
    """Return the file of the owner's token, which is created unless this database knows the token in it.

    Each data folder of each machine has one token, so that replicas don't replace each other's. When the file is lost,
    the token gets a new secret, and the lost one stops working.
    """
    path = data_dir / OWNER_TOKEN_FILE
    await to_thread.run_sync(partial(data_dir.mkdir, parents=True, exist_ok=True))
    folder = os.open(data_dir, os.O_RDONLY)
    try:
        await to_thread.run_sync(fcntl.flock, folder, fcntl.LOCK_EX)  # replicas may share the folder
        if path.exists():
            async with engine.connect() as connection:
                row = await queries.by_digest(connection, tokens.digest(path.read_text().strip()))
            if row is not None and not row.revoked and not row.expired:
                return path
        token = tokens.mint(TokenKind.OWNER)
        async with engine.begin() as connection:
            renewed = await _store_owner_token(connection, data_dir, tokens.digest(token))
            await to_thread.run_sync(_write_secret, path, token)
    finally:
        os.close(folder)
    if renewed:
        logger.warning(
            "%s was missing or unknown to the database; it is recreated, and the old token stops working", path
        )
    else:
        logger.info("created the owner's token of this data folder, %s", path)
    return path


async def _store_owner_token(connection: AsyncConnection, data_dir: Path, digest: bytes) -> bool:
    """Store the secret of the folder's token; return True if it replaces another. A revoked token stays revoked."""
    for generation in itertools.count():
        token_id = _owner_token_id(data_dir, generation)
        if await queries.replace_digest(connection, token_id, digest) is not None:
            return True
        with contextlib.suppress(IntegrityError):
            async with connection.begin_nested():
                owner = TokenCreate(name="owner", kind=TokenKind.OWNER)
                await queries.insert(connection, token_id, owner, DEFAULT_SCOPES[TokenKind.OWNER], digest)
            return False
    raise AssertionError("generations don't end")


def _owner_token_id(data_dir: Path, generation: int) -> UUID:
    """Derive the id from machine and folder, so that it survives a lost file; owners' tokens sort first."""
    identity = f"{socket.gethostname()}\0{data_dir.resolve()}\0{generation}"
    return UUID(bytes=bytes(6) + sha256(identity.encode()).digest()[:10])


# The owner's tokens are created by the server itself.
_OTHERS = text("""
    SELECT 1 FROM api_tokens
     WHERE kind <> 'owner' AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) LIMIT 1
""")


async def has_tokens_besides_owner(engine: AsyncEngine) -> bool:
    """Return whether access was set up, so that the server may listen on a public address."""
    async with engine.connect() as connection:
        return (await connection.execute(_OTHERS)).one_or_none() is not None


def _unauthenticated(detail: str) -> ProblemError:
    return ProblemError(ProblemCode.UNAUTHENTICATED, detail)


def _write_secret(path: Path, token: str) -> None:
    """Write a file that only its owner can read, from the first moment on, and replace the old one atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    temporary.replace(path)
