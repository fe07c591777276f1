"""How an attempt ends for its worker, other than by completion.

LemError
├── AttemptEnded   the worker reports the outcome and the reason to the server
└── AttemptLost    the lease is gone; nothing more is sent
"""

from __future__ import annotations

from typing import Literal

from lem_domain.errors import LemError
from lem_domain.states import FailureReason


class AttemptEnded(LemError):
    """The attempt is over without a result; `Attempt` reports it to the server.

    `machine_fault` means that any other run would fail on this machine too; the circuit breaker counts these.
    """

    def __init__(
        self,
        outcome: Literal["failed", "interrupted", "cancelled"],
        reason: FailureReason,
        message: str,
        *,
        machine_fault: bool = False,
    ) -> None:
        super().__init__(message)
        self.outcome: Literal["failed", "interrupted", "cancelled"] = outcome
        self.reason = reason
        self.machine_fault = machine_fault


class AttemptLost(LemError):
    """The lease is gone: the worker stops all processes and sends nothing more."""


def run_failure(reason: FailureReason, message: str) -> AttemptEnded:
    """The run failed; another run may succeed on this machine."""
    return AttemptEnded("failed", reason, message)


def machine_failure(reason: FailureReason, message: str) -> AttemptEnded:
    """The run failed because of the machine."""
    return AttemptEnded("failed", reason, message, machine_fault=True)


def cancelled() -> AttemptEnded:
    """The user cancelled the run."""
    return AttemptEnded("cancelled", FailureReason.USER_CANCELLED, "the run was cancelled while it was measured")


def paused() -> AttemptEnded:
    """The user paused the campaign."""
    return AttemptEnded(
        "interrupted", FailureReason.USER_PAUSED, "the campaign was paused; the worker handed the run back"
    )


def handed_back() -> AttemptEnded:
    """The worker shuts down before the run is measured."""
    return AttemptEnded("interrupted", FailureReason.WORKER_SHUTDOWN, "the worker shut down and handed the run back")


def lease_expired() -> AttemptEnded:
    """No heartbeat was answered before the trusted part of the lease ended; the server decides whether it is lost."""
    return AttemptEnded(
        "interrupted",
        FailureReason.WORKER_LOST,
        "the server answered no heartbeat before the lease ran out, so the worker stopped the run",
    )
