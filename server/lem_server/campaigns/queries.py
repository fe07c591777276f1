"""SQL of campaigns and their experiments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam
from sqlalchemy.types import Integer, Text

from lem_domain.config.execution import ExecutionConfig, Placement


class CampaignRow(NamedTuple):
    """A campaign with the number of its runs in each state."""

    id: UUID
    name: str
    state: str
    created_at: datetime
    submitted_by: str
    execution: dict[str, Any]
    priority: int
    labels: dict[str, str]
    experiments: int
    runs: dict[str, int]
    imported: dict[str, Any] | None
    metadata: dict[str, Any] | None
    placement: Placement
    places: list[dict[str, Any]]


class NewExperiment(NamedTuple):
    """An experiment to insert; `varied` and `config` are JSON texts."""

    id: UUID
    ordinal: int
    display_name: str
    varied: str
    config: str
    config_hash: str


class ExperimentRow(NamedTuple):
    """An experiment of a campaign."""

    id: UUID
    ordinal: int
    display_name: str
    varied: dict[str, Any]
    config: dict[str, Any]
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


async def insert(
    connection: AsyncConnection,
    *,
    campaign_id: UUID,
    name: str,
    spec: dict[str, Any],
    submitted_by: str,
    priority: int,
    labels: dict[str, str],
    execution: ExecutionConfig,
) -> None:
    """Insert a campaign."""
    await connection.execute(
        _INSERT,
        {
            "id": campaign_id,
            "name": name,
            "spec": spec,
            "submitted_by": submitted_by,
            "priority": priority,
            "labels": labels,
            "placement": execution.placement,
            "fail_fast": execution.fail_fast,
        },
    )


_INSERT_EXPERIMENTS = text("""
    INSERT INTO experiments (id, campaign_id, ordinal, display_name, varied, config, config_hash)
    SELECT new.id, :campaign_id, new.ordinal, new.display_name, new.varied::jsonb, new.config::jsonb, new.config_hash
      FROM unnest(:ids, :ordinals, :display_names, :varied, :configs, :config_hashes)
           AS new (id, ordinal, display_name, varied, config, config_hash)
""").bindparams(
    bindparam("ids", type_=ARRAY(Uuid)),
    bindparam("ordinals", type_=ARRAY(Integer)),
    *(bindparam(name, type_=ARRAY(Text)) for name in ("display_names", "varied", "configs", "config_hashes")),
)


async def insert_experiments(
    connection: AsyncConnection, campaign_id: UUID, experiments: Sequence[NewExperiment]
) -> None:
    """Insert experiments with one statement."""
    await connection.execute(
        _INSERT_EXPERIMENTS,
        {
            "campaign_id": campaign_id,
            "ids": [one.id for one in experiments],
            "ordinals": [one.ordinal for one in experiments],
            "display_names": [one.display_name for one in experiments],
            "varied": [one.varied for one in experiments],
            "configs": [one.config for one in experiments],
            "config_hashes": [one.config_hash for one in experiments],
        },
    )


# Index ix_runs_campaign_id_state counts the runs per state, and the same few groups show whether one is open: a
# separate EXISTS is planned as a scan of all runs as soon as open ones are common.
_SELECT = """
    SELECT c.id, c.name, CASE WHEN c.state <> 'cancelled' AND NOT work.open THEN 'completed' ELSE c.state END,
           c.created_at, c.submitted_by, c.spec -> 'execution', c.priority, c.labels,
           (SELECT count(*) FROM experiments e WHERE e.campaign_id = c.id), work.runs, c.imported,
           c.spec -> 'metadata', c.placement,
           (SELECT coalesce(json_agg(json_build_object('devices', p.devices, 'kind', p.kind, 'name', p.name,
                                                       'placed_at', p.placed_at, 'ended_at', p.ended_at,
                                                       'ended_by', p.ended_by) ORDER BY p.id), '[]')
              FROM campaign_places p WHERE p.campaign_id = c.id)
      FROM campaigns c
     CROSS JOIN LATERAL (
           SELECT coalesce(jsonb_object_agg(counted.state, counted.runs), '{}') AS runs,
                  coalesce(bool_or(counted.state IN ('queued', 'initialised', 'running')), false) AS open
             FROM (SELECT r.state, count(*) AS runs FROM runs r WHERE r.campaign_id = c.id GROUP BY r.state) counted
           ) work
