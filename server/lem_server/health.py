"""Whether the process lives, whether it can serve, and which version it is. Open to everybody."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from lem_domain.errors import ProblemCode
from lem_domain.results import METHOD_VERSION
from lem_domain.wire.base import PROTOCOL_VERSION, AnswerModel
from lem_server.context import Context
from lem_server.problems import ProblemError, problem_responses

router = APIRouter(tags=["health"])

DATABASE_ANSWERS_WITHIN_S = 1.0


class Health(AnswerModel):
    """It lives, or it can serve."""

    status: str = "ok"


class Version(AnswerModel):
    """What this server is."""

    version: str
    protocol: int = Field(description="Workers and clients of another protocol are refused.")
    method: str = Field(description="Version of the aggregation's formulas.")


@router.get("/livez")
async def livez() -> Health:
    """The process answers; says nothing of the database."""
    return Health()


@router.get("/readyz", responses=problem_responses())
async def readyz(context: Context) -> Health:
    """The database answers within a second."""
    try:
        async with asyncio.timeout(DATABASE_ANSWERS_WITHIN_S), context.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except (TimeoutError, OSError, SQLAlchemyError) as error:
        raise ProblemError(
            ProblemCode.NOT_READY, "the database does not answer; try again.", headers={"Retry-After": "1"}
        ) from error
    return Health()


@router.get("/version")
async def get_version() -> Version:
    """Versions of the server, its protocol and its method."""
    return Version(version=version("llm-energy-measurement"), protocol=PROTOCOL_VERSION, method=METHOD_VERSION)
