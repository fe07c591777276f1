"""SQL that inserts and changes campaigns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import TextClause, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam
from sqlalchemy.types import Integer, Text

from lem_domain.config.campaign import CampaignSpec
from lem_domain.config.execution import Placement
from lem_server.database.rows import read_all


class NewExperiment(NamedTuple):
    """An experiment to insert; `varied` and `config` are JSON texts."""

    id: UUID
    ordinal: int
    display_name: str
    varied: str
    config: str
    config_hash: str


class ServedBackend(NamedTuple):
    """Backend, devices and package versions of a registered worker."""

    backend: str
    devices: list[dict[str, str]]
    versions: dict[str, str]


_INSERT = text("""
    INSERT INTO campaigns (id, name, spec, submitted_by, priority, labels, placement, fail_fast)
    VALUES (:id, :name, :spec, :submitted_by, :priority, :labels, :placement, :fail_fast)
""").bindparams(bindparam("spec", type_=JSONB), bindparam("labels", type_=JSONB))


async def insert(connection: AsyncConnection, campaign_id: UUID, spec: CampaignSpec, *, submitted_by: str) -> None:
    """Insert a campaign."""
    await connection.execute(
        _INSERT,
        {
            "id": campaign_id,
            "name": spec.name,
            "spec": spec.model_dump(mode="json"),
            "submitted_by": submitted_by,
            "priority": spec.priority,
            "labels": spec.labels,
            "placement": spec.execution.placement,
            "fail_fast": spec.execution.fail_fast,
        },
    )


_INSERT_EXPERIMENTS = text("""
    INSERT INTO experiments (id, campaign_id, ordinal, display_name, varied, config, config_hash)
    SELECT new.id, :campaign_id, new.ordinal, new.display_name, new.varied::jsonb, new.config::jsonb, new.config_hash
      FROM unnest(:id, :ordinal, :display_name, :varied, :config, :config_hash)
           AS new (id, ordinal, display_name, varied, config, config_hash)
""").bindparams(
    bindparam("id", type_=ARRAY(Uuid)),
    bindparam("ordinal", type_=ARRAY(Integer)),
    *(bindparam(name, type_=ARRAY(Text)) for name in ("display_name", "varied", "config", "config_hash")),
)


async def insert_experiments(
    connection: AsyncConnection, campaign_id: UUID, experiments: Sequence[NewExperiment]
) -> None:
    """Insert experiments with one statement."""
    columns = zip(NewExperiment._fields, map(list, zip(*experiments, strict=True)), strict=True)
    await connection.execute(_INSERT_EXPERIMENTS, {"campaign_id": campaign_id, **dict(columns)})


async def is_imported(connection: AsyncConnection, campaign_id: UUID) -> bool:
    """Return whether the campaign was imported."""
    row = await connection.execute(
        text("SELECT 1 FROM campaigns WHERE id = :id AND imported IS NOT NULL"), {"id": campaign_id}
    )
    return row.one_or_none() is not None


# The first statement of a cancel: it locks the campaign's row before any of its runs, as the lock order requires. A
# campaign without open runs stays completed. Index ix_runs_campaign_id_state.
CANCEL = text("""
    UPDATE campaigns c
       SET state = CASE WHEN EXISTS (SELECT 1 FROM runs r
                                      WHERE r.campaign_id = c.id AND r.state IN ('queued', 'initialised', 'running'))
                        THEN 'cancelled' ELSE c.state END
     WHERE c.id = :id
    RETURNING c.state
""")


# Locks the campaign's row first, as a cancel does. A campaign without open runs stays completed.
PAUSE = text("""
    UPDATE campaigns c
       SET state = CASE WHEN c.state = 'active'
                         AND EXISTS (SELECT 1 FROM runs r
                                      WHERE r.campaign_id = c.id AND r.state IN ('queued', 'initialised', 'running'))
                        THEN 'paused' ELSE c.state END
     WHERE c.id = :id
    RETURNING c.state
""")
RESUME = text("""
    UPDATE campaigns SET state = CASE WHEN state = 'paused' THEN 'active' ELSE state END WHERE id = :id RETURNING state
""")
# Conflicts with the FOR SHARE of claims, so a run of this campaign is claimed either before or after the change.
LOCK = text("SELECT state FROM campaigns WHERE id = :id FOR NO KEY UPDATE")


async def change_state(connection: AsyncConnection, change: TextClause, campaign_id: UUID) -> str | None:
    """Lock a campaign before its runs with one of the statements above; return its stored state, None without one."""
    state: str | None = (await connection.execute(change, {"id": campaign_id})).scalar_one_or_none()
    return state


_SET_PLACEMENT = text("""
    UPDATE campaigns SET placement = coalesce(CAST(:placement AS text), placement)
     WHERE id = :id AND state <> 'cancelled'
""")
# Index ix_campaign_places_campaign_id.
_END_PLACES = text("""
    UPDATE campaign_places SET ended_at = now(), ended_by = :by WHERE campaign_id = :id AND ended_at IS NULL
""")


async def reset_place(connection: AsyncConnection, campaign_id: UUID, *, placement: Placement | None, by: str) -> None:
    """End the current places of a locked campaign, so that its next run chooses devices; optionally change the rule."""
    await connection.execute(_SET_PLACEMENT, {"id": campaign_id, "placement": placement})
    await connection.execute(_END_PLACES, {"id": campaign_id, "by": by})


# Indexes ix_campaigns_fail_fast and ix_runs_campaign_id_state.
_FAILED_FAST = text("""
    SELECT c.id FROM campaigns c
     WHERE c.fail_fast
       AND (SELECT true FROM runs r WHERE r.campaign_id = c.id AND r.state = 'queued' LIMIT 1)
       AND (SELECT true FROM runs r WHERE r.campaign_id = c.id AND r.state = 'failed' LIMIT 1)
     ORDER BY c.id
""")


async def failed_fast(connection: AsyncConnection) -> list[UUID]:
    """Return the campaigns with `fail_fast`, a failed run and queued runs."""
    return list((await connection.execute(_FAILED_FAST)).scalars())


async def notify_followers(connection: AsyncConnection, campaign_id: UUID) -> None:
    """Wake the event streams of the campaign, once this transaction is committed."""
    await connection.execute(text("SELECT pg_notify('lem_campaign', :id)"), {"id": str(campaign_id)})


# A scan: there are few workers.
_SERVED = text("""
    SELECT backend, devices, versions FROM workers WHERE signed_off_at IS NULL ORDER BY id
""")


async def served_backends(connection: AsyncConnection) -> list[ServedBackend]:
    """Return what the registered workers that have not signed off can run."""
    return await read_all(connection, _SERVED, ServedBackend)
