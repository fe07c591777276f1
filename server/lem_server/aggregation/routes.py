"""HTTP routes of aggregation."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Annotated

from fastapi import APIRouter, Query, Request, Response, status
from fastapi.responses import StreamingResponse
from pydantic import Field

from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import CHUNK_MEDIA_TYPE
from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_domain.results.requests import RequestTable
from lem_domain.results.run import RunResult
from lem_domain.results.window_study import DEFAULT_LENGTHS_S, DEFAULT_TARGET, WindowStudy
from lem_domain.wire.access import Scope
from lem_domain.wire.calibration import METER_LOG_MEDIA_TYPE, CalibrationFit, MeterLogOptions
from lem_domain.wire.campaigns import AggregatedCampaign, AggregationRequest
from lem_server.access.guard import declares
from lem_server.aggregation import service
from lem_server.aggregation.inputs import AggregationParameters
from lem_server.aggregation.request_table import RequestFormat
from lem_server.context import Context
from lem_server.http.method_query import StoredMethod
from lem_server.http.path_ids import CampaignPath, RunPath
from lem_server.http.problems import ProblemError

router = APIRouter(prefix="/api/v1", tags=["results"])

_C = ProblemCode
_JSON = "application/json"
_BINARY = {"type": "string", "format": "binary"}
_MEDIA_TYPES = {RequestFormat.JSON: _JSON, RequestFormat.CSV: "text/csv", RequestFormat.ARROW: CHUNK_MEDIA_TYPE}
_PIECE = 2**20

AllowPartial = Annotated[bool, Query(description="Compute from incomplete evidence and mark the result invalid.")]
Lengths = Annotated[
    tuple[Annotated[float, Field(ge=0.1, le=86_400)], ...],
    Query(min_length=1, max_length=50, description="Lengths of windows, in seconds."),
]
Target = Annotated[float, Query(gt=0, le=1, description="Largest spread and bound that are wanted, relative.")]
Form = Annotated[RequestFormat, Query(alias="format", description="Format of the table.")]
Method = Annotated[MethodVersion, Query(description="Version of the formulas (docs/measurement.md).")]


@router.post(
    "/runs/{run_id}:aggregate",
    response_model=RunResult,
    **declares(
        Scope.SUBMIT,
        _C.BAD_REQUEST,
        _C.NOT_FOUND,
        _C.CONFLICT,
        _C.EVIDENCE_MISSING,
        _C.EVIDENCE_CORRUPT,
        _C.EVIDENCE_INVALID,
        _C.AGGREGATE_NOT_REPRODUCIBLE,
    ),
)
async def aggregate_run(
    context: Context,
    run_id: RunPath,
    allow_partial: AllowPartial = False,
    method: Method = DEFAULT_METHOD,
    request: AggregationRequest | None = None,
) -> Response:
    """Compute the run's result from its raw evidence and verify every digest. A repetition returns the same bytes.

    The result is the newest one of the run from then on, also if it was stored before.
    """
    parameters = _parameters(allow_partial, request)
    service.require_effect(parameters, method)
    body = await service.aggregate_run(
        context.engine, context.aggregations.pool, run_id, parameters, method, must_correct=True
    )
    return Response(body, media_type=_JSON)


@router.post("/campaigns/{campaign_id}:aggregate", **declares(Scope.SUBMIT, _C.BAD_REQUEST, _C.NOT_FOUND))
async def aggregate_campaign(
    context: Context,
    campaign_id: CampaignPath,
    allow_partial: AllowPartial = False,
    method: Method = DEFAULT_METHOD,
    request: AggregationRequest | None = None,
) -> AggregatedCampaign:
    """Aggregate every completed run of the campaign that has no aggregate by this method.

    With calibrations every run whose newest aggregate by this method was computed with others.

    Runs that can't be aggregated are listed with why. Answers when all are done, which takes as long as the runs need
    one after another; the campaign's events have the progress.
    Repeat the request after an interruption: runs that are aggregated are not aggregated again.
    """
    parameters = _parameters(allow_partial, request)
    service.require_effect(parameters, method)
    return await context.aggregations.aggregate(campaign_id, parameters, method)


@router.post(
    "/runs/{run_id}:calibrate",
    response_model=CalibrationFit,
    **declares(
        Scope.READ,
        _C.BAD_REQUEST,
        _C.NOT_FOUND,
        _C.CONFLICT,
        _C.PAYLOAD_TOO_LARGE,
        _C.UNSUPPORTED_MEDIA_TYPE,
        _C.EVIDENCE_CORRUPT,
        _C.EVIDENCE_INVALID,
        requestBody={"required": True, "content": {METER_LOG_MEDIA_TYPE: {"schema": {"type": "string"}}}},
    ),
)
async def calibrate(
    context: Context, run_id: RunPath, request: Request, options: Annotated[MeterLogOptions, Query()]
) -> Response:
    """Fit gain and offset of a device's power readings to an external meter's log. Stores nothing.

    The log is a CSV file of at most 16 MiB with a column of times and one of powers. The answer has the entry for
    `energy.calibration` and for the body of `:aggregate`. A log that can't calibrate the device is refused with
    the reason.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != METER_LOG_MEDIA_TYPE:
        raise ProblemError(_C.UNSUPPORTED_MEDIA_TYPE, f"send the log as {METER_LOG_MEDIA_TYPE}.")
    pool = context.aggregations.pool
    body = await service.calibrate(context.engine, pool, run_id, await request.body(), options)
    return Response(body, media_type=_JSON)


