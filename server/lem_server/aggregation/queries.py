"""SQL of aggregates."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam


class RunRow(NamedTuple):
    """A run with the attempt that its results come from."""

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


async def run_row(connection: AsyncConnection, run_id: UUID, *, lock: bool = False) -> RunRow | None:
    """A run with its current attempt; locked against other aggregations and state changes when asked."""
    statement = _RUN + (" FOR UPDATE OF r" if lock else "")
    row = (await connection.execute(text(statement), {"run_id": run_id})).one_or_none()
    return None if row is None else RunRow(*row)


_INSERT = text("""
    INSERT INTO aggregates (key, run_id, attempt_id, method, parameters, evidence_sha256, result)
    VALUES (:key, :run_id, :attempt_id, :method, :parameters, :evidence_sha256, CAST(:result AS json))
    ON CONFLICT (attempt_id, key) DO NOTHING
""").bindparams(bindparam("parameters", type_=JSONB))


async def insert_aggregate(
    connection: AsyncConnection,
    *,
    key: bytes,
    run_id: UUID,
    attempt_id: UUID,
    method: str,
    parameters: dict[str, Any],
    evidence_sha256: bytes,
    result: bytes,
) -> None:
    """Store an aggregate under its content's key, unless it is there."""
    await connection.execute(
        _INSERT,
        {
            "key": key,
            "run_id": run_id,
            "attempt_id": attempt_id,
            "method": method,
            "parameters": parameters,
            "evidence_sha256": evidence_sha256,
            "result": result.decode(),
        },
    )


async def aggregate_text(connection: AsyncConnection, attempt_id: UUID, key: bytes) -> bytes | None:
    """The canonical text of a stored aggregate (the column's type keeps it byte for byte)."""
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
     ORDER BY created_at DESC, key LIMIT 1
""")


async def latest_text(connection: AsyncConnection, run_id: UUID, attempt_id: UUID) -> bytes | None:
    """The newest aggregate of a run's attempt."""
    found = (await connection.execute(_LATEST, {"run_id": run_id, "attempt_id": attempt_id})).scalar_one_or_none()
    return None if found is None else found.encode()


async def fail_run(connection: AsyncConnection, run_id: UUID, *, reason: str, message: str) -> None:
    """The evidence of a completed run can't be used."""
    await connection.execute(
        text("UPDATE runs SET state = 'failed', reason = :reason, message = :message WHERE id = :run_id"),
        {"run_id": run_id, "reason": reason, "message": message},
    )


async def mark_aggregated(connection: AsyncConnection, run_id: UUID) -> None:
    """`completed` to `aggregated`."""
    await connection.execute(text("UPDATE runs SET state = 'aggregated' WHERE id = :run_id"), {"run_id": run_id})


async def own_backend(connection: AsyncConnection) -> int:
    """The number, where the database runs, of its process that answers this connection."""
    pid: int = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    return pid
