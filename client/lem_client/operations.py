"""Every operation of the REST API as a value: method, path, parameters, body and the answer's model.

Both clients send these, so no endpoint is described twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from lem_domain.config.campaign import CampaignSpec
from lem_domain.prompt_sets import prompts_digest
from lem_domain.results.run import RunResult
from lem_domain.states import CampaignState, RunState
from lem_domain.wire.base import AnswerModel, Page
from lem_domain.wire.campaigns import (
    CampaignPlan,
    CampaignResults,
    CampaignView,
    ExperimentView,
    ImportedBundle,
    PauseCampaign,
    PlaceCampaign,
    RetriedRuns,
)
from lem_domain.wire.datasets import DatasetContent, DatasetUpload, DatasetView
from lem_domain.wire.runs import AttemptView, LeaseEventView, LogChunk, RunView, StreamView, TransitionView
from lem_domain.wire.workers import WorkerView

M = TypeVar("M", bound=BaseModel)

API = "/api/v1"
PAGE_SIZE = 500


class Health(AnswerModel):
    """The server lives, or can serve."""

    status: str


class ServerVersion(AnswerModel):
    """What the server is."""

    version: str
    protocol: int
    method: str


@dataclass(frozen=True)
class Operation(Generic[M]):
    """One request and what it is answered with."""

    method: str
    path: str
    answer: type[M]
    parameters: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    body: BaseModel | None = None
    idempotency_key: str | None = None
    changes_once: bool = False
    """A POST that, done again, changes nothing more."""

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does the same as sending it once."""
        return self.method in ("GET", "PUT", "DELETE") or self.idempotency_key is not None or self.changes_once


def following_page(operation: Operation[Page[Any]], cursor: str) -> Operation[Page[Any]]:
    """The same list, one page on."""
    return replace(operation, parameters={**operation.parameters, "cursor": cursor})


def readiness() -> Operation[Health]:
    """Whether the server can serve."""
    return Operation("GET", "/readyz", Health)


def version() -> Operation[ServerVersion]:
    """Which version the server is."""
    return Operation("GET", "/version", ServerVersion)


def plan_campaign(spec: CampaignSpec, listed: int | None = None) -> Operation[CampaignPlan]:
    """What submitting would queue."""
    parameters = {} if listed is None else {"listed": str(listed)}
    return Operation("POST", f"{API}/campaigns:plan", CampaignPlan, parameters, body=spec, changes_once=True)


def submit_campaign(spec: CampaignSpec, idempotency_key: str) -> Operation[CampaignView]:
    """Queue a campaign; sent again with the same key it is queued once."""
    return Operation("POST", f"{API}/campaigns", CampaignView, body=spec, idempotency_key=idempotency_key)


def list_campaigns(
    *, state: CampaignState | None = None, name: str | None = None, labels: Mapping[str, str] | None = None
) -> Operation[Page[CampaignView]]:
    """Campaigns, the newest first."""
    labelled = {"label": tuple(f"{key}={value}" for key, value in labels.items())} if labels else {}
    filters = {**_filters(state=state, name=name), **labelled}
    return Operation("GET", f"{API}/campaigns", Page[CampaignView], filters)


def get_campaign(campaign_id: str) -> Operation[CampaignView]:
    """One campaign."""
    return Operation("GET", _place("campaigns", campaign_id), CampaignView)


def list_experiments(campaign_id: str) -> Operation[Page[ExperimentView]]:
    """The campaign's experiments in the order of its sweep."""
    return Operation("GET", _place("campaigns", campaign_id, "experiments"), Page[ExperimentView], _filters())


def get_experiment(experiment_id: str) -> Operation[ExperimentView]:
    """One experiment."""
    return Operation("GET", _place("experiments", experiment_id), ExperimentView)


def campaign_results(campaign_id: str) -> Operation[CampaignResults]:
    """Every experiment over its cycles."""
    return Operation("GET", _place("campaigns", campaign_id, "results"), CampaignResults)


def cancel_campaign(campaign_id: str) -> Operation[CampaignView]:
    """Cancel what is queued and stop what is live."""
    return Operation("POST", f"{_place('campaigns', campaign_id)}:cancel", CampaignView, changes_once=True)


def pause_campaign(campaign_id: str, how: PauseCampaign) -> Operation[CampaignView]:
    """Claim nothing more of it."""
    return Operation("POST", f"{_place('campaigns', campaign_id)}:pause", CampaignView, body=how, changes_once=True)


def place_campaign(campaign_id: str, where: PlaceCampaign) -> Operation[CampaignView]:
    """Let what a campaign has left run elsewhere."""
    return Operation("POST", f"{_place('campaigns', campaign_id)}:place", CampaignView, body=where, changes_once=True)


def resume_campaign(campaign_id: str) -> Operation[CampaignView]:
    """Go on with it."""
    return Operation("POST", f"{_place('campaigns', campaign_id)}:resume", CampaignView, changes_once=True)


