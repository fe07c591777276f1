"""SIGTERM and SIGINT while nobody else listens for them."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_HEEDED = (signal.SIGINT, signal.SIGTERM)


class ToldToEnd(SystemExit):
    """Unwinds what was begun, so that the embedded PostgreSQL is stopped; asyncio lets nothing else through."""


class EndSignals:
    """Ends the process cleanly before uvicorn listens for its signals, and lets nothing be cut off after it ended.

    Uvicorn raises the signal that ended it once more; by default that kills the process with PostgreSQL running.
    """

    def __init__(self, code: int | None) -> None:
        """The code to end with; None is 128 and the signal's number."""
        self._code = code
        self._told: ToldToEnd | None = None
        self._over = False
        self._cancel: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._heed) for number in _HEEDED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it on a loop of its own, which a signal makes end.

        There the work is cancelled: an exception that a handler raises is lost where Python can't let it through, for
        example while it collects garbage, and what is waited for may never come.

        Raises:
            ToldToEnd: a signal came.
        """

        async def heeded() -> T:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None  # noqa: S101 - `asyncio.run` makes one
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            try:
                self.check()
                return await work
            finally:
                self._cancel = None

        try:
            done = asyncio.run(heeded())
        except asyncio.CancelledError:
            self.check()
            raise
        finally:
            work.close()  # nothing to do but where it was never begun
        self.check()
        return done

    def leave_alone(self) -> None:
        """Ignore them from now on: what goes on ends by itself, or at uvicorn's word."""
        self._over = True

    def check(self) -> None:
        """End here where the signal came while Python could not let its exception through."""
        if self._told is not None:
            raise self._told

    def _heed(self, number: int, _frame: FrameType | None) -> None:
        if self._told is None and not self._over:
            logger.info("%s: ending", signal.Signals(number).name)
            self._told = ToldToEnd(128 + number if self._code is None else self._code)
            if self._cancel is None:
                raise self._told
            self._cancel()
