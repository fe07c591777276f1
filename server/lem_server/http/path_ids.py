"""Path parameters with public identifiers, parsed to UUIDs."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path

from lem_domain.ids import AttemptId, CampaignId, ExperimentId, IdKind, RunId, WorkerId, parse_id


def _campaign(campaign_id: Annotated[CampaignId, Path(description="The campaign's id.")]) -> UUID:
    return parse_id(IdKind.CAMPAIGN, campaign_id)


def _experiment(experiment_id: Annotated[ExperimentId, Path(description="The experiment's id.")]) -> UUID:
    return parse_id(IdKind.EXPERIMENT, experiment_id)


def _run(run_id: Annotated[RunId, Path(description="The run's id.")]) -> UUID:
    return parse_id(IdKind.RUN, run_id)


def _attempt(attempt_id: Annotated[AttemptId, Path(description="The attempt's id.")]) -> UUID:
    return parse_id(IdKind.ATTEMPT, attempt_id)


def _worker(worker_id: Annotated[WorkerId, Path(description="The worker's id.")]) -> UUID:
    return parse_id(IdKind.WORKER, worker_id)


CampaignPath = Annotated[UUID, Depends(_campaign)]
ExperimentPath = Annotated[UUID, Depends(_experiment)]
RunPath = Annotated[UUID, Depends(_run)]
AttemptPath = Annotated[UUID, Depends(_attempt)]
WorkerPath = Annotated[UUID, Depends(_worker)]
