"""Routes of bundles. Both directions are streamed, so that memory does not grow with the campaign."""

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
from lem_server.access.guard import CurrentPrincipal, declares
from lem_server.context import Context
from lem_server.exports import bundle_export, bundle_import
from lem_server.http.path_ids import CampaignPath
from lem_server.http.problems import ProblemError

router = APIRouter(prefix="/api/v1", tags=["bundles"])

_C = ProblemCode
_TAR = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_PIECE = 2**20
EVIDENCE_BYTES_HEADER = "Lem-Evidence-Bytes"


@router.get(
    "/campaigns/{campaign_id}/bundle",
    response_class=StreamingResponse,
    **declares(
        Scope.READ,
        _C.NOT_FOUND,
        _C.CONFLICT,
        answers={
            status.HTTP_200_OK: {
                "description": "A tar; one that ends before its SHA256SUMS is incomplete.",
                "content": _TAR,
                "headers": {
                    EVIDENCE_BYTES_HEADER: {
                        "description": "Bytes of raw evidence in it; the rest is small.",
                        "schema": {"type": "integer"},
                    }
                },
            }
        },
    ),
)
async def export_bundle(context: Context, campaign_id: CampaignPath) -> StreamingResponse:
    """Export a campaign without queued or live runs as one archive that another server can import."""
    prepared = await bundle_export.prepare(context.engine, campaign_id)
    header = prepared.header
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", header.campaign_name).strip("-.") or header.campaign_id
    return StreamingResponse(
        bundle_export.blocks(context.engine, prepared),
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
    **declares(
        Scope.ADMIN,
        _C.CONFLICT,
        _C.PAYLOAD_TOO_LARGE,
        _C.UNSUPPORTED_MEDIA_TYPE,
        _C.BUNDLE_INVALID,
        answers={status.HTTP_200_OK: {"model": ImportedBundle, "description": "The same bundle was imported before."}},
        requestBody={"required": True, "content": _TAR},
    ),
)
async def import_bundle(
    context: Context, principal: CurrentPrincipal, request: Request, response: Response
) -> ImportedBundle:
    """Import the campaign of a bundle under its own ids, completely or not at all. Its runs are never claimed."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != MEDIA_TYPE:
        raise ProblemError(_C.UNSUPPORTED_MEDIA_TYPE, f"send the bundle as {MEDIA_TYPE}.")
    folder = context.settings.data_dir
    _require_room(int(request.headers.get("content-length", "0")), shutil.disk_usage(folder).free)
    # A file without a name disappears with its last descriptor, also when the server is killed.
    with tempfile.TemporaryFile(dir=folder) as file:
        await _store(request.stream(), file)
        imported = await bundle_import.import_bundle(context.engine, file, imported_by=principal.name)
    if not imported.new:
        response.status_code = status.HTTP_200_OK
    return imported


async def _store(pieces: AsyncIterator[bytes], file: IO[bytes]) -> None:
    pending = bytearray()
    try:
        async for piece in pieces:
            pending += piece
            if len(pending) >= _PIECE:
                await asyncio.to_thread(file.write, bytes(pending))
                pending.clear()
        file.write(pending)
        file.seek(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_room() from error


def _require_room(needed: int, free: int) -> None:
    """Refuse a bundle that does not fit on the disk as a file and once more in the database."""
    if needed > MAX_BUNDLE_BYTES or 2 * needed > free:
        raise _no_room()


def _no_room() -> ProblemError:
    return ProblemError(
        _C.PAYLOAD_TOO_LARGE, "the server has no space for the bundle; free space on the disk of its data folder."
    )
