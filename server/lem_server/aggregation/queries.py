"""SQL of aggregates."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam

from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_server.aggregation.inputs import AggregationParameters


class RunToAggregate(NamedTuple):
    """A run with its current attempt, whose evidence is aggregated."""

    run_id: UUID
    state: str
    reason: str | None
    attempt_id: UUID | None
    config: dict[str, Any]
    config_hash: str
    devices: list[dict[str, Any]] | None
    effective_config: dict[str, Any] | None
    manifest: list[dict[str, Any]] | None


_RUN = """
    SELECT r.id, r.state, r.reason, a.id, e.config, e.config_hash, a.device_details,
           a.effective_config, a.manifest
      FROM runs r
      JOIN experiments e ON e.id = r.experiment_id
      LEFT JOIN attempts a ON a.id = r.current_attempt
     WHERE r.id = :run_id
"""


async def run_row(connection: AsyncConnection, run_id: UUID, *, lock: bool = False) -> RunToAggregate | None:
    """Return a run with its current attempt; None if it does not exist.

    With `lock` the row is locked until the transaction ends, so that no other aggregation and no retry changes the run
    between this check and the insertion. FOR NO KEY UPDATE, because every change of a run takes it.
    """
    statement = _RUN + (" FOR NO KEY UPDATE OF r" if lock else "")
    row = (await connection.execute(text(statement), {"run_id": run_id})).one_or_none()
    return None if row is None else RunToAggregate(*row)


# A repetition changes nothing: one that is the newest by its method already keeps its time.
_INSERT = text("""
    INSERT INTO aggregates AS stored (key, run_id, attempt_id, method, parameters, evidence_sha256, result)
    VALUES (:key, :run_id, :attempt_id, :method, :parameters, :evidence_sha256, CAST(:result AS json))
    ON CONFLICT (attempt_id, key) DO UPDATE SET created_at = excluded.created_at
     WHERE EXISTS (SELECT 1 FROM aggregates AS other
                    WHERE other.attempt_id = stored.attempt_id AND other.method = stored.method
                      AND other.key <> stored.key AND other.created_at >= stored.created_at)