"""
_NAMED = "c.name = :name"
_LABELLED = "c.labels @> CAST(:labels AS jsonb)"
_IN_STATE = {
    "active": "c.state = 'active' AND work.open",
    "completed": "c.state <> 'cancelled' AND NOT work.open",
    "paused": "c.state = 'paused' AND work.open",
    "cancelled": "c.state = 'cancelled'",
}


async def list_campaigns(
    connection: AsyncConnection,
    *,
    state: str | None,
    name: str | None,
    labels: dict[str, str],
    before: UUID | None,
    limit: int,
) -> list[CampaignRow]:
    """Return campaigns, the newest first: by the primary key backwards, or by ix_campaigns_name for a name.

    Labels have no index: campaigns are few, and most requests are for the newest.
    """
    conditions = ["(CAST(:before AS uuid) IS NULL OR c.id < :before)"]
    parameters: dict[str, object] = {"before": before, "limit": limit}
    if name is not None:
        conditions.append(_NAMED)
        parameters["name"] = name
    if state is not None:
        conditions.append(_IN_STATE[state])
    if labels:
        conditions.append(_LABELLED)
        parameters["labels"] = json.dumps(labels)
    rows = await connection.execute(
        text(f"{_SELECT} WHERE {' AND '.join(conditions)} ORDER BY c.id DESC LIMIT :limit"), parameters
    )
    return [CampaignRow(*row) for row in rows]


_GET = text(_SELECT + " WHERE c.id = :id")


async def get_campaign(connection: AsyncConnection, campaign_id: UUID) -> CampaignRow | None:
    """Return one campaign."""
    row = (await connection.execute(_GET, {"id": campaign_id})).one_or_none()
    return None if row is None else CampaignRow(*row)


async def is_imported(connection: AsyncConnection, campaign_id: UUID) -> bool:
    """Return whether the campaign was imported."""
    row = await connection.execute(
        text("SELECT 1 FROM campaigns WHERE id = :id AND imported IS NOT NULL"), {"id": campaign_id}
    )
    return row.one_or_none() is not None


async def exists(connection: AsyncConnection, campaign_id: UUID) -> bool:
    """Return whether the campaign exists."""
    row = await connection.execute(text("SELECT 1 FROM campaigns WHERE id = :id"), {"id": campaign_id})
    return row.one_or_none() is not None


# The first statement of a cancel: it locks the campaign's row before any of its runs, as the lock order requires. A
# campaign without open runs stays completed. Index ix_runs_campaign_id_state.
_CANCEL = text("""
    UPDATE campaigns c
       SET state = CASE WHEN EXISTS (SELECT 1 FROM runs r
                                      WHERE r.campaign_id = c.id AND r.state IN ('queued', 'initialised', 'running'))
                        THEN 'cancelled' ELSE c.state END
     WHERE c.id = :id
    RETURNING c.id
""")


async def cancel(connection: AsyncConnection, campaign_id: UUID) -> bool:
    """Mark a campaign cancelled; return False if it does not exist."""
    return (await connection.execute(_CANCEL, {"id": campaign_id})).one_or_none() is not None


# Locks the campaign's row first, as a cancel does. A campaign without open runs stays completed.
_SET_PAUSED = text("""
    UPDATE campaigns c
       SET state = CASE WHEN c.state = 'active'
                         AND EXISTS (SELECT 1 FROM runs r
                                      WHERE r.campaign_id = c.id AND r.state IN ('queued', 'initialised', 'running'))
                        THEN 'paused' ELSE c.state END
     WHERE c.id = :id
    RETURNING c.state
""")
_SET_ACTIVE = text("""
    UPDATE campaigns SET state = CASE WHEN state = 'paused' THEN 'active' ELSE state END WHERE id = :id RETURNING state
""")
# Conflicts with the FOR SHARE of claims, so a run of this campaign is claimed either before or after the change.
_LOCK = text("SELECT state FROM campaigns WHERE id = :id FOR NO KEY UPDATE")


async def pause(connection: AsyncConnection, campaign_id: UUID) -> str | None:
    """Pause an active campaign with open runs; return its stored state, or None if it does not exist."""
    state: str | None = (await connection.execute(_SET_PAUSED, {"id": campaign_id})).scalar_one_or_none()
    return state


async def resume(connection: AsyncConnection, campaign_id: UUID) -> str | None:
    """Make a paused campaign active; return its stored state, or None if it does not exist."""
    state: str | None = (await connection.execute(_SET_ACTIVE, {"id": campaign_id})).scalar_one_or_none()
    return state


async def lock(connection: AsyncConnection, campaign_id: UUID) -> str | None:
    """Lock a campaign before its runs; return its stored state, or None if it does not exist."""
    state: str | None = (await connection.execute(_LOCK, {"id": campaign_id})).scalar_one_or_none()
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


# Index uq_experiments_campaign_id_ordinal.
_LIST_EXPERIMENTS = text("""
    SELECT id, ordinal, display_name, varied, config, config_hash
      FROM experiments
     WHERE campaign_id = :campaign_id AND ordinal > :after
     ORDER BY ordinal
     LIMIT :limit
""")


async def list_experiments(
    connection: AsyncConnection, campaign_id: UUID, *, after: int, limit: int
) -> list[ExperimentRow]:
    """Return a campaign's experiments in the order of its sweep."""
    rows = await connection.execute(_LIST_EXPERIMENTS, {"campaign_id": campaign_id, "after": after, "limit": limit})
    return [ExperimentRow(*row) for row in rows]


_GET_EXPERIMENT = text("""
    SELECT e.campaign_id, c.spec -> 'provenance', e.id, e.ordinal, e.display_name, e.varied, e.config, e.config_hash
      FROM experiments e JOIN campaigns c ON c.id = e.campaign_id
     WHERE e.id = :id
""")


class OwnedExperiment(NamedTuple):
    """An experiment, its campaign, and the provenance of the campaign's values."""

    campaign_id: UUID
    provenance: dict[str, Any]
    experiment: ExperimentRow


async def get_experiment(connection: AsyncConnection, experiment_id: UUID) -> OwnedExperiment | None:
    """Return one experiment with its campaign."""
    row = (await connection.execute(_GET_EXPERIMENT, {"id": experiment_id})).one_or_none()
    return None if row is None else OwnedExperiment(row[0], row[1] or {}, ExperimentRow(*row[2:]))


# A scan: there are few workers.
_SERVED = text("""
    SELECT backend, devices, versions FROM workers WHERE signed_off_at IS NULL ORDER BY id
""")


async def served_backends(connection: AsyncConnection) -> list[ServedBackend]:
    """Return what the registered workers that have not signed off can run."""
    return [ServedBackend(*row) for row in await connection.execute(_SERVED)]
