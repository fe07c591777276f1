"""Every answer that is not a success is `application/problem+json` (RFC 9457), made here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from uuid import UUID

import asyncpg
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic.types import JsonValue
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lem_domain.config.documents import pointer
from lem_domain.config.hashing import canonical_json
from lem_domain.config.keys import keys_at, unknown_key_message
from lem_domain.config.validation import MOST_PROBLEMS
from lem_domain.errors import ConfigurationError, FieldProblem, LemError, Problem, ProblemCode
from lem_domain.ids import IdKind, format_id

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_C = ProblemCode
STATUS: dict[ProblemCode, int] = {
    _C.VALIDATION: 422,
    _C.BAD_REQUEST: 400,
    _C.UNAUTHENTICATED: 401,
    _C.FORBIDDEN: 403,
    _C.NOT_FOUND: 404,
    _C.METHOD_NOT_ALLOWED: 405,
    _C.CONFLICT: 409,
    _C.ILLEGAL_TRANSITION: 409,
    _C.LEASE_LOST: 409,
    _C.ATTEMPT_CLOSED: 409,
    _C.BOOT_SUPERSEDED: 409,
    _C.CHUNK_CONFLICT: 409,
    _C.DIGEST_MISMATCH: 422,
    _C.MANIFEST_INCOMPLETE: 409,
    _C.EVIDENCE_INVALID: 422,
    _C.EVIDENCE_MISSING: 409,
    _C.EVIDENCE_CORRUPT: 409,
    _C.AGGREGATE_NOT_REPRODUCIBLE: 409,
    _C.BUNDLE_INVALID: 422,
    _C.IDEMPOTENCY_MISMATCH: 422,
    _C.DEVICE_BUSY: 409,
    _C.WORKER_DRAINING: 409,
    _C.PAYLOAD_TOO_LARGE: 413,
    _C.DECOMPRESSION_LIMIT: 413,
    _C.UNSUPPORTED_MEDIA_TYPE: 415,
    _C.CLIENT_TOO_OLD: 426,
    _C.RATE_LIMITED: 429,
    _C.NOT_READY: 503,
    _C.INTERNAL: 500,
}

_CODE_OF_STATUS: dict[int, ProblemCode] = {
    400: _C.BAD_REQUEST,
    401: _C.UNAUTHENTICATED,
    403: _C.FORBIDDEN,
    404: _C.NOT_FOUND,
    405: _C.METHOD_NOT_ALLOWED,
    413: _C.PAYLOAD_TOO_LARGE,
    415: _C.UNSUPPORTED_MEDIA_TYPE,
    422: _C.VALIDATION,
    429: _C.RATE_LIMITED,
    503: _C.NOT_READY,
}

_FRAMEWORK_DETAIL = {
    400: "the body can't be read; send JSON in UTF-8.",
    404: "there is nothing at this address; /docs lists what there is.",
    405: "this address does not take that method; /docs lists what it takes.",
    413: "the body is larger than this address takes; send less.",
}


class ProblemError(LemError):
    """What a request can't have, with its stable code; becomes the answer's body."""

    def __init__(
        self,
        code: ProblemCode,
        detail: str,
        *,
        errors: tuple[FieldProblem, ...] = (),
        members: Mapping[str, JsonValue] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.errors = errors
        self.members = dict(members or {})
        self.headers = dict(headers or {})


_LISTED_AT: dict[IdKind, str] = {
    IdKind.CAMPAIGN: "GET /api/v1/campaigns lists them",
    IdKind.EXPERIMENT: "GET /api/v1/campaigns/{campaign_id}/experiments lists a campaign's",
    IdKind.RUN: "GET /api/v1/runs lists them",
    IdKind.ATTEMPT: "GET /api/v1/runs/{run_id}/attempts lists a run's",
    IdKind.WORKER: "GET /api/v1/workers lists them",
    IdKind.TOKEN: "GET /api/v1/tokens lists them",
}


def not_there(kind: IdKind, value: UUID) -> ProblemError:
    """`not_found`: nothing has the id; says where those are that there are."""
    return ProblemError(_C.NOT_FOUND, f"there is no {kind.name.lower()} {format_id(kind, value)}; {_LISTED_AT[kind]}.")


def problem_response(error: ProblemError, request_id: str | None = None) -> Response:
    """The answer that an error becomes."""
    status = STATUS[error.code]
    problem = Problem(
        type=f"/problems/{error.code.value}",
        title=error.code.value.replace("_", " "),
        status=status,
        code=error.code,
        detail=str(error),
        errors=error.errors,
        request_id=request_id,
    )
    body = {**error.members, **problem.model_dump(mode="json", exclude_none=True)}
    headers = dict(error.headers)
    if error.code is ProblemCode.UNAUTHENTICATED:
        headers.setdefault("WWW-Authenticate", 'Bearer realm="lem"')
    return Response(canonical_json(body), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def problem_responses(*codes: ProblemCode) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route: the problems it can answer with, besides those that every route can."""
    every = (_C.UNAUTHENTICATED, _C.FORBIDDEN, _C.VALIDATION, _C.NOT_READY, *codes)
    described: dict[int | str, dict[str, Any]] = {}
    for status in sorted({STATUS[code] for code in every}):
        names = ", ".join(code.value for code in dict.fromkeys(every) if STATUS[code] == status)
        described[status] = {
            "description": f"{HTTPStatus(status).phrase}: {names}",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return described


def describe(document: dict[str, Any]) -> None:
    """Add the schema that `problem_responses` refers to; FastAPI knows only models of `application/json`."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    document.setdefault("components", {}).setdefault("schemas", {}).update(
        {**schema.pop("$defs", {}), Problem.__name__: schema}
    )


def install(app: FastAPI) -> None:
    """Make every error of the application a problem."""

    @app.exception_handler(ProblemError)
    async def _problem(request: Request, error: ProblemError) -> Response:
        return problem_response(error, _request_id(request))

    @app.exception_handler(ConfigurationError)
    async def _configuration(request: Request, error: ConfigurationError) -> Response:
        return problem_response(
            ProblemError(ProblemCode.VALIDATION, str(error), errors=error.findings), _request_id(request)
        )

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        return problem_response(_from_validation(error, _body_model(request)), _request_id(request))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        code = _CODE_OF_STATUS.get(error.status_code, ProblemCode.INTERNAL)
        detail = _FRAMEWORK_DETAIL.get(error.status_code, str(error.detail))
        return problem_response(ProblemError(code, detail, headers=dict(error.headers or {})), _request_id(request))

    @app.exception_handler(DBAPIError)
    @app.exception_handler(PoolTimeout)
    @app.exception_handler(asyncpg.PostgresError)
    @app.exception_handler(OSError)
    async def _other(request: Request, error: Exception) -> Response:
        request_id = _request_id(request)
        return problem_response(problem_of(error, request_id), request_id)


def problem_of(error: Exception, request_id: str | None) -> ProblemError:
    """What is answered where something failed that no route meant to refuse; logged here under the request's id."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, ClientDisconnect):
        logger.info("request %s was broken off by its client", request_id)
        return _internal()  # nobody reads it
    if isinstance(error, DBAPIError):
        found = _from_database(error)
    elif isinstance(error, (PoolTimeout, asyncpg.PostgresError, OSError)):
        found = _away()  # nothing but the database's connections is opened while a request is answered
    else:
        found = _internal()
    if found.code is ProblemCode.INTERNAL:
        logger.error("request %s failed", request_id, exc_info=error)
    elif found.code is ProblemCode.NOT_READY:
        logger.warning("request %s: the database is busy or away: %s", request_id, type(error).__name__)
    return found


def _body_model(request: Request) -> type[BaseModel] | None:
    """What the body should have been, where that is one model."""
    field = getattr(request.scope.get("route"), "body_field", None)
    found = field.field_info.annotation if field is not None else None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _from_validation(error: RequestValidationError, model: type[BaseModel] | None) -> ProblemError:
    found = []
    for one in error.errors()[:MOST_PROBLEMS]:
        kind, place = one["type"], [part for part in one["loc"] if part != "body"]
        if kind == "json_invalid":
            return ProblemError(ProblemCode.BAD_REQUEST, f"the body is no JSON: {one['ctx']['error']}.")
        message = one["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            known = keys_at(model, place[:-1]) if model is not None else ()
            message = unknown_key_message(str(place[-1]), known) if known else f"unknown key {place[-1]!r}; remove it"
        elif kind == "missing":
            message = f"{place[-1]!r} is required; add it" if place else "a JSON body is required; send one"
        found.append(FieldProblem(pointer=pointer(place), message=message))
    first = found[0]
    where = first.pointer.lstrip("/").replace("/", ".")
    return ProblemError(
        ProblemCode.VALIDATION, f"{where}: {first.message}" if where else first.message, errors=tuple(found)
    )


def _from_database(error: DBAPIError) -> ProblemError:
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    if state == "LE001":
        message = str(error.orig).split(": ", 1)[-1]
        return ProblemError(ProblemCode.ILLEGAL_TRANSITION, f"{message}; look at its present state.")
    if error.connection_invalidated or state is None or state[:2] in ("08", "53", "57", "40", "55"):
        return _away()
    return _internal()


def _away() -> ProblemError:
    return ProblemError(
        ProblemCode.NOT_READY, "the database is busy or away; send the request again.", headers={"Retry-After": "1"}
    )


def _internal() -> ProblemError:
    return ProblemError(
        ProblemCode.INTERNAL, "the server failed to answer this; its log has the details under the request id."
    )


def _request_id(request: Request) -> str | None:
    found: str | None = request.scope.get("lem.request_id")
    return found
