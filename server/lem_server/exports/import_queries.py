"""SQL that stores the rows of a bundle, as they are, in the columns that they name.

The names of columns come from the tables' definitions; a row's values are read by PostgreSQL from its text, so that no
number or time passes through another form.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Table, Uuid, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam

from lem_server.exports.rows import Given


async def bundle_of(connection: AsyncConnection, campaign_id: UUID) -> str | None:
    """Digest of the bundle that a campaign came from: empty where it was submitted here, None where there is none."""
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


async def insert_campaign(connection: AsyncConnection, row: Given, *, imported: str) -> bool:
    """Store the campaign with where it came from; False when one of its id is there."""
    statement = text(_INSERT_CAMPAIGN.format(names=_names(row)))
    return (await connection.execute(statement, {"rows": row.array, "imported": imported})).rowcount == 1


# One that registered here too keeps what it said of itself; any other has left, so that nobody counts on it.
_INSERT_WORKERS = """
    INSERT INTO workers ({names}, boot_id, host, signed_off_at)
    SELECT {names}, gen_random_uuid(), 'imported', now()
      FROM jsonb_populate_recordset(NULL::workers, CAST(:rows AS jsonb))
    ON CONFLICT (id) DO NOTHING
"""


async def insert_workers(connection: AsyncConnection, rows: Given) -> None:
    """Store workers that are not known here."""
    await connection.execute(text(_INSERT_WORKERS.format(names=_names(rows))), {"rows": rows.array})


async def insert_runs(connection: AsyncConnection, campaign_id: UUID, runs: Given, log: Given) -> None:
    """Store runs with their whole histories, which the database checks."""
    await connection.execute(
        text("SELECT lem_import_runs(:id, CAST(:runs AS jsonb), CAST(:log AS jsonb))").bindparams(
            bindparam("id", type_=Uuid)
        ),
        {"id": campaign_id, "runs": runs.array, "log": log.array},
    )


# The runs' primary key: a row can't hang on a run of another campaign.
_INSERT_ATTEMPT = """
    INSERT INTO attempts ({names})
    SELECT {new_names}
      FROM jsonb_populate_recordset(NULL::attempts, CAST(:rows AS jsonb)) new
      JOIN runs r ON r.id = new.run_id AND r.campaign_id = :id
"""
_INSERT_AGGREGATE = """
    INSERT INTO aggregates ({names}, result)
    SELECT {new_names}, CAST(:result AS json)
      FROM jsonb_populate_recordset(NULL::aggregates, CAST(:rows AS jsonb)) new
      JOIN runs r ON r.id = new.run_id AND r.campaign_id = :id
"""
_INSERT_ROWS = """
    INSERT INTO {table} ({names})
    SELECT {names} FROM jsonb_populate_recordset(CAST(NULL AS {table}), CAST(:rows AS jsonb))
"""


async def insert_attempt(connection: AsyncConnection, campaign_id: UUID, row: Given) -> bool:
    """Store an attempt; False when its run is not of this campaign."""
    statement = _INSERT_ATTEMPT.format(names=_names(row), new_names=_names(row, of="new"))
    return (await connection.execute(text(statement), {"rows": row.array, "id": campaign_id})).rowcount == 1


async def insert_aggregate(connection: AsyncConnection, campaign_id: UUID, row: Given, *, result: str) -> bool:
    """Store an aggregate with its result byte for byte; False when its run is not of this campaign."""
    statement = text(_INSERT_AGGREGATE.format(names=_names(row), new_names=_names(row, of="new")))
    done = await connection.execute(statement, {"rows": row.array, "result": result, "id": campaign_id})
    return done.rowcount == 1


async def insert_rows(connection: AsyncConnection, table: Table, rows: Given) -> None:
    """Store rows whose belonging is checked by the caller."""
    statement = _INSERT_ROWS.format(table=table.name, names=_names(rows))
    await connection.execute(text(statement), {"rows": rows.array})


_STORED = text("""
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


async def stored(connection: AsyncConnection, campaign_id: UUID) -> tuple[int, int, int, int]:
    """How many experiments, runs and attempts there are, and how many runs hang on something that is not there."""
    row = (await connection.execute(_STORED, {"id": campaign_id})).one()
    return row[0], row[1], row[2], row[3]


def _names(rows: Given, *, of: str | None = None) -> str:
    return ", ".join(f'"{name}"' if of is None else f'{of}."{name}"' for name in rows.columns)
