"""HTTP of evidence: uploads of chunks, logs and completion markers by the worker, and reading of chunks."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response, status
from pydantic import Field

from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import CHUNK_MEDIA_TYPE, ProcessName, StreamName
from lem_domain.wire.access import Scope
from lem_domain.wire.base import AnswerModel, Page
from lem_domain.wire.runs import StreamView
from lem_domain.wire.workers import LogText, ProcessCompletion
from lem_server.access.guard import declares
from lem_server.context import Context
from lem_server.evidence import service
from lem_server.evidence.validation import ChunkKey
from lem_server.http.path_ids import AttemptPath
from lem_server.http.problems import ProblemError
from lem_server.leases.dependencies import AttemptOfWorker, declares_work

router = APIRouter(prefix="/api/v1", tags=["attempts"])

_C = ProblemCode

Process = Annotated[ProcessName, Path(description="rank-0, rank-1, … or sampler.")]
Stream = Annotated[StreamName, Path(description="Name of the stream.")]
Seq = Annotated[int, Path(ge=0, le=2**31 - 1, description="Number of the piece, from 0.")]


class Accepted(AnswerModel):
    """The piece is stored durably."""

    new: bool = Field(description="False if the same bytes were stored already.")
    cancel: bool = Field(default=False, description="A cancel of the attempt was requested.")


@router.get("/attempts/{attempt_id}/streams", **declares(Scope.READ, _C.NOT_FOUND))
async def list_streams(context: Context, attempt_id: AttemptPath) -> Page[StreamView]:
    """List the stored chunks of an attempt with their digests, so that an upload can be resumed."""
    return Page(items=await service.list_streams(context.engine, attempt_id))


@router.get(
    "/attempts/{attempt_id}/processes/{process}/streams/{stream}/chunks/{seq}",
    response_class=Response,
    **declares(
        Scope.READ,
        _C.NOT_FOUND,
        _C.EVIDENCE_CORRUPT,
        answers={status.HTTP_200_OK: {"description": "The original bytes.", "content": {CHUNK_MEDIA_TYPE: {}}}},
    ),
)
async def get_chunk(context: Context, attempt_id: AttemptPath, process: Process, stream: Stream, seq: Seq) -> Response:
    """Return a chunk byte for byte as it was sent: an Apache Arrow IPC stream."""
    body, digest = await service.read_chunk(context.engine, ChunkKey(attempt_id, process, stream, seq))
    encoded = base64.b64encode(digest).decode()
    return Response(body, media_type=CHUNK_MEDIA_TYPE, headers={"Content-Digest": f"sha-256=:{encoded}:"})


_STORED: dict[int | str, dict[str, Any]] = {
    status.HTTP_201_CREATED: {"description": "Stored now.", "model": Accepted},
    status.HTTP_200_OK: {"description": "The same was stored already.", "model": Accepted},
}

_CHUNK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {CHUNK_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.put(
    "/attempts/{attempt_id}/processes/{process}/streams/{stream}/chunks/{seq}",
    response_model=Accepted,
    **declares_work(
        _C.BAD_REQUEST,
        _C.LEASE_LOST,
        _C.CHUNK_CONFLICT,
        _C.PAYLOAD_TOO_LARGE,
        _C.DECOMPRESSION_LIMIT,
        _C.UNSUPPORTED_MEDIA_TYPE,
        _C.DIGEST_MISMATCH,
        _C.EVIDENCE_INVALID,
        answers=_STORED,
        **_CHUNK_BODY,
    ),
)
async def put_chunk(
    context: Context,
    attempt: AttemptOfWorker,
    request: Request,
    response: Response,
    process: Process,
    stream: Stream,
    seq: Seq,
    content_digest: Annotated[str, Header(description="`sha-256=:<base64>:` (RFC 9530) of the body.")],
) -> Accepted:
    """Store a chunk of evidence byte for byte. An answer with a success status means that it is durable."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != CHUNK_MEDIA_TYPE:
        raise ProblemError(ProblemCode.UNSUPPORTED_MEDIA_TYPE, f"send a chunk as {CHUNK_MEDIA_TYPE}.")
    digest = _sha256_of(content_digest)
    key = ChunkKey(attempt.attempt_id, process, stream, seq)
    new, cancel = await service.put_chunk(context.engine, attempt, key, await request.body(), digest)
    return _accepted(response, new, cancel=cancel)


@router.put(
    "/attempts/{attempt_id}/processes/{process}/logs/{seq}",
    response_model=Accepted,
    **declares_work(_C.LEASE_LOST, _C.CHUNK_CONFLICT, answers=_STORED),
)
async def put_log(
    context: Context, attempt: AttemptOfWorker, response: Response, process: Process, seq: Seq, piece: LogText
) -> Accepted:
    """Store a piece of a process's output."""
    new = await service.put_log(context.engine, attempt, process=process, seq=seq, content=piece.text)
    return _accepted(response, new)


@router.put(
    "/attempts/{attempt_id}/processes/{process}/completion",
    response_model=Accepted,
    **declares_work(_C.LEASE_LOST, _C.CONFLICT, answers=_STORED),
)
async def put_completion(
    context: Context, attempt: AttemptOfWorker, response: Response, process: Process, marker: ProcessCompletion
) -> Accepted:
    """Store a process's completion marker: the process has written all of its evidence."""
    new = await service.put_completion(context.engine, attempt, process=process, marker=marker)
    return _accepted(response, new)


def _accepted(response: Response, new: bool, *, cancel: bool = False) -> Accepted:
    response.status_code = status.HTTP_201_CREATED if new else status.HTTP_200_OK
    return Accepted(new=new, cancel=cancel)


def _sha256_of(header: str) -> bytes:
    """Return the SHA-256 of a Content-Digest header (RFC 9530), which may list digests of other algorithms too."""
    for member in header.split(","):
        name, _, value = member.strip().partition("=")
        if name == "sha-256" and len(value) > 2 and value[0] == value[-1] == ":":
            try:
                digest = base64.b64decode(value[1:-1], validate=True)
            except binascii.Error:
                break
            if len(digest) == 32:
                return digest
    raise ProblemError(ProblemCode.BAD_REQUEST, "Content-Digest must be `sha-256=:<base64 of 32 bytes>:` (RFC 9530).")
