"""The fence: a worker's write counts only while the lease names its attempt, itself and its boot."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.errors import ProblemCode
from lem_server.http.problems import ProblemError
from lem_server.leases import queries


class Holder(NamedTuple):
    """Who says that it holds an attempt's lease."""

    attempt_id: UUID
    worker_id: UUID
    boot_id: UUID


def lease_lost() -> ProblemError:
    """What a worker is told that writes behind the fence."""
    return ProblemError(
        ProblemCode.LEASE_LOST,
        "this worker does not hold the attempt's lease any more; stop the attempt, nothing of it counts.",
    )


async def require_lease(connection: AsyncConnection, holder: Holder) -> bool:
    """Keep the lease until the transaction ends; says whether the attempt is to be cancelled.

    Raises:
        ProblemError: `lease_lost`.
    """
    cancel = await queries.hold_fence(
        connection, attempt_id=holder.attempt_id, worker_id=holder.worker_id, boot_id=holder.boot_id
    )
    if cancel is None:
        raise lease_lost()
    return cancel
