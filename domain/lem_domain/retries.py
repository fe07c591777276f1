"""Retry policy of the client and the worker: which failed requests are sent again, and after which delay.

Pure decisions; `lem_client.transport`, `lem_client.events` and `lem_worker.server_api` apply them. A request is sent
again after a connection error or an answer that reports a transient state. If the server may have executed it already,
it is sent again only where a second execution has no further effect.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

IDEMPOTENT_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})
"""RFC 9110 §9.2.2. A POST is repeatable with an `Idempotency-Key`, or where the API documents it as idempotent."""

TRANSIENT_STATUSES: Final = frozenset({408, 429, 502, 503, 504})

_LARGEST_EXPONENT: Final = 30
"""A worker retries for days, and 2.0 ** 1024 overflows."""


@dataclass(frozen=True)
class RetryPolicy:
    """Number of attempts and the delays between them: exponential, with full jitter."""

    attempts: int | None
    """How often a request is sent at most; None: without limit."""
    first_delay_s: float
    longest_delay_s: float
    longest_asked_s: float
    """Upper limit for `Retry-After`."""
    every_server_error: bool = False
    """Whether each status from 500 is transient."""
    uniform: Callable[[float, float], float] = random.uniform

    def is_transient(self, status: int) -> bool:
        """Whether the same request may get another answer later."""
        return status in TRANSIENT_STATUSES or (self.every_server_error and status >= 500)

    def delay_s(self, attempt: int, retry_after: str | None = None) -> float:
        """Seconds between the given attempt (from 1) and the next.

        `retry_after` is the header's value; a date in it is ignored.
        """
        asked_s = min(float(retry_after), self.longest_asked_s) if retry_after and retry_after.isdecimal() else 0.0
        if asked_s:
            # Jitter on top: clients that were rejected together must not return together.
            return asked_s + self.uniform(0.0, self.first_delay_s)
        backoff_s = self.first_delay_s * 2.0 ** min(attempt - 1, _LARGEST_EXPONENT)
        return self.uniform(0.0, min(backoff_s, self.longest_delay_s))


CLIENT_RETRIES: Final = RetryPolicy(attempts=4, first_delay_s=0.4, longest_delay_s=10.0, longest_asked_s=10.0)
"""A person waits for the answer: about 30 s at most."""

STREAM_RETRIES: Final = RetryPolicy(attempts=10, first_delay_s=0.5, longest_delay_s=10.0, longest_asked_s=10.0)
"""A stream is followed for hours: it has to outlast a restart of the server. Counts failures without an event."""

WORKER_RETRIES: Final = RetryPolicy(
    attempts=None, first_delay_s=0.5, longest_delay_s=30.0, longest_asked_s=300.0, every_server_error=True
)
"""Evidence is in the spool, so a worker retries until it succeeds. A longer `Retry-After` is a proxy's mistake and must
not delay a measurement by a day."""
