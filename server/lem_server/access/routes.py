"""HTTP of tokens."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Response, status
from pydantic import TypeAdapter

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, TokenId, parse_id
from lem_domain.wire.access import Scope, TokenCreate, TokenCreated, TokenView
from lem_domain.wire.base import Page
from lem_server.access import service
from lem_server.access.guard import requires
from lem_server.context import Context
from lem_server.paging import Cursor, Limit, decode_cursor, encode_cursor
from lem_server.problems import problem_responses

router = APIRouter(prefix="/api/v1/tokens", tags=["tokens"])

_PLACE: TypeAdapter[tuple[UUID]] = TypeAdapter(tuple[UUID])


@router.post(
    "", status_code=status.HTTP_201_CREATED, responses=problem_responses(), openapi_extra=requires(Scope.ADMIN)
)
async def create_token(context: Context, request: TokenCreate, response: Response) -> TokenCreated:
    """Make a token. Its secret is in this answer and nowhere else."""
    created = await service.create(context.engine, request)
    response.headers["Cache-Control"] = "no-store"
    return created


@router.get("", responses=problem_responses(ProblemCode.BAD_REQUEST), openapi_extra=requires(Scope.ADMIN))
async def list_tokens(context: Context, limit: Limit = 50, cursor: Cursor = None) -> Page[TokenView]:
    """Tokens in order of their making, without their secrets."""
    place = decode_cursor("tokens", cursor, _PLACE)
    items, after = await service.list_tokens(context.engine, after=place[0] if place else None, limit=limit)
    return Page(items=tuple(items), next=encode_cursor("tokens", (after,)) if after else None)


@router.delete(
    "/{token_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problem_responses(ProblemCode.NOT_FOUND),
    openapi_extra=requires(Scope.ADMIN),
)
async def revoke_token(context: Context, token_id: Annotated[TokenId, Path(description="The token's id.")]) -> None:
    """Revoke a token, at once and for good."""
    await service.revoke(context.engine, parse_id(IdKind.TOKEN, token_id))
