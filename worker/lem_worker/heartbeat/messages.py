"""Messages between the daemon and the heartbeat process: JSON lines over its standard input and output."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, TypeAdapter

from lem_domain.wire.runs import Progress
from lem_domain.wire.workers import HeartbeatVerdict
from lem_worker.process.protocol import ControlMessage


class HeartbeatStart(ControlMessage):
    """First line from the daemon."""

    type: Literal["start"] = "start"
    server: str
    token: str
    worker_id: str
    boot_id: UUID
    interval_s: float


class AttemptHeld(ControlMessage):
    """From the daemon: renew the lease of this attempt, or new progress of it."""

    type: Literal["hold"] = "hold"
    attempt_id: str
    progress: Progress | None = None


class AttemptReleased(ControlMessage):
    """From the daemon: the attempt is over; do not renew its lease any more."""

    type: Literal["release"] = "release"
    attempt_id: str


class LeaseVerdict(ControlMessage):
    """To the daemon: the server's order for an attempt."""

    type: Literal["verdict"] = "verdict"
    attempt_id: str
    verdict: HeartbeatVerdict


class LeaseRenewed(ControlMessage):
    """To the daemon: a heartbeat renewed an attempt's lease."""

    type: Literal["renewed"] = "renewed"
    attempt_id: str
    until: float = Field(description="End of the trusted part of the lease, in seconds of CLOCK_MONOTONIC.")


class DrainRequested(ControlMessage):
    """To the daemon: claim no more runs."""

    type: Literal["drain"] = "drain"


class BootSuperseded(ControlMessage):
    """To the daemon: another boot of this worker is registered."""

    type: Literal["superseded"] = "superseded"


ToHeartbeat = Annotated[HeartbeatStart | AttemptHeld | AttemptReleased, Field(discriminator="type")]
FromHeartbeat = Annotated[LeaseVerdict | LeaseRenewed | DrainRequested | BootSuperseded, Field(discriminator="type")]
to_heartbeat: TypeAdapter[ToHeartbeat] = TypeAdapter(ToHeartbeat)
from_heartbeat: TypeAdapter[FromHeartbeat] = TypeAdapter(FromHeartbeat)

TRUST_MARGIN_S = 10.0
"""The daemon needs time to stop a run before the server gives it to another worker."""


def trusted_until(asked_at: float, lease_s: float) -> float:
    """End of the trusted part of a lease, on the clock of `asked_at`.

    The lease began at some time between the request and its answer, so its length counts from the request.
    """
    return asked_at + lease_s - min(TRUST_MARGIN_S, lease_s / 4)
