"""The fence: a worker's write counts only while the lease names its attempt, its id and its boot."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.errors import ProblemCode
from lem_server.http.problems import ProblemError
from lem_server.leases import queries


class FencedAttempt(NamedTuple):
    """An attempt, and the worker and boot that claim to hold its lease."""

    attempt_id: UUID
    worker_id: UUID
    boot_id: UUID


def lease_lost() -> ProblemError:
    """Build the answer to a worker that writes without the lease."""
    return ProblemError(
        ProblemCode.LEASE_LOST,
        "this worker no longer holds the attempt's lease; stop the attempt, its result is not accepted.",
    )


async def require_lease(connection: AsyncConnection, attempt: FencedAttempt) -> bool:
    """Keep the lease until the transaction ends; return whether the attempt is to be cancelled.

    Raises:
        ProblemError: `lease_lost`.
    """
    cancel = await queries.hold_fence(connection, **attempt._asdict())
    if cancel is None:
        raise lease_lost()
    return cancel


async def lock_lease(connection: AsyncConnection, attempt: FencedAttempt) -> bool:
    """Lock the lease in order to end it; return False if it is not held. The run's row must be locked already."""
    return await queries.lock_lease(connection, **attempt._asdict())


async def end_lease(connection: AsyncConnection, attempt_id: UUID) -> None:
    """End a locked lease and free its devices."""
    await queries.delete_lease(connection, attempt_id)
