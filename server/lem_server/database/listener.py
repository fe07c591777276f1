"""The one LISTEN connection of a server process, and the hub that wakes whoever waits for news of the database.

Nobody holds a database connection while waiting. A notification is a hint, never the news itself: waiters look at the
tables again, and every wait ends after a while even without one, so a lost notification costs seconds and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

QUEUE_CHANNEL = "lem_queue"
"""Told when a run is queued; the payload is its backend."""
CAMPAIGN_CHANNEL = "lem_campaign"
"""Told when a run of a campaign changes its state; the payload is the campaign's UUID."""

APPLICATION_NAME = "lem listener"

QUEUE_POLL_S = 5.0
"""The longest wait for the queue without looking again, spread by ± 20 % so that replicas don't look all at once."""
SELF_TEST_INTERVAL_S = 30.0
SELF_TEST_TIMEOUT_S = 5.0
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0

logger = logging.getLogger(__name__)


class Signal:
    """A bell that can't be missed: take a ticket, look at the tables, then wait for any ring since the ticket."""

    def __init__(self) -> None:
        self._rings = 0
        self._next = asyncio.Event()

    def ticket(self) -> int:
        """Marks now; to be taken before looking."""
        return self._rings

    def ring(self) -> None:
        """Wake everybody who waits, and everybody who took a ticket before and waits later."""
        self._rings += 1
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, ticket: int, timeout_s: float) -> bool:
        """Whether it rang since the ticket was taken; waits no longer than told."""
        if self._rings == ticket:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._next.wait()
        return self._rings != ticket


class Hub:
    """Wakes long polls and event streams of this process."""

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
        self._campaigns: dict[UUID, tuple[Signal, int]] = {}
        self._listener = Listener(engine, heard=self._heard, missed=self.ring_all, randomness=self._random)

    async def start(self) -> None:
        """Begin to listen, in the background; waits work, by looking again, while there is no connection."""
        self._listener.start()

    async def stop(self) -> None:
        """Let go of everybody who waits and close the connection."""
        self.release()
        await self._listener.stop()

    def release(self) -> None:
        """End every wait now and every later one at once: the process is going down."""
        self.stopping = True
        self.ring_all()

    @property
    def campaigns_followed(self) -> int:
        """How many campaigns somebody follows."""
        return len(self._campaigns)

    async def wait_until_listening(self) -> None:
        """Return once notifications are known to arrive."""
        await self._listener.connected.wait()

    def ring_all(self) -> None:
        """Wake everybody: something may have been missed."""
        self._queue.ring()
        for signal, _ in self._campaigns.values():
            signal.ring()

    def ring_campaign(self, campaign_id: UUID) -> None:
        """Wake the followers of one campaign in this process."""
        followed = self._campaigns.get(campaign_id)
        if followed is not None:
            followed[0].ring()

    def queue_ticket(self) -> int:
        """Marks now; to be taken before looking at the queue."""
        return self._queue.ticket()

    async def wait_for_queue(self, ticket: int, timeout_s: float) -> bool:
        """Wait until a run was queued since the ticket, at most `timeout_s` and never longer than about 5 s."""
        if self.stopping:
            return False
        longest = QUEUE_POLL_S * self._random.uniform(0.8, 1.2)
        return await self._queue.wait(ticket, max(0.0, min(timeout_s, longest)))

    @contextlib.contextmanager
    def campaign(self, campaign_id: UUID) -> Iterator[Signal]:
        """The signal of one campaign; kept only while somebody follows it."""
        signal, followers = self._campaigns.get(campaign_id, (None, 0))
        signal = signal or Signal()
        self._campaigns[campaign_id] = (signal, followers + 1)
        try:
            yield signal
        finally:
            signal, followers = self._campaigns[campaign_id]
            if followers == 1:
                del self._campaigns[campaign_id]
            else:
                self._campaigns[campaign_id] = (signal, followers - 1)

    def _heard(self, channel: str, payload: str) -> None:
        if channel == QUEUE_CHANNEL:
            self._queue.ring()
            return
        with contextlib.suppress(ValueError):
            self.ring_campaign(UUID(payload))


class Listener:
    """Keeps one connection that listens, proves again and again that it hears, and replaces it when it doesn't."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        heard: Callable[[str, str], None],
        missed: Callable[[], None],
        randomness: random.Random,
    ) -> None:
        self.connected = asyncio.Event()
        self._engine = engine
        self._heard = heard
        self._missed = missed
        self._random = randomness
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin in the background."""
        self._task = asyncio.create_task(self._keep_listening(), name="lem-listener")

    async def stop(self) -> None:
        """Close the connection and return when it is closed."""
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
            except Exception as error:  # whatever broke it, the answer is a new connection
                logger.warning("lost the connection that listens to the database, trying again: %s", error)
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
        # Out of the pool for good: it would otherwise count as a connection in use, and be reset.
        proxied.detach()
        closed = asyncio.Event()
        echo = _Echo()
        try:
            connection.add_termination_listener(lambda _: closed.set())
            # Tells an operator in pg_stat_activity which of the idle connections is to stay.
            await connection.execute(f"SET application_name = '{APPLICATION_NAME}'")
            await connection.add_listener(echo.channel, lambda *notice: echo.heard(notice[3]))
            for channel in (QUEUE_CHANNEL, CAMPAIGN_CHANNEL):
                await connection.add_listener(channel, lambda *notice: self._heard(notice[2], notice[3]))
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
    """The self-test: a notification to a channel of its own must come back over the same connection.

    A pooler that hands every transaction to another server connection (PgBouncer's transaction mode) fails it.
    """

    def __init__(self) -> None:
        self.channel = f"lem_echo_{uuid4().hex}"
        self._awaited: asyncio.Future[None] | None = None
        self._word = ""

    def heard(self, word: str) -> None:
        if self._awaited is not None and word == self._word and not self._awaited.done():
            self._awaited.set_result(None)

    async def test(self, connection: Any) -> None:
        self._word = uuid4().hex
        self._awaited = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(SELF_TEST_TIMEOUT_S):
                await connection.execute("SELECT pg_notify($1, $2)", self.channel, self._word)
                await self._awaited
        except TimeoutError:
            raise ConnectionError(
                "a notification to itself did not come back; give LEM a direct connection to PostgreSQL, "
                "not one through a transaction pooler"
            ) from None
        finally:
            self._awaited = None


async def _close(connection: Any) -> None:
    try:
        async with asyncio.timeout(SELF_TEST_TIMEOUT_S):
            await connection.close()
    except Exception:  # it is gone either way
        connection.terminate()
