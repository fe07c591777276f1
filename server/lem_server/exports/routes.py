"""Routes of bundles and tables. All are streamed, so that memory does not grow with the campaign."""

from __future__ import annotations

import asyncio
import errno
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from typing import IO, Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response, status
from fastapi.responses import StreamingResponse

from lem_domain.bundle import MAX_BUNDLE_BYTES, MEDIA_TYPE
from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.tables import OPEN_RUNS_HEADER, TableFormat, TableName
from lem_domain.wire.access import Scope
from lem_domain.wire.campaigns import ImportedBundle
from lem_server.access.guard import CurrentPrincipal, declares
from lem_server.context import Context
from lem_server.exports import bundle_export, bundle_import, table_export
from lem_server.exports.formats import format_of
from lem_server.http.method_query import StoredMethod
from lem_server.http.path_ids import CampaignPath
from lem_server.http.problems import ProblemError

router = APIRouter(prefix="/api/v1", tags=["exports"])

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
    return StreamingResponse(
        bundle_export.blocks(context.engine, prepared),
        media_type=MEDIA_TYPE,
        headers={
            EVIDENCE_BYTES_HEADER: str(header.evidence_bytes),
            "Content-Disposition": _attachment(header.campaign_name, campaign_id, "lem.tar"),
        },
    )


@router.get(
    "/campaigns/{campaign_id}/tables/{table}",
    response_class=StreamingResponse,
    **declares(
        Scope.READ,
        _C.NOT_FOUND,
        _C.EVIDENCE_MISSING,
        _C.EVIDENCE_CORRUPT,
        _C.EVIDENCE_INVALID,
        answers={
            status.HTTP_200_OK: {
                "description": "The rows. If evidence turns out to be unusable later, the connection is aborted.",
                "content": {
                    format_of(one).media_type: {"schema": {"type": "string", "format": "binary"}} for one in TableFormat
                },
                "headers": {
                    OPEN_RUNS_HEADER: {
                        "description": "Runs that are still queued or live, whose rows are those so far.",
                        "schema": {"type": "integer"},
                    }
                },
            }
        },
    ),
)
async def export_table(
    context: Context,
    campaign_id: CampaignPath,
    table: Annotated[TableName, Path(description="Name of the table.")],
    format_: Annotated[TableFormat, Query(alias="format", description="Format of the rows.")] = TableFormat.CSV,
    method: StoredMethod = None,
) -> StreamingResponse:
    """Export a table of a campaign: its runs, its experiments, or the raw rows of a stream of evidence.

    Every row has the ids, the experiment's name and the swept keys. docs/reference/tables.md has the columns.
    """
    prepared = await table_export.prepare(context.engine, campaign_id, table, method)
    pieces = table_export.pieces(context.engine, prepared, format_)
    first = await anext(pieces)  # what fails here still gets a status
    return StreamingResponse(
        _after(first, pieces),
        media_type=format_of(format_).media_type,
        headers={
            OPEN_RUNS_HEADER: str(prepared.open_runs),
            "Content-Disposition": _attachment(prepared.campaign_name, campaign_id, f"{table}.{format_}"),
        },
    )


async def _after(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in others:
        yield piece


def _attachment(campaign: str, campaign_id: UUID, suffix: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", campaign).strip("-.") or format_id(IdKind.CAMPAIGN, campaign_id)
    return f'attachment; filename="{name[:100]}.{suffix}"'


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
