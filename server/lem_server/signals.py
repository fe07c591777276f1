"""SIGTERM and SIGINT while nobody else listens for them."""

from __future__ import annotations

import logging
import signal
from types import FrameType, TracebackType
from typing import Any, Self

logger = logging.getLogger(__name__)

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
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._heed) for number in _HEEDED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
            raise self._told