@router.get("/runs/{run_id}/aggregate", response_model=RunResult, **declares(Scope.READ, _C.NOT_FOUND))
async def get_aggregate(context: Context, run_id: RunPath, method: StoredMethod = None) -> Response:
    """Return the newest stored result, byte for byte as it was computed."""
    return Response(await service.stored_aggregate(context.engine, run_id, method), media_type=_JSON)


@router.get(
    "/runs/{run_id}/tables/requests",
    response_class=StreamingResponse,
    **declares(
        Scope.READ,
        _C.NOT_FOUND,
        _C.CONFLICT,
        _C.EVIDENCE_MISSING,
        _C.EVIDENCE_CORRUPT,
        _C.EVIDENCE_INVALID,
        answers={
            status.HTTP_200_OK: {
                "model": RequestTable,
                "description": "The table in the chosen format; JSON and Arrow (in the schema's metadata) with the "
                "summary.",
                "content": {"text/csv": {"schema": {"type": "string"}}, CHUNK_MEDIA_TYPE: {"schema": _BINARY}},
            }
        },
    ),
)
async def get_request_table(
    context: Context, run_id: RunPath, form: Form = RequestFormat.JSON, method: Method = DEFAULT_METHOD
) -> StreamingResponse:
    """Compute the requests of a run with the energy of each (docs/measurement.md, Energy per request).

    It is computed for every answer, with the parameters of the run's newest result by the method, and not stored.
    """
    # Without a name it disappears with its last descriptor, also when the server is killed.
    with tempfile.NamedTemporaryFile(dir=context.settings.data_dir) as named:
        path = Path(named.name)
        await service.write_request_table(context.engine, context.aggregations.pool, run_id, method, path, form)
        file = await asyncio.to_thread(path.open, "rb")
    return StreamingResponse(_pieces(file), media_type=_MEDIA_TYPES[form])


@router.get(
    "/runs/{run_id}/window_study",
    **declares(
        Scope.READ,
        _C.NOT_FOUND,
        _C.CONFLICT,
        _C.EVIDENCE_MISSING,
        _C.EVIDENCE_CORRUPT,
        _C.EVIDENCE_INVALID,
    ),
)
async def get_window_study(
    context: Context,
    run_id: RunPath,
    length_s: Lengths = DEFAULT_LENGTHS_S,
    target: Target = DEFAULT_TARGET,
    method: Method = DEFAULT_METHOD,
) -> WindowStudy:
    """Cut the run's window into shorter ones and compute how their energy per token spreads.

    It is computed for every answer, as the table of requests, and not stored.
    """
    pool = context.aggregations.pool
    return await service.study_window(context.engine, pool, run_id, method, length_s, target)


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


def _parameters(allow_partial: bool, request: AggregationRequest | None) -> AggregationParameters:
    calibration = request.calibration if request is not None else None
    return AggregationParameters(allow_partial=allow_partial, calibration=calibration)
