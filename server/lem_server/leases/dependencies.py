"""Who writes to an attempt: the worker and boot that the request's headers name, under one protocol version."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, WorkerId, parse_id
from lem_domain.wire.base import BOOT_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION, WORKER_HEADER
from lem_server.http.path_ids import AttemptPath
from lem_server.http.problems import ProblemError
from lem_server.leases.fence import Holder


def require_protocol(
    protocol: Annotated[int, Header(alias=PROTOCOL_HEADER, description="The worker's protocol version.")],
) -> None:
    """Refuse a worker that this server does not understand, or that does not understand it."""
    if protocol != PROTOCOL_VERSION:
        raise ProblemError(
            ProblemCode.CLIENT_TOO_OLD,
            f"the server speaks protocol {PROTOCOL_VERSION}, the worker {protocol}; install the same version on both.",
        )


def _holder(
    attempt_id: AttemptPath,
    worker: Annotated[WorkerId, Header(alias=WORKER_HEADER, description="The worker's id.")],
    boot: Annotated[UUID, Header(alias=BOOT_HEADER, description="The worker's boot.")],
) -> Holder:
    return Holder(attempt_id, parse_id(IdKind.WORKER, worker), boot)


HolderOfAttempt = Annotated[Holder, Depends(_holder)]
