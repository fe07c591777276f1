"""Periodic tasks of every server process. Running one in several replicas at the same time is harmless."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_server.attempts.service import end_expired
from lem_server.campaigns.service import end_after_failures
from lem_server.http.idempotency import forget_old_keys
from lem_server.leases.service import mark_suspects
from lem_server.settings import LeaseTerms

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
"""Also bounds how late an expired lease is found; leases last a minute by default."""
CLEAN_UP_INTERVAL_S = 3600.0


async def maintain(engine: AsyncEngine, terms: LeaseTerms, stopping: asyncio.Event) -> None:
    """Run all tasks until the server stops. A task that the database fails is tried again after its interval."""
    # Tests use leases of a fraction of a second.
    interval = min(INTERVAL_S, max(0.05, terms.ttl_s / 4))
    async with asyncio.TaskGroup() as group:
        group.create_task(_every(interval, partial(_end_expired_leases, engine, terms), stopping))
        group.create_task(_every(interval, partial(end_after_failures, engine), stopping))
        group.create_task(_every(CLEAN_UP_INTERVAL_S, partial(forget_old_keys, engine), stopping))


async def _end_expired_leases(engine: AsyncEngine, terms: LeaseTerms) -> None:
    await mark_suspects(engine)
    await end_expired(engine, terms)


async def _every(seconds: float, work: Callable[[], Awaitable[object]], stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        try:
            await work()
        except (SQLAlchemyError, OSError):
            logger.exception("maintenance failed; trying again in %.0f s", seconds)
        try:
            async with asyncio.timeout(seconds):
                await stopping.wait()
        except TimeoutError:
            continue
