"""The hub: waits end when the database says so, whatever happens to the connection that listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_server.database.listener import APPLICATION_NAME, Hub

pytestmark = pytest.mark.anyio

LONG_S = 600.0
"""Longer than any wait here may take: a wait that ends by itself fails its test."""


@pytest.fixture
async def hub(engine: AsyncEngine) -> AsyncIterator[Hub]:
    hub = Hub(engine)
    await hub.start()
    async with asyncio.timeout(LONG_S):
        await hub.listener.connected.wait()
    yield hub
    await hub.stop()


async def notify(engine: AsyncEngine, channel: str, payload: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("SELECT pg_notify(:channel, :payload)"), {"channel": channel, "payload": payload})


async def test_a_wait_for_the_queue_ends_with_the_notification(engine: AsyncEngine, hub: Hub) -> None:
    ticket = hub.queue_ticket()
    waiting = asyncio.create_task(hub.wait_for_queue(ticket, LONG_S))
    await notify(engine, "lem_queue", "simulated")
    assert await waiting


async def test_a_notification_between_the_look_and_the_wait_is_not_missed(engine: AsyncEngine, hub: Hub) -> None:
    ticket = hub.queue_ticket()
    await notify(engine, "lem_queue", "simulated")
    assert await hub.wait_for_queue(ticket, LONG_S)
    assert await hub.wait_for_queue(ticket, 0)


async def test_a_wait_without_news_ends_in_time(hub: Hub) -> None:
    assert not await hub.wait_for_queue(hub.queue_ticket(), 0)


async def test_only_followers_of_the_campaign_are_woken(engine: AsyncEngine, hub: Hub) -> None:
    followed, other = uuid4(), uuid4()
    signal, quiet = hub.campaign(followed), hub.campaign(other)
    ticket, quiet_ticket = signal.ticket(), quiet.ticket()
    await notify(engine, "lem_campaign", str(uuid4()))
    await notify(engine, "lem_campaign", str(followed))
    assert await signal.wait(ticket, LONG_S)
    assert quiet.ticket() == quiet_ticket


async def test_followers_share_a_signal_that_goes_with_the_last_of_them(hub: Hub) -> None:
    campaign_id = uuid4()
    first = hub.campaign(campaign_id)
    second = hub.campaign(campaign_id)
    assert second is first
    del second
    assert hub.campaign(campaign_id) is first
    assert list(hub.followed) == [campaign_id]
    del first
    assert not hub.followed


async def test_a_payload_that_is_no_campaign_does_no_harm(engine: AsyncEngine, hub: Hub) -> None:
    ticket = hub.queue_ticket()
    await notify(engine, "lem_campaign", "nonsense")
    await notify(engine, "lem_queue", "simulated")
    assert await hub.wait_for_queue(ticket, LONG_S)


async def test_a_lost_connection_is_replaced_and_everyone_looks_again(engine: AsyncEngine, hub: Hub) -> None:
    ticket = hub.queue_ticket()
    async with engine.connect() as connection:
        await connection.execute(text("SET LOCAL ROLE NONE"))
        ended = await connection.execute(
            text("""
                SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE application_name = :name AND datname = current_database()
            """),
            {"name": APPLICATION_NAME},
        )
        assert ended.scalar_one() == 1
    async with asyncio.timeout(LONG_S):
        while hub.queue_ticket() == ticket:
            await hub.wait_for_queue(ticket, LONG_S)
        await hub.listener.connected.wait()
    ticket = hub.queue_ticket()
    waiting = asyncio.create_task(hub.wait_for_queue(ticket, LONG_S))
    await notify(engine, "lem_queue", "simulated")
    assert await waiting


async def test_the_listening_connection_is_not_one_of_the_pool(engine: AsyncEngine, hub: Hub) -> None:
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_release_ends_every_wait(hub: Hub) -> None:
    signal = hub.campaign(uuid4())
    ticket = signal.ticket()
    waiting = asyncio.create_task(hub.wait_for_queue(hub.queue_ticket(), LONG_S))
    hub.release()
    assert await signal.wait(ticket, LONG_S)
    await waiting
    assert not await hub.wait_for_queue(hub.queue_ticket(), LONG_S)
