"""SQL that reads a campaign page by page, each page in a separate transaction.

PostgreSQL writes each row as JSON text, so that a column which is added later is exported without a change here. The
columns that a bundle omits are those of `bundle_rows`.
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from lem_server.database.rows import read_one
from lem_server.exports.bundle_rows import (
    BundledAggregate,
    BundledCampaign,
    BundledRow,
    BundledTransition,
)


class CampaignSize(NamedTuple):
    """The size of a campaign, and how many of its runs are queued or live. Every change of the campaign changes it."""

    name: str
    state: str
    transitions: int
    """Every change of a run's state adds an entry to the log."""
    aggregates: int
    open_runs: int
    experiments: int
    runs: int
    attempts: int
    chunks: int
    evidence_bytes: int


class ExportedRow(NamedTuple):
    """A row as JSON, and the cursor of the rows after it."""

    cursor: tuple[int | str, ...]
    json: str


class ExportedAttempt(NamedTuple):
    """An attempt as JSON and its ids; its run's position and its number are the cursor of the attempts after it."""

    position: int
    number: int
    id: UUID
    run_id: UUID
    json: str


class ExportedAggregate(NamedTuple):
    """An aggregate as JSON without its result, and the result byte for byte; its key is the cursor."""

    key: str
    json: str
    result: str


def _json(alias: str, model: type[BundledRow]) -> str:
    """SQL of a row as JSON text, without the columns that a bundle omits."""
    return f"CAST(to_jsonb({alias}) {''.join(f'- {name!r} ' for name in sorted(model.omitted))}AS text)"


# Indexes ix_runs_campaign_id_state, ix_run_transitions_campaign_id, uq_attempts_run_id_number; chunks by primary key.
# Their bodies are stored out of line, so that summing up their sizes does not read them.
_SIZE = text("""
    SELECT c.name, c.state, (SELECT count(*) FROM run_transitions t WHERE t.campaign_id = c.id) AS transitions,
           (SELECT count(*) FROM aggregates g JOIN runs r ON r.id = g.run_id WHERE r.campaign_id = c.id) AS aggregates,
           work.open_runs, (SELECT count(*) FROM experiments e WHERE e.campaign_id = c.id) AS experiments, work.runs,
           tries.attempts, evidence.chunks, coalesce(evidence.bytes, 0)::bigint AS evidence_bytes
      FROM campaigns c
     CROSS JOIN LATERAL (
           SELECT count(*) AS runs, count(*) FILTER (WHERE r.state IN ('queued', 'initialised', 'running')) AS open_runs
             FROM runs r WHERE r.campaign_id = c.id) work
     CROSS JOIN LATERAL (
           SELECT count(*) AS attempts FROM attempts a JOIN runs r ON r.id = a.run_id WHERE r.campaign_id = c.id) tries
     CROSS JOIN LATERAL (
           SELECT count(*) AS chunks, sum(k.bytes) AS bytes
             FROM chunks k JOIN attempts a ON a.id = k.attempt_id JOIN runs r ON r.id = a.run_id
            WHERE r.campaign_id = c.id) evidence
     WHERE c.id = :id
""")


async def campaign_size(connection: AsyncConnection, campaign_id: UUID) -> CampaignSize | None:
    """Count what belongs to the campaign; None when there is no such campaign."""
    return await read_one(connection, _SIZE, CampaignSize, id=campaign_id)


CAMPAIGN = text(f"SELECT {_json('c', BundledCampaign)} FROM campaigns c WHERE id = :id")  # noqa: S608 - constants


class NamedInputs(NamedTuple):
    """The inputs that an experiment names: an uploaded or built-in set of prompts, and a trace of arrivals."""

    dataset: str | None
    builtin: str | None
    trace: str | None


_INPUTS = text("""
    SELECT DISTINCT config -> 'prompts' ->> 'dataset', config -> 'prompts' ->> 'builtin',
           config -> 'traffic' ->> 'trace'
      FROM experiments WHERE campaign_id = :id ORDER BY 1, 2, 3
""")


async def named_inputs(connection: AsyncConnection, campaign_id: UUID) -> list[NamedInputs]:
    """Return the distinct inputs of the campaign's experiments."""
    return [NamedInputs(*row) for row in await connection.execute(_INPUTS, {"id": campaign_id})]


