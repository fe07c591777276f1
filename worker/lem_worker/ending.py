"""How an attempt ends for its worker."""

from __future__ import annotations

from typing import Literal

from lem_domain.errors import LemError
from lem_domain.states import FailureReason

INFRASTRUCTURE = frozenset({FailureReason.BACKEND_UNAVAILABLE, FailureReason.BACKEND_INITIALISATION})
"""Failures that speak of the machine rather than of the run."""


class AttemptEnded(LemError):
    """The attempt is over without a result; raised where that is known, told to the server in one place."""

    def __init__(
        self, outcome: Literal["failed", "interrupted", "cancelled"], reason: FailureReason, message: str
    ) -> None:
        super().__init__(message)
        self.outcome: Literal["failed", "interrupted", "cancelled"] = outcome
        self.reason = reason


class AttemptLost(LemError):
    """The lease is gone: stop everything, nothing more is sent."""


def failed(reason: FailureReason, message: str) -> AttemptEnded:
    """The attempt failed."""
    return AttemptEnded("failed", reason, message)


def cancelled() -> AttemptEnded:
    """The user cancelled the run."""
    return AttemptEnded("cancelled", FailureReason.USER_CANCELLED, "cancelled while it was measured")


def handed_back() -> AttemptEnded:
    """The worker ends before the run."""
    return AttemptEnded(
        "interrupted", FailureReason.WORKER_SHUTDOWN, "the worker was told to end and handed the run back"
    )


def out_of_touch() -> AttemptEnded:
    """The lease can't be trusted any more; whether it is lost the server says when it answers again."""
    return AttemptEnded(
        "interrupted",
        FailureReason.WORKER_LOST,
        "the server answered no beat for as long as the lease could be trusted, so the worker stopped the run",
    )
