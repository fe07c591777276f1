"""SQL of attempts: reading them, locking one together with its run, its start and its end.

Lock order in every transaction: worker, campaign, run, attempt, lease. A claim locks its run before the campaign, but
with SKIP LOCKED (see `leases.claim_queries`).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam

from lem_domain.ids import IdKind
from lem_domain.states import FailureReason
from lem_domain.wire.runs import AttemptView
from lem_server.database.rows import read_one
from lem_server.http.paging import Int4, Listing
from lem_server.http.problems import required
from lem_server.runs.reading import RunListing

Outcome = Literal["completed", "failed", "interrupted", "cancelled"]

_SELECT = """
    SELECT a.id, a.run_id, a.number, a.worker_id, w.name AS worker_name, a.devices, a.claimed_at, a.started_at,
           a.ended_at, a.outcome, a.reason, a.message, a.environment, a.effective_config, a.manifest
      FROM attempts a
      JOIN workers w ON w.id = a.worker_id
"""
_GET = text(_SELECT + " WHERE a.id = :id")
# Index uq_attempts_run_id_number.
ATTEMPTS = RunListing(
    Listing("attempts", AttemptView, number=Int4),
    text(_SELECT + " WHERE a.run_id = :run_id AND a.number > :after ORDER BY a.number LIMIT :limit"),
)


async def get_attempt(connection: AsyncConnection, attempt_id: UUID) -> AttemptView:
    """Return one attempt.

    Raises:
        ProblemError: `not_found`.
    """
    return required(await read_one(connection, _GET, AttemptView, id=attempt_id), IdKind.ATTEMPT, attempt_id)


class LockedAttempt(NamedTuple):
    """A locked attempt with the state and the budgets of its run."""

    attempt_id: UUID
    run_id: UUID
    worker_id: UUID
    boot_id: UUID
    run_state: str
    outcome: str | None
    started: bool
    manifest: Any
    cancel_requested: bool
    retries_left: int
    losses_left: int
    campaign_state: str


# A transaction that waited for the run's row sees new values only in rows that it locks (READ COMMITTED), so the
# attempt is locked too. FOR NO KEY UPDATE excludes every other change of the run. On the attempt it must not be the
# stronger mode: a writer of evidence holds the lease already and takes KEY SHARE on the attempt through its foreign
# key, so FOR UPDATE would invert the lock order and deadlock.
_LOCK = text("""
    SELECT a.id AS attempt_id, a.run_id, a.worker_id, a.boot_id, r.state AS run_state, a.outcome,
           a.started_at IS NOT NULL AS started, a.manifest, r.cancel_requested_at IS NOT NULL AS cancel_requested,
           r.retries_left, r.losses_left, c.state AS campaign_state
      FROM attempts a
      JOIN runs r ON r.id = a.run_id
      JOIN campaigns c ON c.id = r.campaign_id
     WHERE a.id = :attempt_id
       FOR NO KEY UPDATE OF r, a
""")


async def lock_attempt(connection: AsyncConnection, attempt_id: UUID) -> LockedAttempt | None:
    """Lock an attempt and its run's row."""
    return await read_one(connection, _LOCK, LockedAttempt, attempt_id=attempt_id)


_STORE_START = text("""
    UPDATE attempts
       SET started_at = coalesce(started_at, clock_timestamp()), environment = :environment,
           effective_config = :effective_config
     WHERE id = :attempt_id
""").bindparams(bindparam("environment", type_=JSONB), bindparam("effective_config", type_=JSONB))


async def store_start(
    connection: AsyncConnection, attempt_id: UUID, environment: dict[str, Any], effective_config: dict[str, Any]
) -> None:
    """Store the start of the window with the worker's environment and the configuration in force."""
    values = {"attempt_id": attempt_id, "environment": environment, "effective_config": effective_config}
    await connection.execute(_STORE_START, values)


_CLOSE = text("""
    UPDATE attempts
       SET ended_at = clock_timestamp(), outcome = :outcome, reason = :reason, message = :message,
           manifest = coalesce(:manifest, manifest), environment = coalesce(environment, :environment),
           effective_config = coalesce(effective_config, :effective_config)
     WHERE id = :attempt_id
""").bindparams(
    bindparam("manifest", type_=JSONB(none_as_null=True)),
    bindparam("environment", type_=JSONB(none_as_null=True)),
    bindparam("effective_config", type_=JSONB(none_as_null=True)),
)


class Ending(NamedTuple):
    """The end of an attempt; an environment and a configuration that its start stored are kept."""

    outcome: Outcome
    reason: FailureReason | None = None
    message: str | None = None
    manifest: list[dict[str, Any]] | None = None
    environment: dict[str, Any] | None = None
    effective_config: dict[str, Any] | None = None


async def close_attempt(connection: AsyncConnection, attempt_id: UUID, ending: Ending) -> None:
    """Store the end of an attempt."""
    await connection.execute(_CLOSE, {"attempt_id": attempt_id, **ending._asdict()})


async def move_run(
    connection: AsyncConnection, run_id: UUID, state: str, *, reason: str | None = None, message: str | None = None
) -> None:
    """Change the state of a locked run; a trigger of the database refuses an illegal transition."""
    await connection.execute(
        text("UPDATE runs SET state = :state, reason = :reason, message = :message WHERE id = :run_id"),
        {"run_id": run_id, "state": state, "reason": reason, "message": message},
    )


async def requeue(connection: AsyncConnection, run_id: UUID, *, retries: int, losses: int, message: str) -> None:
    """Queue a locked run again and charge its budgets."""
    await connection.execute(
        text("""
            UPDATE runs
               SET state = 'queued', reason = NULL, message = :message,
                   retries_left = retries_left - :retries, losses_left = losses_left - :losses
             WHERE id = :run_id
        """),
        {"run_id": run_id, "retries": retries, "losses": losses, "message": message},
    )
