"""How an attempt ends for its worker."""

from __future__ import annotations

from typing import Literal

from lem_domain.errors import LemError
from lem_domain.states import FailureReason


class AttemptEnded(LemError):
    """The attempt is over without a result; raised where that is known, told to the server in one place.

    `speaks_of_machine` says that any other run would have ended so on this machine too: the circuit breaker counts it.
    """

    def __init__(
        self,
        outcome: Literal["failed", "interrupted", "cancelled"],
        reason: FailureReason,
        message: str,
        *,
        speaks_of_machine: bool = False,
    ) -> None:
        super().__init__(message)
        self.outcome: Literal["failed", "interrupted", "cancelled"] = outcome
        self.reason = reason
        self.speaks_of_machine = speaks_of_machine


class AttemptLost(LemError):
    """The lease is gone: stop everything, nothing more is sent."""


def failed(reason: FailureReason, message: str) -> AttemptEnded:
    """The run failed; another one may go well on this machine."""
    return AttemptEnded("failed", reason, message)


def broken(reason: FailureReason, message: str) -> AttemptEnded:
    """The run failed because of the machine."""
    return AttemptEnded("failed", reason, message, speaks_of_machine=True)


def cancelled() -> AttemptEnded:
    """The user cancelled the run."""
    return AttemptEnded("cancelled", FailureReason.USER_CANCELLED, "cancelled while it was measured")


def paused() -> AttemptEnded:
    """The user paused the campaign."""
    return AttemptEnded("interrupted", FailureReason.USER_PAUSED, "the campaign was paused and the run handed back")


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