# The workers of the campaign's attempts. Host and boot of a worker are private to its server.
WORKERS = text("""
    SELECT CAST(jsonb_build_object('id', w.id, 'name', w.name, 'backend', w.backend, 'devices', w.devices,
                                   'versions', w.versions, 'labels', w.labels) AS text)
      FROM workers w
     WHERE w.id IN (SELECT a.worker_id FROM attempts a JOIN runs r ON r.id = a.run_id WHERE r.campaign_id = :id)
     ORDER BY w.id
""")
_PAGE = """
    SELECT {order}, {json} FROM {table} t
     WHERE {owner} = :owner AND ({order}) > ({cursor}) ORDER BY {order} LIMIT :limit
"""


async def page(
    connection: AsyncConnection, model: type[BundledRow], owner: UUID, after: tuple[int | str, ...]
) -> list[ExportedRow]:
    """Return one page of the rows of a campaign or attempt.

    Each table has an index on its owner and order: uq_experiments_campaign_id_ordinal, uq_runs_campaign_id_position,
    pk_process_results, pk_logs. That of lease_events begins with the run, which a subquery adds.
    """
    columns = model.table.columns.keys()
    statement = _PAGE.format(
        table=model.table.name,
        json=_json("t", model),
        order=", ".join(model.order),
        cursor=", ".join(f":c{number}" for number in range(len(after))),
        owner="campaign_id"
        if "campaign_id" in columns
        else "run_id = (SELECT a.run_id FROM attempts a WHERE a.id = :owner) AND attempt_id"
        if "run_id" in columns
        else "attempt_id",
    )
    cursor = {f"c{number}": value for number, value in enumerate(after)}
    rows = await connection.execute(text(statement), {"owner": owner, "limit": model.page_size, **cursor})
    return [ExportedRow(tuple(row[:-1]), row[-1]) for row in rows]


# The whole log of the runs between two positions, run by run. Indexes uq_runs_campaign_id_position and
# ix_run_transitions_run_id.
TRANSITIONS = text(f"""
    SELECT {_json("t", BundledTransition)} FROM run_transitions t JOIN runs r ON r.id = t.run_id
     WHERE r.campaign_id = :id AND r.position BETWEEN :first AND :last ORDER BY t.run_id, t.id
""")  # noqa: S608 - constants


async def json_rows(connection: AsyncConnection, statement: TextClause, **parameters: object) -> list[str]:
    """Return the rows of `CAMPAIGN`, `WORKERS` or `TRANSITIONS` as JSON."""
    return list((await connection.execute(statement, parameters)).scalars())


# Indexes uq_runs_campaign_id_position and uq_attempts_run_id_number. One at a time: an environment may be a megabyte.
_ATTEMPT = text("""
    SELECT r.position, a.number, a.id, a.run_id, CAST(to_jsonb(a) AS text)
      FROM runs r JOIN attempts a ON a.run_id = r.id
     WHERE r.campaign_id = :id AND r.position >= :position AND (r.position, a.number) > (:position, :number)
     ORDER BY r.position, a.number LIMIT 1
""")


async def next_attempt(
    connection: AsyncConnection, campaign_id: UUID, *, position: int, number: int
) -> ExportedAttempt | None:
    """Return the attempt after another one, ordered by position of the run and number; None at the end."""
    cursor = {"id": campaign_id, "position": position, "number": number}
    row = (await connection.execute(_ATTEMPT, cursor)).one_or_none()
    return None if row is None else ExportedAttempt(*row)


_AGGREGATE = text(f"""
    SELECT encode(key, 'hex'), {_json("g", BundledAggregate)}, CAST(result AS text)
      FROM aggregates g WHERE attempt_id = :id AND key > :after ORDER BY key LIMIT 1
""")  # noqa: S608 - constants


async def next_aggregate(connection: AsyncConnection, attempt_id: UUID, *, after: bytes) -> ExportedAggregate | None:
    """Return the attempt's aggregate with the next key; None at the end."""
    row = (await connection.execute(_AGGREGATE, {"id": attempt_id, "after": after})).one_or_none()
    return None if row is None else ExportedAggregate(*row)
