"""Liveness, readiness and version. These routes need no token."""

from __future__ import annotations

import asyncio
import functools
from importlib.metadata import version

import asyncpg
from fastapi import APIRouter
from pydantic import Field
from sqlalchemy.exc import SQLAlchemyError

from lem_domain.errors import ProblemCode
from lem_domain.results.method import DEFAULT_METHOD
from lem_domain.wire.base import PROTOCOL_VERSION, AnswerModel
from lem_server.context import Context
from lem_server.database.migrate import current_revision, head_revision
from lem_server.http.problems import STATUS, ProblemError, problem_responses

router = APIRouter(tags=["health"])

DATABASE_ANSWERS_WITHIN_S = 1.0

_NOT_READY = STATUS[ProblemCode.NOT_READY]
_expected_revision = functools.cache(head_revision)


class Health(AnswerModel):
    """The process is alive, or ready."""

    status: str = "ok"


class Version(AnswerModel):
    """Versions of the server, its protocol and its method."""

    version: str
    protocol: int = Field(description="Workers and clients of another protocol are refused.")
    method: str = Field(description="Version of the aggregation's formulas.")


@router.get("/livez")
async def livez() -> Health:
    """Answer without a look at the database."""
    return Health()


@router.get("/readyz", responses={_NOT_READY: problem_responses()[_NOT_READY]})
async def readyz(context: Context) -> Health:
    """Check that the database answers within a second and that its schema is at this server's revision."""
    try:
        async with asyncio.timeout(DATABASE_ANSWERS_WITHIN_S):
            found = await current_revision(context.engine)
    except (TimeoutError, OSError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise _not_ready("the database does not answer; send the request again.") from error
    if found != _expected_revision():
        raise _not_ready(
            f"the database's schema is at revision {found or 'none'} and this server needs {_expected_revision()}; "
            "run `lem-server migrate` of the newest version, and start servers of that version."
        )
    return Health()


def _not_ready(detail: str) -> ProblemError:
    return ProblemError(ProblemCode.NOT_READY, detail, headers={"Retry-After": "1"})


@router.get("/version")
async def get_version() -> Version:
    """Return the versions of the server, its protocol and its method."""
    return Version(version=version("llm-energy-measurement"), protocol=PROTOCOL_VERSION, method=DEFAULT_METHOD)
