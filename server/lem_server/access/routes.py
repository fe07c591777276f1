"""Routes of access tokens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response, status

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, TokenId, parse_id
from lem_domain.wire.access import Scope, TokenCreate, TokenCreated, TokenView
from lem_domain.wire.base import Page
from lem_server.access import queries, service
from lem_server.access.guard import CurrentPrincipal, requires
from lem_server.context import Context
from lem_server.http.idempotency import IdempotencyKey, fingerprint, run_once
from lem_server.http.paging import Cursor, Limit
from lem_server.http.problems import problem_responses

router = APIRouter(prefix="/api/v1/tokens", tags=["tokens"])

_CREATED: dict[int | str, dict[str, Any]] = {
    201: {"description": "The token. For a repeated Idempotency-Key: the same token with a new secret."},
    **problem_responses(ProblemCode.CONFLICT, ProblemCode.IDEMPOTENCY_MISMATCH),
}


@router.post("", status_code=status.HTTP_201_CREATED, responses=_CREATED, openapi_extra=requires(Scope.ADMIN))
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

        async def produce() -> tuple[int, TokenView]:
            created.append(await service.create_in(connection, request))
            return status.HTTP_201_CREATED, service.without_secret(created[0])

        answer = await run_once(
            connection,
            principal=principal.token_id,
            route="create_token",
            key=idempotency_key,
            request=fingerprint(request),
            produce=produce,
        )
        if answer.replayed:
            first = TokenView.model_validate_json(answer.body)
            created.append(await service.renew_secret(connection, parse_id(IdKind.TOKEN, first.id), first.kind))
    response.headers["Cache-Control"] = "no-store"
    return created[0]


@router.get("", responses=problem_responses(ProblemCode.BAD_REQUEST), openapi_extra=requires(Scope.ADMIN))
async def list_tokens(context: Context, limit: Limit = 50, cursor: Cursor = None) -> Page[TokenView]:
    """List tokens without their secrets, oldest first."""
    async with context.engine.connect() as connection:
        return await queries.list_tokens(connection, cursor=cursor, limit=limit)


@router.delete(
    "/{token_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problem_responses(ProblemCode.NOT_FOUND),
    openapi_extra=requires(Scope.ADMIN),
)
async def revoke_token(context: Context, token_id: Annotated[TokenId, Path(description="The token's id.")]) -> None:
    """Revoke a token at once and permanently."""
    await service.revoke(context.engine, parse_id(IdKind.TOKEN, token_id))
