"""The loop in which every server process ends expired leases and clears away; doing it twice at once does no harm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_server.http import idempotency
from lem_server.leases.durations import LeaseTerms
from lem_server.leases.service import expire, mark_suspects

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
CLEAN_UP_INTERVAL_S = 3600.0


async def maintain(
    engine: AsyncEngine,
    terms: LeaseTerms,
    stopping: asyncio.Event,
    *,
    more: Sequence[Callable[[AsyncEngine], Awaitable[object]]] = (),
) -> None:
    """Look at the leases every few seconds until the server stops, and do what `more` there is; a database that is away
    is waited for."""
    interval = min(INTERVAL_S, max(0.05, terms.ttl_s / 4))
    async with asyncio.TaskGroup() as group:
        group.create_task(_every(interval, lambda: _look_at_leases(engine, terms), stopping))
        for work in more:
            group.create_task(_every(interval, partial(work, engine), stopping))
        group.create_task(_every(CLEAN_UP_INTERVAL_S, lambda: idempotency.forget_old_keys(engine), stopping))


async def _look_at_leases(engine: AsyncEngine, terms: LeaseTerms) -> None:
    await mark_suspects(engine)
    await expire(engine, terms)


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
