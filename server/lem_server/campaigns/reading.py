"""Reads campaigns, their experiments, and why a campaign waits."""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.config.provenance import Origin, resolved_values
from lem_domain.ids import IdKind
from lem_domain.states import LIVE_STATES, CampaignState
from lem_domain.wire.base import Page
from lem_domain.wire.campaigns import CampaignView, ExperimentView, ValueView
from lem_server.database.rows import read_one
from lem_server.http.paging import Int4, Listing
from lem_server.http.problems import required
from lem_server.leases.waiting import why_nothing_runs
from lem_server.settings import LeaseTerms

_CAMPAIGNS = Listing("campaigns", CampaignView, id=UUID)
# Index ix_runs_campaign_id_state counts the runs per state, and the same few groups show whether one is open: a
# separate EXISTS is planned as a scan of all runs as soon as open ones are common.
_SELECT = """
    SELECT c.id, c.name, CASE WHEN c.state <> 'cancelled' AND NOT work.open THEN 'completed' ELSE c.state END AS state,
           c.created_at, c.submitted_by, c.spec -> 'execution' AS execution, c.priority, c.labels,
           (SELECT count(*) FROM experiments e WHERE e.campaign_id = c.id) AS experiments, work.runs, c.imported,
           coalesce(c.spec -> 'metadata', '{}') AS metadata, c.placement,
           (SELECT coalesce(json_agg(json_build_object('devices', p.devices, 'kind', p.kind, 'name', p.name,
                                                       'placed_at', p.placed_at, 'ended_at', p.ended_at,
                                                       'ended_by', p.ended_by) ORDER BY p.id), '[]')
              FROM campaign_places p WHERE p.campaign_id = c.id) AS places
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
    CampaignState.ACTIVE: "c.state = 'active' AND work.open",
    CampaignState.COMPLETED: "c.state <> 'cancelled' AND NOT work.open",
    CampaignState.PAUSED: "c.state = 'paused' AND work.open",
    CampaignState.CANCELLED: "c.state = 'cancelled'",
}


async def list_campaigns(
    connection: AsyncConnection,
    *,
    state: CampaignState | None,
    name: str | None,
    labels: dict[str, str],
    cursor: str | None,
    limit: int,
) -> Page[CampaignView]:
    """Return a page of campaigns, the newest first: by the primary key backwards, or by ix_campaigns_name for a name.

    A campaign must have all of the labels. They have no index: campaigns are few, and most requests are for the newest.
    """
    (before,) = _CAMPAIGNS.after(cursor, None)
    conditions = ["(CAST(:before AS uuid) IS NULL OR c.id < :before)"]
    if name is not None:
        conditions.append(_NAMED)
    if state is not None:
        conditions.append(_IN_STATE[state])
    if labels:
        conditions.append(_LABELLED)
    statement = text(f"{_SELECT} WHERE {' AND '.join(conditions)} ORDER BY c.id DESC LIMIT :limit")
    return await _CAMPAIGNS.page(connection, statement, limit, before=before, name=name, labels=json.dumps(labels))


_GET = text(_SELECT + " WHERE c.id = :id")


async def get_campaign(connection: AsyncConnection, campaign_id: UUID) -> CampaignView:
    """Return one campaign as the caller's transaction sees it.

    Raises:
        ProblemError: `not_found`.
    """
    found = await read_one(connection, _GET, CampaignView, id=campaign_id)
    return required(found, IdKind.CAMPAIGN, campaign_id)


async def watch_campaign(connection: AsyncConnection, terms: LeaseTerms, campaign_id: UUID) -> CampaignView:
    """Return one campaign, with the reason if none of its runs is live.

    Raises:
        ProblemError: `not_found`.
    """
    view = await get_campaign(connection, campaign_id)
    if view.state is not CampaignState.ACTIVE or view.runs.in_states(*LIVE_STATES):
        return view
    ttl = timedelta(seconds=terms.ttl_s)
    return view.model_copy(update={"waiting": await why_nothing_runs(connection, campaign_id, ttl=ttl)})


# Index uq_experiments_campaign_id_ordinal.
_EXPERIMENTS = Listing("experiments", ExperimentView, ordinal=Int4)
_LIST_EXPERIMENTS = text("""
    SELECT id, campaign_id, ordinal, display_name, varied, config, config_hash
      FROM experiments
     WHERE campaign_id = :campaign_id AND ordinal > :after
     ORDER BY ordinal
     LIMIT :limit
""")


async def list_experiments(
    connection: AsyncConnection, campaign_id: UUID, *, cursor: str | None, limit: int
) -> Page[ExperimentView]:
    """Return a page of a campaign's experiments in the order of its sweep.

    Raises:
        ProblemError: `not_found`.
    """
    (after,) = _EXPERIMENTS.after(cursor, -1)
    found = await connection.execute(text("SELECT 1 FROM campaigns WHERE id = :id"), {"id": campaign_id})
    required(found.scalar_one_or_none(), IdKind.CAMPAIGN, campaign_id)
    return await _EXPERIMENTS.page(connection, _LIST_EXPERIMENTS, limit, campaign_id=campaign_id, after=after)


_GET_EXPERIMENT = text("""
    SELECT e.id, e.campaign_id, e.display_name, e.varied, e.config, e.config_hash, c.spec -> 'provenance' AS origins
      FROM experiments e JOIN campaigns c ON c.id = e.campaign_id
     WHERE e.id = :id
""")


async def get_experiment(connection: AsyncConnection, experiment_id: UUID) -> ExperimentView:
    """Return one experiment with the source of every value.

    Raises:
        ProblemError: `not_found`.
    """
    row = (await connection.execute(_GET_EXPERIMENT, {"id": experiment_id})).mappings().one_or_none()
    found = required(row, IdKind.EXPERIMENT, experiment_id)
    view = ExperimentView.model_validate(dict(found))
    origins = {path: Origin.model_validate(origin) for path, origin in (found["origins"] or {}).items()}
    values = resolved_values(view.config, varied=view.varied, origins=origins)
    return view.model_copy(update={"provenance": tuple(map(ValueView.of, values))})
