"""Builds every answer without a success status: `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar
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

T = TypeVar("T")

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
    _C.PAYLOAD_TOO_LARGE: 413,
    _C.DECOMPRESSION_LIMIT: 413,
    _C.UNSUPPORTED_MEDIA_TYPE: 415,
    _C.CLIENT_TOO_OLD: 426,
    _C.NOT_READY: 503,
    _C.INTERNAL: 500,
}

_CODE_OF_STATUS = {status: code for code, status in reversed(STATUS.items())}
"""The first code of each status, for the framework's own errors."""

_FRAMEWORK_DETAIL = {
    400: "the body is unreadable; send JSON in UTF-8.",
    404: "this path does not exist; /docs lists all paths.",
    405: "this path does not support the method; /docs lists the methods of each path.",
    413: "the body is larger than this path accepts; send less.",
}


class ProblemError(LemError):
    """A refused request with its stable code; the error handler turns it into the answer."""

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


_DATABASE_ERRORS = (DBAPIError, PoolTimeout, asyncpg.PostgresError, OSError)

_LISTED_AT: dict[IdKind, str] = {
    IdKind.CAMPAIGN: "GET /api/v1/campaigns lists them",
    IdKind.EXPERIMENT: "GET /api/v1/campaigns/{campaign_id}/experiments lists a campaign's",
    IdKind.RUN: "GET /api/v1/runs lists them",
    IdKind.ATTEMPT: "GET /api/v1/runs/{run_id}/attempts lists a run's",
    IdKind.WORKER: "GET /api/v1/workers lists them",
    IdKind.TOKEN: "GET /api/v1/tokens lists them",
}


def not_found(kind: IdKind, value: UUID) -> ProblemError:
    """Build `not_found` for an id, with the request that lists the existing ones."""
    return ProblemError(_C.NOT_FOUND, f"there is no {kind.name.lower()} {format_id(kind, value)}; {_LISTED_AT[kind]}.")


def required(found: T | None, kind: IdKind, value: UUID) -> T:
    """Return what was found by an id.

    Raises:
        ProblemError: `not_found` for None.
    """
    if found is None:
        raise not_found(kind, value)
    return found


def problem_response(error: ProblemError, request_id: str | None = None) -> Response:
    """Build the answer for an error."""
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
    """Build the `responses=` of a route: its own problems and those of every route."""
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
    """Add the schema that `problem_responses` refers to; FastAPI adds only models of `application/json`."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    document.setdefault("components", {}).setdefault("schemas", {}).update(
        {**schema.pop("$defs", {}), Problem.__name__: schema}
    )


def install(app: FastAPI) -> None:
    """Install the handler that turns every error of the application into a problem."""

    async def answer(request: Request, error: Exception) -> Response:
        request_id: str | None = request.scope.get("lem.request_id")
        if isinstance(error, RequestValidationError):
            return problem_response(_from_validation(error, _body_model(request)), request_id)
        return problem_response(problem_of(error, request_id), request_id)

    for kind in (ProblemError, ConfigurationError, RequestValidationError, HTTPException, *_DATABASE_ERRORS):
        app.add_exception_handler(kind, answer)


def problem_of(error: Exception, request_id: str | None) -> ProblemError:
    """Return the problem for an error, and log an unexpected one under the request's id."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, ConfigurationError):
        return ProblemError(ProblemCode.VALIDATION, str(error), errors=error.field_problems)
    if isinstance(error, HTTPException):
        code = _CODE_OF_STATUS.get(error.status_code, ProblemCode.INTERNAL)
        detail = _FRAMEWORK_DETAIL.get(error.status_code, str(error.detail))
        return ProblemError(code, detail, headers=dict(error.headers or {}))
    if isinstance(error, ClientDisconnect):
        logger.info("request %s: the client closed the connection", request_id)
        return _internal()  # never sent, the connection is closed
    if isinstance(error, DBAPIError):
        found = _from_database(error)
    elif isinstance(error, _DATABASE_ERRORS):
        found = _database_unavailable()  # the handlers open no other connections than those to the database
    else:
        found = _internal()
    if found.code is ProblemCode.INTERNAL:
        logger.error("request %s failed", request_id, exc_info=error)
    elif found.code is ProblemCode.NOT_READY:
        logger.warning("request %s: the database is busy or unavailable: %s", request_id, type(error).__name__)
    return found


def _body_model(request: Request) -> type[BaseModel] | None:
    """Return the model of the route's body, if it is a single model."""
    field = getattr(request.scope.get("route"), "body_field", None)
    found = field.field_info.annotation if field is not None else None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _from_validation(error: RequestValidationError, model: type[BaseModel] | None) -> ProblemError:
    found = []
    for one in error.errors()[:MOST_PROBLEMS]:
        kind, location = one["type"], [part for part in one["loc"] if part != "body"]
        if kind == "json_invalid":
            return ProblemError(ProblemCode.BAD_REQUEST, f"the body is not JSON: {one['ctx']['error']}.")
        message = one["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            known = keys_at(model, location[:-1]) if model is not None else ()
            key = str(location[-1])
            message = unknown_key_message(key, known) if known else f"unknown key {key!r}; remove it"
        elif kind == "missing":
            message = f"{location[-1]!r} is required; add it" if location else "a JSON body is required; send one"
        found.append(FieldProblem(pointer=pointer(location), message=message))
    first = found[0]
    where = first.pointer.lstrip("/").replace("/", ".")
    return ProblemError(
        ProblemCode.VALIDATION, f"{where}: {first.message}" if where else first.message, errors=tuple(found)
    )


def _from_database(error: DBAPIError) -> ProblemError:
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    # The SQLSTATE that the trigger of run transitions raises; its message has the run and both states.
    if state == "LE001":
        message = str(error.orig).split(": ", 1)[-1]
        return ProblemError(ProblemCode.ILLEGAL_TRANSITION, f"{message}; read its current state.")
    # Connection failure, insufficient resources, operator intervention (shutdown), rollback (deadlock, serialization),
    # object not in the required state (lock not available): a repeated request can succeed.
    if error.connection_invalidated or state is None or state[:2] in ("08", "53", "57", "40", "55"):
        return _database_unavailable()
    return _internal()


def _database_unavailable() -> ProblemError:
    return ProblemError(
        ProblemCode.NOT_READY,
        "the database is busy or unavailable; send the request again.",
        headers={"Retry-After": "1"},
    )


def _internal() -> ProblemError:
    return ProblemError(
        ProblemCode.INTERNAL, "the server failed to answer; its log has the details under the request id."
    )
