"""Builds the FastAPI application from the settings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from sqlalchemy.engine import URL

from lem_server.access.guard import Authentication, check_scope
from lem_server.access.routes import router as access_router
from lem_server.access.service import ensure_owner_token
from lem_server.aggregation.campaigns import CampaignAggregations
from lem_server.aggregation.process_pool import AggregationPool
from lem_server.aggregation.routes import router as aggregation_router
from lem_server.attempts.routes import router as attempts_router
from lem_server.campaigns.routes import router as campaigns_router
from lem_server.context import AppContext
from lem_server.database.engine import make_engine, require_supported_version
from lem_server.database.listener import Hub
from lem_server.database.migrate import require_head
from lem_server.datasets.routes import router as datasets_router
from lem_server.decisions.routes import router as decisions_router
from lem_server.events.routes import router as events_router
from lem_server.evidence.routes import router as evidence_router
from lem_server.exports.routes import router as exports_router
from lem_server.http import documentation, health, middleware, problems
from lem_server.leases.routes import router as leases_router
from lem_server.maintenance import maintain
from lem_server.runs.routes import router as runs_router
from lem_server.schema.routes import router as schema_router
from lem_server.settings import Settings
from lem_server.workers.routes import router as workers_router

ROUTERS = (
    access_router,
    aggregation_router,
    attempts_router,
    campaigns_router,
    datasets_router,
    decisions_router,
    events_router,
    evidence_router,
    exports_router,
    leases_router,
    runs_router,
    schema_router,
    workers_router,
)
"""All routers of the API; `create_app` adds the scope check to each of their routes."""

_DESCRIPTION = """
Measures the energy and time of large language models, with an error bound for each figure.

Send `Authorization: Bearer <token>`; the owner's token is in the server's data folder (`owner.token`). Errors are
`application/problem+json` (RFC 9457). Lists return `next`, the cursor of their next page.
"""


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            problems.describe(super().openapi())
        return super().openapi()


def create_app(settings: Settings, url: URL) -> FastAPI:
    """Build the application for the database at `url`, whose schema must be at head when it starts."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = make_engine(url)
        hub = Hub(engine)
        pool = AggregationPool()
        stopping = asyncio.Event()
        try:
            await require_supported_version(engine)
            await require_head(engine)
            await ensure_owner_token(engine, settings.data_dir)
            app.state.context = AppContext(
                settings=settings, engine=engine, hub=hub, aggregations=CampaignAggregations(engine, hub, pool)
            )
            await hub.start()
            maintenance = asyncio.create_task(maintain(engine, settings.lease_terms, stopping), name="lem-maintenance")
            try:
                yield
            finally:
                stopping.set()
                pool.close()
                await hub.stop()
                await maintenance
        finally:
            await engine.dispose()

    app = _Application(
        title="LEM, the LLM energy measurement service",
        version=version("llm-energy-measurement"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    # The last one added runs first: requests get an id, then host, token and size are checked.
    app.add_middleware(middleware.BodyLimit)
    app.add_middleware(Authentication)
    app.add_middleware(middleware.TrustedHosts, hosts=settings.trusted_hosts)
    app.add_middleware(middleware.Envelope)
    problems.install(app)
    app.include_router(health.router)
    for router in ROUTERS:
        app.include_router(router, dependencies=[Depends(check_scope)])
    documentation.install(app)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
