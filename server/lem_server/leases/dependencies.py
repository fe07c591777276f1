"""FastAPI dependencies of the worker protocol: its version, and the worker and boot that the headers name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Header

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, WorkerId, parse_id
from lem_domain.wire.access import Scope
from lem_domain.wire.base import BOOT_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION, WORKER_HEADER
from lem_server.access.guard import declares
from lem_server.http.path_ids import AttemptPath
from lem_server.http.problems import ProblemError
from lem_server.leases.fence import FencedAttempt


def require_protocol(
    protocol: Annotated[int, Header(alias=PROTOCOL_HEADER, description="The worker's protocol version.")],
) -> None:
    """Refuse a worker of another protocol version.

    Raises:
        ProblemError: `client_too_old`.
    """
    if protocol != PROTOCOL_VERSION:
        raise ProblemError(
            ProblemCode.CLIENT_TOO_OLD,
            f"the server uses protocol {PROTOCOL_VERSION} and the worker protocol {protocol}; install the same version "
            "of LEM on both.",
        )


def declares_work(
    *problems: ProblemCode, answers: Mapping[int | str, Any] | None = None, **openapi: Any
) -> dict[str, Any]:
    """Return what a route of the worker protocol declares."""
    declared = declares(Scope.WORK, *problems, ProblemCode.CLIENT_TOO_OLD, answers=answers, **openapi)
    return {**declared, "dependencies": [Depends(require_protocol)]}


def _attempt_of_worker(
    attempt_id: AttemptPath,
    worker: Annotated[WorkerId, Header(alias=WORKER_HEADER, description="The worker's id.")],
    boot: Annotated[UUID, Header(alias=BOOT_HEADER, description="The worker's boot.")],
) -> FencedAttempt:
    return FencedAttempt(attempt_id, parse_id(IdKind.WORKER, worker), boot)


AttemptOfWorker = Annotated[FencedAttempt, Depends(_attempt_of_worker)]
