"""The loop in which every server process ends expired leases; doing it twice at once does no harm."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_server.leases.service import expire
from lem_server.leases.terms import LeaseTerms

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0


async def maintain(engine: AsyncEngine, terms: LeaseTerms, stopping: asyncio.Event) -> None:
    """End expired leases every few seconds until the server stops; a database that is away is waited for."""
    interval = min(INTERVAL_S, max(0.05, terms.ttl_s / 4))
    while not stopping.is_set():
        try:
            await expire(engine, terms)
        except (SQLAlchemyError, OSError):
            logger.exception("looking for expired leases failed; trying again in %.0f s", interval)
        try:
            async with asyncio.timeout(interval):
                await stopping.wait()
        except TimeoutError:
            continue
