"""The LISTEN connection of a server process, and the hub that wakes long polls and event streams.

A waiting request holds no database connection: the pool has ten, and hundreds of requests may wait. A notification is
only a hint. Waiters read the tables again, and every wait has a time limit, so a lost notification costs seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from sqlalchemy.ext.asyncio import AsyncEngine

QUEUE_CHANNEL = "lem_queue"
"""Notified when a run is queued; the payload is its backend."""
CAMPAIGN_CHANNEL = "lem_campaign"
"""Notified when a run of a campaign changes its state; the payload is the campaign's UUID."""

APPLICATION_NAME = "lem listener"

QUEUE_POLL_S = 5.0
"""The longest wait before the queue is read again, varied by ± 20 % so that replicas don't read at the same time."""
SELF_TEST_INTERVAL_S = 30.0
"""Until a dead connection is noticed, waits end by `QUEUE_POLL_S`, so the test may be rare."""
SELF_TEST_TIMEOUT_S = 5.0
"""A connection that a firewall dropped reports no error; only a missing echo shows it."""
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0
"""The pause doubles up to this, so that the replicas do not load a PostgreSQL that is starting."""

logger = logging.getLogger(__name__)


class Signal:
    """An event that can't be missed: take a ticket, read the tables, then wait for a ring since the ticket."""

    def __init__(self) -> None:
        self._rings = 0
        self._next = asyncio.Event()

    def ticket(self) -> int:
        """Return the number of rings so far; take it before reading the tables."""
        return self._rings

    def ring(self) -> None:
        """Wake all waiters, and all that took a ticket before and wait later."""
        self._rings += 1
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, ticket: int, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for a ring since the ticket; return whether there was one."""
        if self._rings == ticket:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._next.wait()
        return self._rings != ticket


class Hub:
    """Wakes the long polls and event streams of this process."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        clock: Callable[[], float] = time.monotonic,
        randomness: random.Random | None = None,
    ) -> None:
        self.clock = clock
        self.stopping = False
        self._random = randomness or random.Random()
        self._queue = Signal()
        self.followed: WeakValueDictionary[UUID, Signal] = WeakValueDictionary()
        """The signal of each campaign that has followers."""
        self.listener = Listener(engine, received=self._received, missed=self.ring_all, randomness=self._random)

    async def start(self) -> None:
        """Begin to listen, in the background; without a connection, waits end by their time limits."""
        self.listener.start()

    async def stop(self) -> None:
        """End all waits and close the connection."""
        self.release()
        await self.listener.stop()

    def release(self) -> None:
        """End all waits now, and later ones at once, because the process shuts down."""
        self.stopping = True
        self.ring_all()

    def ring_all(self) -> None:
        """Wake all waiters, because a notification may have been missed."""
        self._queue.ring()
        for signal in self.followed.values():
            signal.ring()

    def ring_campaign(self, campaign_id: UUID) -> None:
        """Wake the followers of a campaign in this process."""
        signal = self.followed.get(campaign_id)
        if signal is not None:
            signal.ring()

    def queue_ticket(self) -> int:
        """Take a ticket; do so before reading the queue."""
        return self._queue.ticket()

    async def wait_for_queue(self, ticket: int, timeout_s: float) -> bool:
        """Wait until a run is queued, at most `timeout_s` and about 5 s; return whether one was since the ticket."""
        if self.stopping:
            return False
        longest = QUEUE_POLL_S * self._random.uniform(0.8, 1.2)
        return await self._queue.wait(ticket, max(0.0, min(timeout_s, longest)))

    def campaign(self, campaign_id: UUID) -> Signal:
        """Return the signal of one campaign, which exists while a follower holds it."""
        return self.followed.setdefault(campaign_id, Signal())

    def _received(self, channel: str, payload: str) -> None:
        if channel == QUEUE_CHANNEL:
            self._queue.ring()
            return
        with contextlib.suppress(ValueError):
            self.ring_campaign(UUID(payload))


class Listener:
    """Keeps one connection that listens, tests it regularly, and replaces it when the test fails."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        received: Callable[[str, str], None],
        missed: Callable[[], None],
        randomness: random.Random,
    ) -> None:
        self.connected = asyncio.Event()
        """Set while notifications are known to arrive."""
        self._engine = engine
        self._received = received
        self._missed = missed
        self._random = randomness
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen, in the background."""
        self._task = asyncio.create_task(self._keep_listening(), name="lem-listener")

    async def stop(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _keep_listening(self) -> None:
        pause_s = FIRST_RETRY_S
        while True:
            try:
                await self._listen()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # any failure is answered with a new connection
                logger.warning("lost the LISTEN connection to the database, reconnecting: %s", error)
            finally:
                was_connected = self.connected.is_set()
                self.connected.clear()
            if was_connected:
                pause_s = FIRST_RETRY_S
            await asyncio.sleep(pause_s * self._random.uniform(0.8, 1.2))
            pause_s = min(LAST_RETRY_S, pause_s * 2)

    async def _listen(self) -> None:
        """Listen until the connection breaks."""
        proxied = await self._engine.raw_connection()
        connection: Any = proxied.driver_connection
        # Detached, because the pool would count it as in use and reset it when it is returned.
        proxied.detach()
        closed = asyncio.Event()
        echo = _Echo()
        try:
            connection.add_termination_listener(lambda _: closed.set())
            # Shows in pg_stat_activity which idle connection must not be terminated.
            await connection.execute(f"SET application_name = '{APPLICATION_NAME}'")
            await connection.add_listener(echo.channel, lambda *notice: echo.received(notice[3]))
            for channel in (QUEUE_CHANNEL, CAMPAIGN_CHANNEL):
                await connection.add_listener(channel, lambda *notice: self._received(notice[2], notice[3]))
            while not closed.is_set():
                await echo.test(connection)
                if not self.connected.is_set():
                    self.connected.set()
                    self._missed()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SELF_TEST_INTERVAL_S):
                        await closed.wait()
            raise ConnectionError("the database closed it")
        finally:
            await _close(connection)


class _Echo:
    """The self-test: a notification to a unique channel must come back over the same connection.

    It fails through a pooler that uses another connection for each transaction (PgBouncer's transaction mode).
    """

    def __init__(self) -> None:
        self.channel = f"lem_echo_{uuid4().hex}"
        self._awaited: asyncio.Future[None] | None = None
        self._token = ""

    def received(self, token: str) -> None:
        if self._awaited is not None and token == self._token and not self._awaited.done():
            self._awaited.set_result(None)

    async def test(self, connection: Any) -> None:
        self._token = uuid4().hex
        self._awaited = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(SELF_TEST_TIMEOUT_S):
                await connection.execute("SELECT pg_notify($1, $2)", self.channel, self._token)
                await self._awaited
        except TimeoutError:
            raise ConnectionError(
                "a notification to itself did not come back; connect LEM to PostgreSQL directly, "
                "not through a transaction pooler"
            ) from None
        finally:
            self._awaited = None


async def _close(connection: Any) -> None:
    try:
        async with asyncio.timeout(SELF_TEST_TIMEOUT_S):
            await connection.close()
    except Exception:  # it is dropped either way
        connection.terminate()
