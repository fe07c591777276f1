"""SQL of heartbeats and of what becomes of leases that get none. Only the database's clock decides what has expired."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import UUID as PgUuid
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam


class BeatRow(NamedTuple):
    """A lease that was renewed, and what its worker is asked to do."""

    attempt_id: UUID
    cancel: bool
    pause: bool
    was_late: bool
    """It had run out; the log of leases says so now."""


# Primary key of leases; no index stands on a changed column, so the update stays on its page (HOT). Leases are locked
# in the order of their ids, and before their old values are read. That a lease had run out is written down here,
# whether or not maintenance has come by since.
_BEAT = text("""
    WITH held AS (
        SELECT l.attempt_id, l.run_id, l.until, l.beat_at, l.suspect_since
          FROM leases l
         WHERE l.attempt_id = ANY(:attempt_ids) AND l.worker_id = :worker_id AND l.boot_id = :boot_id
         ORDER BY l.attempt_id
           FOR NO KEY UPDATE
    ), renewed AS (
        UPDATE leases l
           SET until = now() + :ttl, beat_at = now(), suspect_since = NULL,
               progress = coalesce(beat.progress, l.progress)
          FROM unnest(:attempt_ids, :progress) AS beat (attempt_id, progress)
          JOIN held ON held.attempt_id = beat.attempt_id
         WHERE l.attempt_id = beat.attempt_id
        RETURNING l.attempt_id, l.cancel, l.pause
    ), told AS (
        INSERT INTO lease_events (attempt_id, run_id, kind, at, silent_s)
        SELECT held.attempt_id, held.run_id, said.kind, said.at, extract(epoch FROM said.at - held.beat_at)
          FROM held
         CROSS JOIN LATERAL (
               VALUES ('suspect', held.until, held.suspect_since IS NULL), ('recovered', now(), true)
               ) AS said (kind, at, new)
         WHERE held.until < now() AND said.new
         ORDER BY held.attempt_id, said.at
    )
    SELECT renewed.attempt_id, renewed.cancel, renewed.pause, held.until < now()
      FROM renewed
      JOIN held ON held.attempt_id = renewed.attempt_id
""").bindparams(
    bindparam("attempt_ids", type_=ARRAY(PgUuid(as_uuid=True))),
    bindparam("progress", type_=ARRAY(JSONB(none_as_null=True))),
)


async def beat(
    connection: AsyncConnection,
    *,
    worker_id: UUID,
    boot_id: UUID,
    attempts: Sequence[tuple[UUID, dict[str, Any] | None]],
    ttl: timedelta,
) -> dict[UUID, BeatRow]:
    """Renew the leases that this boot of the worker still holds."""
    rows = await connection.execute(
        _BEAT,
        {
            "worker_id": worker_id,
            "boot_id": boot_id,
            "ttl": ttl,
            "attempt_ids": [attempt_id for attempt_id, _ in attempts],
            "progress": [progress for _, progress in attempts],
        },
    )
    return {row[0]: BeatRow(*row) for row in rows}


# The table is tiny: a scan. A lease that a beat is just renewing is left to the next look.
_SUSPECT = text("""
    WITH late AS (
        SELECT attempt_id FROM leases WHERE until < now() AND suspect_since IS NULL
         ORDER BY attempt_id
           FOR NO KEY UPDATE SKIP LOCKED
    ), marked AS (
        UPDATE leases l SET suspect_since = l.until FROM late WHERE l.attempt_id = late.attempt_id
        RETURNING l.attempt_id, l.run_id, l.until, l.beat_at
    )
    INSERT INTO lease_events (attempt_id, run_id, kind, at, silent_s)
    SELECT attempt_id, run_id, 'suspect', until, extract(epoch FROM until - beat_at) FROM marked ORDER BY attempt_id
    RETURNING attempt_id
""")


async def mark_suspects(connection: AsyncConnection) -> list[UUID]:
    """Note which leases have run out since the last look; their attempts may still come back before the grace ends."""
    return list((await connection.execute(_SUSPECT)).scalars())


async def expired_attempts(connection: AsyncConnection, grace: timedelta) -> list[UUID]:
    """Attempts whose lease ended more than the grace ago (the table is tiny: a scan)."""
    rows = await connection.execute(
        text("SELECT attempt_id FROM leases WHERE until + :grace < now() ORDER BY attempt_id"), {"grace": grace}
    )
    return list(rows.scalars())


async def still_expired(connection: AsyncConnection, attempt_id: UUID, grace: timedelta) -> bool:
    """Lock a lease if it has still not been renewed."""
    row = await connection.execute(
        text("""
            SELECT 1 FROM leases WHERE attempt_id = :attempt_id AND until + :grace < now() FOR UPDATE
        """),
        {"attempt_id": attempt_id, "grace": grace},
    )
    return row.one_or_none() is not None
