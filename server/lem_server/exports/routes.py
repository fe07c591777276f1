"""HTTP of bundles: both ways streamed, so that no request needs memory that grows with its campaign."""

from __future__ import annotations

import asyncio
import errno
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from fastapi import APIRouter, Request, Response, status
from fastapi.responses import StreamingResponse

from lem_domain.bundle import MAX_BUNDLE_BYTES, MEDIA_TYPE
from lem_domain.errors import ProblemCode
from lem_domain.wire.access import Scope
from lem_domain.wire.campaigns import ImportedBundle
from lem_server.access.guard import CurrentPrincipal, requires
from lem_server.context import Context
from lem_server.exports import reading, writing
from lem_server.http.path_ids import CampaignPath
from lem_server.http.problems import ProblemError, problem_responses

router = APIRouter(prefix="/api/v1", tags=["bundles"])

_C = ProblemCode
_TAR = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_PIECE = 2**20
EVIDENCE_BYTES_HEADER = "Lem-Evidence-Bytes"


@router.get(
    "/campaigns/{campaign_id}/bundle",
    response_class=StreamingResponse,
    responses={
        status.HTTP_200_OK: {
            "description": "A tar; one that ends before its SHA256SUMS is not whole.",
            "content": _TAR,
            "headers": {
                EVIDENCE_BYTES_HEADER: {
                    "description": "How much raw evidence is in it; the rest is small.",
                    "schema": {"type": "integer"},
                }
            },
        },
        **problem_responses(_C.NOT_FOUND, _C.CONFLICT),
    },
    openapi_extra=requires(Scope.READ),
)
async def export_bundle(context: Context, campaign_id: CampaignPath) -> StreamingResponse:
    """Everything that there is of a campaign at rest, as one archive that another server can import."""
    begun = await writing.begin(context.engine, campaign_id)
    header = begun.header
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", header.campaign_name).strip("-.") or header.campaign_id
    return StreamingResponse(
        writing.blocks(context.engine, begun),
        media_type=MEDIA_TYPE,
        headers={
            EVIDENCE_BYTES_HEADER: str(header.evidence_bytes),
            "Content-Disposition": f'attachment; filename="{name[:100]}.lem.tar"',
        },
    )


@router.post(
    "/campaigns:import",
    status_code=status.HTTP_201_CREATED,
    response_model=ImportedBundle,
    responses={
        status.HTTP_200_OK: {"model": ImportedBundle, "description": "The same bundle was imported before."},
        **problem_responses(_C.CONFLICT, _C.PAYLOAD_TOO_LARGE, _C.UNSUPPORTED_MEDIA_TYPE, _C.BUNDLE_INVALID),
    },
    openapi_extra={**requires(Scope.ADMIN), "requestBody": {"required": True, "content": _TAR}},
)
async def import_bundle(
    context: Context, principal: CurrentPrincipal, request: Request, response: Response
) -> ImportedBundle:
    """Take in the campaign of a bundle under its own ids, all of it or nothing. It is a record and is never claimed."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != MEDIA_TYPE:
        raise ProblemError(_C.UNSUPPORTED_MEDIA_TYPE, f"a bundle is sent as {MEDIA_TYPE}.")
    folder = context.settings.data_dir
    _require_room(int(request.headers.get("content-length", "0")), shutil.disk_usage(folder).free)
    # A file without a name: it is gone with the request, however that ends.
    with tempfile.TemporaryFile(dir=folder) as file:
        await _keep(request.stream(), file)
        imported = await reading.import_bundle(context.engine, file, imported_by=principal.name)
    if not imported.new:
        response.status_code = status.HTTP_200_OK
    return imported


async def _keep(pieces: AsyncIterator[bytes], file: IO[bytes]) -> None:
    waiting = bytearray()
    try:
        async for piece in pieces:
            waiting += piece
            if len(waiting) >= _PIECE:
                await asyncio.to_thread(file.write, bytes(waiting))
                waiting.clear()
        file.write(waiting)
        file.seek(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_room() from error


def _require_room(needed: int, free: int) -> None:
    """For the file, and for what the database makes of it."""
    if needed > MAX_BUNDLE_BYTES or 2 * needed > free:
        raise _no_room()


def _no_room() -> ProblemError:
    return ProblemError(
        _C.PAYLOAD_TOO_LARGE, "the server has no room for the bundle; free space where its data folder is."
    )