def retry_failed(campaign_id: str, idempotency_key: str) -> Operation[RetriedRuns]:
    """Queue its failed runs again; sent again with the same key they are queued once."""
    path = f"{_place('campaigns', campaign_id)}:retry_failed"
    return Operation("POST", path, RetriedRuns, idempotency_key=idempotency_key)


def bundle_path(campaign_id: str) -> str:
    """Where a campaign's bundle comes from."""
    return _place("campaigns", campaign_id, "bundle")


def import_bundle() -> Operation[ImportedBundle]:
    """Take in a bundle, which is sent beside this; the same one again changes nothing."""
    return Operation("POST", f"{API}/campaigns:import", ImportedBundle, changes_once=True)


def list_runs(*, campaign_id: str | None = None, state: RunState | None = None) -> Operation[Page[RunView]]:
    """Runs in the order they were queued in."""
    return Operation("GET", f"{API}/runs", Page[RunView], _filters(campaign_id=campaign_id, state=state))


def get_run(run_id: str) -> Operation[RunView]:
    """One run."""
    return Operation("GET", _place("runs", run_id), RunView)


def cancel_run(run_id: str) -> Operation[RunView]:
    """Cancel one run."""
    return Operation("POST", f"{_place('runs', run_id)}:cancel", RunView, changes_once=True)


def retry_run(run_id: str, idempotency_key: str) -> Operation[RunView]:
    """Queue a failed run again; sent again with the same key it is queued once."""
    return Operation("POST", f"{_place('runs', run_id)}:retry", RunView, idempotency_key=idempotency_key)


def list_lease_events(run_id: str) -> Operation[Page[LeaseEventView]]:
    """When leases of the run's attempts became suspect and recovered."""
    return Operation("GET", _place("runs", run_id, "lease_events"), Page[LeaseEventView], _filters())


def list_transitions(run_id: str) -> Operation[Page[TransitionView]]:
    """Every change of the run's state."""
    return Operation("GET", _place("runs", run_id, "transitions"), Page[TransitionView], _filters())


def list_attempts(run_id: str) -> Operation[Page[AttemptView]]:
    """Every try at the run."""
    return Operation("GET", _place("runs", run_id, "attempts"), Page[AttemptView], _filters())


def list_logs(run_id: str, *, process: str | None = None) -> Operation[Page[LogChunk]]:
    """What the run's processes wrote."""
    return Operation("GET", _place("runs", run_id, "logs"), Page[LogChunk], _filters(process=process))


def aggregate_run(run_id: str, *, allow_partial: bool = False) -> Operation[RunResult]:
    """Compute the run's result from its raw evidence."""
    parameters = {"allow_partial": "true"} if allow_partial else {}
    path = f"{_place('runs', run_id)}:aggregate"
    return Operation("POST", path, RunResult, parameters, changes_once=True)


def get_aggregate(run_id: str) -> Operation[RunResult]:
    """The run's newest stored result."""
    return Operation("GET", _place("runs", run_id, "aggregate"), RunResult)


def get_attempt(attempt_id: str) -> Operation[AttemptView]:
    """One try at a run."""
    return Operation("GET", _place("attempts", attempt_id), AttemptView)


def list_streams(attempt_id: str) -> Operation[Page[StreamView]]:
    """What is stored of an attempt's raw evidence."""
    return Operation("GET", _place("attempts", attempt_id, "streams"), Page[StreamView])


def list_workers() -> Operation[Page[WorkerView]]:
    """Workers that ever registered."""
    return Operation("GET", f"{API}/workers", Page[WorkerView], _filters())


def get_worker(worker_id: str) -> Operation[WorkerView]:
    """One worker."""
    return Operation("GET", _place("workers", worker_id), WorkerView)


def drain_worker(worker_id: str) -> Operation[WorkerView]:
    """Let a worker claim nothing more."""
    return Operation("POST", f"{_place('workers', worker_id)}:drain", WorkerView, changes_once=True)


def list_datasets() -> Operation[Page[DatasetView]]:
    """Sets of prompts."""
    return Operation("GET", f"{API}/datasets", Page[DatasetView], _filters())


def get_dataset(sha256: str) -> Operation[DatasetContent]:
    """A set of prompts with its texts."""
    return Operation("GET", _place("datasets", sha256), DatasetContent)


def put_dataset(name: str, prompts: Sequence[str]) -> Operation[DatasetView]:
    """Upload prompts under their own digest."""
    upload = DatasetUpload(name=name, prompts=tuple(prompts))
    return Operation("PUT", _place("datasets", prompts_digest(prompts)), DatasetView, body=upload)


def campaign_events_path(campaign_id: str) -> str:
    """Where a campaign's events come from."""
    return _place("campaigns", campaign_id, "events")


def run_events_path(run_id: str) -> str:
    """Where a run's events come from."""
    return _place("runs", run_id, "events")


def _place(*parts: str) -> str:
    return "/".join((API, *(quote(part, safe="") for part in parts)))


def _filters(**given: str | None) -> dict[str, str]:
    chosen = {name: str(value) for name, value in given.items() if value is not None}
    return {"limit": str(PAGE_SIZE), **chosen}
