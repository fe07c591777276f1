"""Routes of sets of prompts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response, status

from lem_domain.errors import ProblemCode
from lem_domain.ids import Sha256
from lem_domain.wire.access import Scope
from lem_domain.wire.base import Page
from lem_domain.wire.datasets import DatasetContent, DatasetUpload, DatasetView
from lem_server.access.guard import declares
from lem_server.context import Context
from lem_server.datasets import service
from lem_server.http.paging import Cursor, Limit

router = APIRouter(prefix="/api/v1", tags=["datasets"])

_C = ProblemCode

DigestPath = Annotated[Sha256, Path(description="SHA-256 over the prompts, 64 hexadecimal digits.")]


@router.get("/datasets", **declares(Scope.READ, _C.BAD_REQUEST))
async def list_datasets(context: Context, limit: Limit = 100, cursor: Cursor = None) -> Page[DatasetView]:
    """List sets of prompts: the built-in ones, all on the first page, then the uploaded ones."""
    return await service.list_datasets(context.engine, cursor=cursor, limit=limit)


@router.get("/datasets/{sha256}", **declares(Scope.READ, _C.NOT_FOUND))
async def get_dataset(context: Context, sha256: DigestPath) -> DatasetContent:
    """Return a set of prompts with its texts."""
    return await service.get_dataset(context.engine, sha256)


@router.put(
    "/datasets/{sha256}",
    status_code=status.HTTP_201_CREATED,
    **declares(
        Scope.SUBMIT,
        _C.BAD_REQUEST,
        _C.DIGEST_MISMATCH,
        _C.PAYLOAD_TOO_LARGE,
        answers={200: {"model": DatasetView, "description": "The set exists; it is unchanged."}},
    ),
)
async def put_dataset(context: Context, sha256: DigestPath, upload: DatasetUpload, response: Response) -> DatasetView:
    """Upload prompts under the digest that `lem_domain.prompt_sets.prompts_digest` gives them (at most 4 MiB)."""
    async with context.engine.begin() as connection:
        view, created = await service.store(connection, sha256, upload)
    if not created:
        response.status_code = status.HTTP_200_OK
    return view
