"""Routes of access tokens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response, status

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, TokenId, parse_id
from lem_domain.wire.access import Scope, TokenCreate, TokenCreated, TokenView
from lem_domain.wire.base import Page
from lem_server.access import queries, service
from lem_server.access.guard import CurrentPrincipal, declares
from lem_server.context import Context
from lem_server.http.idempotency import IdempotencyKey, KeyedRequest, fingerprint, run_once
from lem_server.http.paging import Cursor, Limit

router = APIRouter(prefix="/api/v1/tokens", tags=["tokens"])

_C = ProblemCode

_CREATED: dict[int | str, dict[str, Any]] = {
    201: {"description": "The token. For a repeated Idempotency-Key: the same token with a new secret."},
}


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    **declares(Scope.ADMIN, _C.CONFLICT, _C.IDEMPOTENCY_MISMATCH, answers=_CREATED),
)
async def create_token(
    context: Context,
    principal: CurrentPrincipal,
    request: TokenCreate,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> TokenCreated:
    """Create a token. Only this answer holds its secret; the server stores a digest.

    If the answer got lost, send the request again with the same Idempotency-Key: the token gets a new secret, and the
    lost one stops working at once. No other repeated request is answered differently from the first.
    """
    async with context.engine.begin() as connection:
        created: list[TokenCreated] = []

        async def produce() -> TokenView:
            created.append(await service.create(connection, request))
            return service.without_secret(created[0])

        keyed = KeyedRequest(principal.token_id, "create_token", idempotency_key, fingerprint(request))
        answer = await run_once(connection, keyed, produce, status=status.HTTP_201_CREATED)
        if answer.replayed:
            first = TokenView.model_validate_json(answer.body)
            created.append(await service.renew_secret(connection, parse_id(IdKind.TOKEN, first.id), first.kind))
    response.headers["Cache-Control"] = "no-store"
    return created[0]


@router.get("", **declares(Scope.ADMIN, _C.BAD_REQUEST))
async def list_tokens(context: Context, limit: Limit = 50, cursor: Cursor = None) -> Page[TokenView]:
    """List tokens without their secrets, oldest first."""
    async with context.engine.connect() as connection:
        return await queries.list_tokens(connection, cursor=cursor, limit=limit)


@router.delete("/{token_id}", status_code=status.HTTP_204_NO_CONTENT, **declares(Scope.ADMIN, _C.NOT_FOUND))
async def revoke_token(context: Context, token_id: Annotated[TokenId, Path(description="The token's id.")]) -> None:
    """Revoke a token at once and permanently."""
    async with context.engine.begin() as connection:
        await queries.revoke(connection, parse_id(IdKind.TOKEN, token_id))
