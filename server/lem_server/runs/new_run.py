"""A run as a submission queues it, and the number of workers it may lose."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

LOSSES_PER_RUN = 3
"""Losses after which a run is queued again; one more ends it as failed. A user's retry resets the budget."""


class NewRun(NamedTuple):
    """A run to queue."""

    id: UUID
    experiment_id: UUID
    cycle: int
    position: int
    backend: str
    device_count: int
    device_uuids: tuple[str, ...] = ()
    """The devices that the run requires, in order; empty if any will do."""
    device_like: str | None = None
    """SQL pattern (ILIKE) for the name or kind of each device."""
