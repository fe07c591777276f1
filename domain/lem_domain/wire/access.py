"""Access tokens, their kinds and scopes."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from lem_domain.ids import TokenId
from lem_domain.wire.base import AnswerModel, RequestModel


class Scope(StrEnum):
    """Permissions of a token."""

    READ = "read"
    SUBMIT = "submit"
    INGEST = "ingest"
    WORK = "work"
    ADMIN = "admin"


class TokenKind(StrEnum):
    """Kinds of tokens; a kind decides the default scopes."""

    OWNER = "owner"
    USER = "user"
    WORKER = "worker"
    CI = "ci"


DEFAULT_SCOPES: dict[TokenKind, tuple[Scope, ...]] = {
    TokenKind.OWNER: tuple(Scope),
    TokenKind.USER: (Scope.READ, Scope.SUBMIT),
    TokenKind.WORKER: (Scope.READ, Scope.WORK),
    TokenKind.CI: (Scope.READ, Scope.INGEST),
}


class TokenCreate(RequestModel):
    """A request for a new token."""

    name: str = Field(min_length=1, max_length=100)
    kind: TokenKind = TokenKind.USER
    scopes: tuple[Scope, ...] | None = Field(default=None, min_length=1, description="Unset: those of the kind.")
    expires_in_days: int | None = Field(default=None, ge=1, le=3650, description="Unset: never.")


class TokenView(AnswerModel):
    """A token without its secret."""

    id: TokenId
    name: str
    kind: TokenKind
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class TokenCreated(TokenView):
    """A new token with its secret, which is shown only once."""

    token: str
