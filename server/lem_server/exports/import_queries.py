"""SQL that stores the rows of a bundle in the columns that they name.

PostgreSQL itself reads the values from the JSON text, so that no number or time is converted twice.
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Uuid, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam

from lem_server.exports.bundle_rows import CheckedRows


async def bundle_of(connection: AsyncConnection, campaign_id: UUID) -> str | None:
    """Return the digest of a campaign's bundle: empty if it was submitted here, None if there is no such campaign."""
    row = (
        await connection.execute(
            text("SELECT coalesce(imported ->> 'bundle_sha256', '') FROM campaigns WHERE id = :id"),
            {"id": campaign_id},
        )
    ).one_or_none()
    return None if row is None else str(row[0])


_INSERT_CAMPAIGN = """
    INSERT INTO campaigns ({names}, imported)
    SELECT {names}, CAST(:imported AS jsonb) FROM jsonb_populate_recordset(NULL::campaigns, CAST(:rows AS jsonb))
    ON CONFLICT (id) DO NOTHING
"""


async def insert_campaign(connection: AsyncConnection, row: CheckedRows, *, imported: str) -> bool:
    """Store the campaign with its origin; return False when its id exists."""
    statement = text(_INSERT_CAMPAIGN.format(names=_names(row)))
    return (await connection.execute(statement, {"rows": row.array, "imported": imported})).rowcount == 1


# A worker that registered on this server keeps its own row. Others are signed off, so that claims never wait for them.
_INSERT_WORKERS = """
    INSERT INTO workers ({names}, boot_id, host, signed_off_at)
    SELECT {names}, gen_random_uuid(), 'imported', now()
      FROM jsonb_populate_recordset(NULL::workers, CAST(:rows AS jsonb))
    ON CONFLICT (id) DO NOTHING
"""


async def insert_workers(connection: AsyncConnection, rows: CheckedRows) -> None:
    """Store the workers that this server does not know."""
    await connection.execute(text(_INSERT_WORKERS.format(names=_names(rows))), {"rows": rows.array})


async def insert_runs(connection: AsyncConnection, campaign_id: UUID, runs: CheckedRows, log: CheckedRows) -> None:
    """Store runs with their histories, which the database checks."""
    await connection.execute(
        text("SELECT lem_import_runs(:id, CAST(:runs AS jsonb), CAST(:log AS jsonb))").bindparams(
            bindparam("id", type_=Uuid)
        ),
        {"id": campaign_id, "runs": runs.array, "log": log.array},
    )


# The join on the runs' primary key refuses a row that belongs to a run of another campaign.
_INSERT_OF_RUN = """
    INSERT INTO {table} ({names})
    SELECT {values} FROM jsonb_populate_recordset(CAST(NULL AS {table}), CAST(:rows AS jsonb)) new
      JOIN runs r ON r.id = new.run_id AND r.campaign_id = :id
"""
_INSERT_ROWS = """
    INSERT INTO {table} ({names})
    SELECT {names} FROM jsonb_populate_recordset(CAST(NULL AS {table}), CAST(:rows AS jsonb))
"""


async def insert_of_run(
    connection: AsyncConnection, campaign_id: UUID, row: CheckedRows, *, result: str | None = None
) -> bool:
    """Store an attempt, or an aggregate with its result; return False when its run belongs to another campaign."""
    names, values = _names(row), _names(row, of="new")
    if result is not None:  # byte for byte, which a value inside the rows would not be
        names, values = f"{names}, result", f"{values}, CAST(:result AS json)"
    statement = text(_INSERT_OF_RUN.format(table=row.table, names=names, values=values))
    bound = {"rows": row.array, "id": campaign_id} | ({} if result is None else {"result": result})
    return (await connection.execute(statement, bound)).rowcount == 1


async def insert_rows(connection: AsyncConnection, rows: CheckedRows) -> None:
    """Store rows; the caller has checked that they belong to the campaign."""
    statement = _INSERT_ROWS.format(table=rows.table, names=_names(rows))
    await connection.execute(text(statement), {"rows": rows.array})


class Counts(NamedTuple):
    """The size of an imported campaign."""

    experiments: int
    runs: int
    attempts: int
    dangling: int
    """Runs that refer to an experiment or attempt that is missing."""


_COUNTS = text("""
    SELECT (SELECT count(*) FROM experiments e WHERE e.campaign_id = :id),
           (SELECT count(*) FROM runs r WHERE r.campaign_id = :id),
           (SELECT count(*) FROM attempts a JOIN runs r ON r.id = a.run_id WHERE r.campaign_id = :id),
           (SELECT count(*) FROM runs r
              LEFT JOIN experiments e ON e.id = r.experiment_id AND e.campaign_id = r.campaign_id
              LEFT JOIN attempts a ON a.id = r.current_attempt AND a.run_id = r.id
             WHERE r.campaign_id = :id
               AND (e.id IS NULL OR (a.id IS NULL AND r.current_attempt IS NOT NULL)
                    OR (a.id IS NULL AND r.state IN ('completed', 'aggregated'))))
""")


async def counts(connection: AsyncConnection, campaign_id: UUID) -> Counts:
    """Count the experiments, runs and attempts that are stored."""
    return Counts(*(await connection.execute(_COUNTS, {"id": campaign_id})).one())


def _names(rows: CheckedRows, *, of: str | None = None) -> str:
    # Checked against the columns of the table, so quoting is enough.
    return ", ".join(f'"{name}"' if of is None else f'{of}."{name}"' for name in rows.columns)
