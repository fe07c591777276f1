"""SIGTERM and SIGINT before uvicorn handles them, and after it has ended."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """Unwinds the stack, so that the embedded PostgreSQL is stopped; asyncio passes no other exception through."""


class TerminationSignals:
    """Ends the process cleanly before uvicorn handles its signals, and protects the cleanup after uvicorn's end.

    uvicorn raises the signal that ended it once more; by default that would kill the process with PostgreSQL running.
    """

    def __init__(self, code: int | None) -> None:
        """`code` is the exit code; None means 128 plus the signal's number."""
        self._code = code
        self._received: Terminated | None = None
        self._ignored = False
        self._cancel: Callable[[], object] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in _HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, or cancel it when a signal arrives.

        Cancelling is the only reliable way: an exception that a handler raises is lost where Python can't propagate
        it, for example during garbage collection, and the coroutine would wait for ever.

        Raises:
            Terminated: a signal arrived.
        """

        async def cancellable() -> T:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None  # noqa: S101 - `asyncio.run` creates one
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            try:
                self.check()
                return await work
            finally:
                self._cancel = None

        try:
            result = asyncio.run(cancellable())
        except asyncio.CancelledError:
            self.check()
            raise
        finally:
            work.close()  # avoids "was never awaited" where a signal arrived before the first step
        self.check()
        return result

    def ignore(self) -> None:
        """Ignore signals from now on: what runs ends by itself, or uvicorn ends it."""
        self._ignored = True

    def check(self) -> None:
        """Raise for a signal whose exception Python could not propagate when it arrived."""
        if self._received is not None:
            raise self._received

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._received is None and not self._ignored:
            logger.info("%s: ending", signal.Signals(number).name)
            self._received = Terminated(128 + number if self._code is None else self._code)
            if self._cancel is None:
                raise self._received
            self._cancel()