""").bindparams(bindparam("parameters", type_=JSONB))


async def insert_aggregate(connection: AsyncConnection, **columns: object) -> None:
    """Store an aggregate under its key; one that is stored already becomes the newest again."""
    await connection.execute(_INSERT, columns)


async def aggregate_text(connection: AsyncConnection, attempt_id: UUID, key: bytes) -> bytes | None:
    """Return the canonical text of a stored aggregate (the column's type keeps it byte for byte)."""
    found = (
        await connection.execute(
            text("SELECT CAST(result AS text) FROM aggregates WHERE attempt_id = :a AND key = :key"),
            {"a": attempt_id, "key": key},
        )
    ).scalar_one_or_none()
    return None if found is None else found.encode()


# Index ix_aggregates_run_id.
_LATEST = text("""
    SELECT CAST(result AS text) FROM aggregates WHERE run_id = :run_id AND attempt_id = :attempt_id
       AND (CAST(:method AS text) IS NULL OR method = :method)
     ORDER BY method = :default DESC, created_at DESC, key LIMIT 1
""")


async def latest_text(
    connection: AsyncConnection, run_id: UUID, attempt_id: UUID, method: MethodVersion | None
) -> bytes | None:
    """Return the newest aggregate of a run's attempt by a method; without one by `DEFAULT_METHOD`, else by any."""
    where = {"run_id": run_id, "attempt_id": attempt_id, "method": method, "default": DEFAULT_METHOD}
    found = (await connection.execute(_LATEST, where)).scalar_one_or_none()
    return None if found is None else found.encode()


async def latest_parameters(
    connection: AsyncConnection, run_id: UUID, attempt_id: UUID, method: MethodVersion
) -> dict[str, Any] | None:
    """Return the parameters of the newest aggregate of a run's attempt by a method; None without one."""
    statement = text("""
        SELECT parameters FROM aggregates WHERE run_id = :run_id AND attempt_id = :attempt_id AND method = :method
         ORDER BY created_at DESC, key LIMIT 1
    """)
    where = {"run_id": run_id, "attempt_id": attempt_id, "method": method}
    found: dict[str, Any] | None = (await connection.execute(statement, where)).scalar_one_or_none()
    return found


class Pending(NamedTuple):
    """The runs of a campaign that an aggregation includes: those that have no aggregate by a method and can have one.

    With `allow_partial` also those that failed with `invalid_evidence`; with calibrations (`calibration` is their JSON)
    also those whose newest aggregate by the method was computed with others.
    """

    campaign_id: UUID
    method: MethodVersion
    allow_partial: bool
    calibrated: bool
    calibration: str | None

    @classmethod
    def of(cls, campaign_id: UUID, parameters: AggregationParameters, method: MethodVersion) -> Pending:
        """Return the runs that an aggregation by these parameters includes."""
        stored = parameters.stored_calibration
        calibration = None if stored is None else json.dumps(stored)
        return cls(campaign_id, method, parameters.allow_partial, stored is not None, calibration)


class PendingRun(NamedTuple):
    """A run that an aggregation of its campaign includes."""

    run_id: UUID
    display_name: str
    cycle: int
    position: int


_PENDING = """
    r.campaign_id = :campaign_id
    AND (r.state = 'completed'
         OR ((r.state = 'aggregated'
              OR :allow_partial AND r.state = 'failed' AND r.reason = 'invalid_evidence'
                 AND r.current_attempt IS NOT NULL)
             AND (NOT EXISTS (SELECT FROM aggregates a WHERE a.attempt_id = r.current_attempt AND a.method = :method)
                  OR :calibrated AND (SELECT a.parameters -> 'calibration' FROM aggregates a
                                       WHERE a.attempt_id = r.current_attempt AND a.method = :method
                                       ORDER BY a.created_at DESC, a.key LIMIT 1)
                                     IS DISTINCT FROM CAST(:calibration AS jsonb))))
"""
# Index ix_runs_campaign_id_state.
_COUNT_PENDING = text(f"""
    SELECT (SELECT count(*) FROM runs r WHERE {_PENDING}) FROM campaigns WHERE id = :campaign_id
""")  # noqa: S608 - only constants are inserted
# Index uq_runs_campaign_id_position: a page costs no more for the runs before it.
_PENDING_PAGE = text(f"""
    SELECT r.id, e.display_name, r.cycle, r.position
      FROM runs r
      JOIN experiments e ON e.id = r.experiment_id
     WHERE {_PENDING} AND r.position > :after
     ORDER BY r.position
     LIMIT :limit
""")  # noqa: S608


async def count_pending(connection: AsyncConnection, pending: Pending) -> int | None:
    """Return how many runs `pending_runs` lists in all; None if there is no such campaign."""
    count: int | None = (await connection.execute(_COUNT_PENDING, pending._asdict())).scalar_one_or_none()
    return count


async def pending_runs(connection: AsyncConnection, pending: Pending, *, after: int, limit: int) -> list[PendingRun]:
    """List runs by position, from the first above `after`."""
    rows = await connection.execute(_PENDING_PAGE, {**pending._asdict(), "after": after, "limit": limit})
    return [PendingRun(*row) for row in rows]


async def fail_run(connection: AsyncConnection, run_id: UUID, *, reason: str, message: str) -> None:
    """Fail a completed run whose evidence can't be used."""
    await connection.execute(
        text("UPDATE runs SET state = 'failed', reason = :reason, message = :message WHERE id = :run_id"),
        {"run_id": run_id, "reason": reason, "message": message},
    )


async def mark_aggregated(connection: AsyncConnection, run_id: UUID) -> None:
    """Move a run from `completed` to `aggregated`."""
    await connection.execute(text("UPDATE runs SET state = 'aggregated' WHERE id = :run_id"), {"run_id": run_id})
