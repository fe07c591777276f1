"""The asynchronous Python client: the twin of `lem_client.client`, method by method."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar
from uuid import uuid4

import httpx
from pydantic import BaseModel

from lem_client import credentials, operations
from lem_client.bundles import bundle_being_written, bundle_to_be_sent, verified
from lem_client.errors import AnswerError
from lem_client.events import Event, Following
from lem_client.operations import Operation, ServerVersion
from lem_client.transport import AsyncSender
from lem_domain.bundle import Progress, Verified
from lem_domain.config.campaign import CampaignSpec
from lem_domain.config.execution import Placement
from lem_domain.results.run import RunResult
from lem_domain.retries import CLIENT_RETRIES, RetryPolicy
from lem_domain.states import CampaignState, RunState
from lem_domain.wire.base import Page
from lem_domain.wire.campaigns import (
    CampaignPlan,
    CampaignResults,
    CampaignView,
    ExperimentView,
    ImportedBundle,
    PauseCampaign,
    PlaceCampaign,
)
from lem_domain.wire.datasets import DatasetContent, DatasetView
from lem_domain.wire.runs import AttemptView, LeaseEventView, LogChunk, RunView, StreamView, TransitionView
from lem_domain.wire.workers import WorkerView

M = TypeVar("M", bound=BaseModel)


class AsyncClient:
    """Talks to a LEM server. Without arguments: LEM_SERVER or this machine, with the token that is found there.

    Lists are iterators that fetch page after page. Every failure is a `lem_domain.errors.LemError` whose text is one
    sentence that tells what to change.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        token: str | None = None,
        token_file: Path | None = None,
        retries: RetryPolicy = CLIENT_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        found = token if token is not None else credentials.find_token(token_file)
        self._sender = AsyncSender(credentials.server_url(server), found, retries=retries, transport=transport)

    @property
    def server(self) -> str:
        """The server's address."""
        return self._sender.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._sender.close()

    # --- the server ---------------------------------------------------------------------------------------------------

    async def is_ready(self) -> bool:
        """Whether the server can serve.

        Raises:
            ServerUnreachable: nobody answers at all.
        """
        try:
            return (await self._sender.send(operations.readiness())).status == "ok"
        except AnswerError:
            return False

    async def version(self) -> ServerVersion:
        """Which version the server is."""
        return await self._sender.send(operations.version())

    # --- campaigns ----------------------------------------------------------------------------------------------------

    async def plan(self, spec: CampaignSpec, *, listed: int | None = None) -> CampaignPlan:
        """What submitting would queue, with at most `listed` experiments and runs; nothing is stored."""
        return await self._sender.send(operations.plan_campaign(spec, listed))

    async def submit(self, spec: CampaignSpec, *, idempotency_key: str | None = None) -> CampaignView:
        """Queue a campaign: all of it or, with any problem, nothing. With the same key it is queued only once."""
        return await self._sender.send(operations.submit_campaign(spec, idempotency_key or uuid4().hex))

    def campaigns(
        self, *, state: CampaignState | None = None, name: str | None = None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[CampaignView]:
        """Campaigns, the newest first; with labels, those that have all of them."""
        return self._pages(operations.list_campaigns(state=state, name=name, labels=labels))

    async def campaign(self, campaign_id: str) -> CampaignView:
        """One campaign, with how many of its runs are in which state."""
        return await self._sender.send(operations.get_campaign(campaign_id))

    def experiments(self, campaign_id: str) -> AsyncIterator[ExperimentView]:
        """The campaign's experiments in the order of its sweep."""
        return self._pages(operations.list_experiments(campaign_id))

    async def experiment(self, experiment_id: str) -> ExperimentView:
        """One experiment with its whole configuration."""
        return await self._sender.send(operations.get_experiment(experiment_id))

    async def cancel_campaign(self, campaign_id: str) -> CampaignView:
        """Cancel what is queued and stop what is live; done again it changes nothing."""
        return await self._sender.send(operations.cancel_campaign(campaign_id))

    async def pause_campaign(
        self, campaign_id: str, *, live_runs: Literal["finish", "stop"] = "finish"
    ) -> CampaignView:
        """Claim nothing more of it; what is live finishes, or is stopped and waits with the others."""
        return await self._sender.send(operations.pause_campaign(campaign_id, PauseCampaign(live_runs=live_runs)))

    async def place_campaign(self, campaign_id: str, *, placement: Placement | None = None) -> CampaignView:
        """Let what a campaign has left run elsewhere; its next run chooses its devices anew, by this rule if given."""
        return await self._sender.send(operations.place_campaign(campaign_id, PlaceCampaign(placement=placement)))

    async def resume_campaign(self, campaign_id: str) -> CampaignView:
        """Go on with a paused campaign."""
        return await self._sender.send(operations.resume_campaign(campaign_id))

    async def retry_failed(self, campaign_id: str) -> tuple[str, ...]:
        """Queue every failed or interrupted run of it again; their ids."""
        retried = await self._sender.send(operations.retry_failed(campaign_id, uuid4().hex))
        return retried.run_ids

    async def results(self, campaign_id: str) -> CampaignResults:
        """Every experiment over its cycles, from the runs aggregated so far."""
        return await self._sender.send(operations.campaign_results(campaign_id))

    def follow_campaign(self, campaign_id: str, *, last_event_id: str | None = None) -> AsyncIterator[Event]:
        """Everything that happened and happens to the campaign's runs, until none is queued or live."""
        path = operations.campaign_events_path(campaign_id)
        return self._follow(Following(path, last_event_id=last_event_id))

    async def export_bundle(self, campaign_id: str, path: Path, *, progress: Progress | None = None) -> Verified:
        """Write everything that there is of a campaign at rest into a new file; what the bundle says of itself.

        `progress` is told of bytes as they come. A file that could not be written whole is not left behind.
        """
        with bundle_being_written(path) as file:
            async for piece in self._sender.receive(operations.bundle_path(campaign_id)):
                file.write(piece)
                if progress is not None:
                    progress(len(piece))
            return verified(file)

    async def import_bundle(self, path: Path, *, progress: Progress | None = None) -> ImportedBundle:
        """Load the campaign of a bundle, checked here before it is sent. The same bundle again changes nothing."""
        with bundle_to_be_sent(path) as (file, size):
            return await self._sender.transmit(operations.import_bundle(), file, size, progress)

    # --- runs ---------------------------------------------------------------------------------------------------------

    def runs(self, *, campaign_id: str | None = None, state: RunState | None = None) -> AsyncIterator[RunView]:
        """Runs in the order they were queued in."""
        return self._pages(operations.list_runs(campaign_id=campaign_id, state=state))

    async def run(self, run_id: str) -> RunView:
        """One run, with what it is doing while a worker is busy with it."""
        return await self._sender.send(operations.get_run(run_id))

    async def cancel_run(self, run_id: str) -> RunView:
        """Cancel one run."""
        return await self._sender.send(operations.cancel_run(run_id))

    async def retry_run(self, run_id: str) -> RunView:
        """Queue a failed or interrupted run again; one that is queued or live stays as it is."""
        return await self._sender.send(operations.retry_run(run_id, uuid4().hex))

    def lease_events(self, run_id: str) -> AsyncIterator[LeaseEventView]:
        """When leases of the run's attempts became suspect and recovered."""
        return self._pages(operations.list_lease_events(run_id))

    def transitions(self, run_id: str) -> AsyncIterator[TransitionView]:
        """Every change of the run's state, the oldest first."""
        return self._pages(operations.list_transitions(run_id))

    def attempts(self, run_id: str) -> AsyncIterator[AttemptView]:
        """Every try at the run, the first one first."""
        return self._pages(operations.list_attempts(run_id))

    async def attempt(self, attempt_id: str) -> AttemptView:
        """One try at a run, with its environment and the configuration that was in force."""
        return await self._sender.send(operations.get_attempt(attempt_id))

    def streams(self, attempt_id: str) -> AsyncIterator[StreamView]:
        """What is stored of an attempt's raw evidence: every chunk with its digest."""
        return self._pages(operations.list_streams(attempt_id))

    def logs(self, run_id: str, *, process: str | None = None) -> AsyncIterator[LogChunk]:
        """What the run's processes wrote."""
        return self._pages(operations.list_logs(run_id, process=process))

    def follow_run(self, run_id: str) -> AsyncIterator[Event]:
        """Everything that happened and happens to the run, until it is neither queued nor live."""
        return self._follow(Following(operations.run_events_path(run_id), one_run=True))

    async def aggregate(self, run_id: str, *, allow_partial: bool = False) -> RunResult:
        """Compute the run's result from its raw evidence, checking every digest; asked again it is the same."""
        return await self._sender.send(operations.aggregate_run(run_id, allow_partial=allow_partial))

    async def result(self, run_id: str) -> RunResult:
        """The run's newest stored result."""
        return await self._sender.send(operations.get_aggregate(run_id))

    # --- workers and sets of prompts ----------------------------------------------------------------------------------

    def workers(self) -> AsyncIterator[WorkerView]:
        """Workers that ever registered, with what they are busy with."""
        return self._pages(operations.list_workers())

    async def worker(self, worker_id: str) -> WorkerView:
        """One worker."""
        return await self._sender.send(operations.get_worker(worker_id))

    async def drain_worker(self, worker_id: str) -> WorkerView:
        """Let a worker finish what it holds and claim nothing more."""
        return await self._sender.send(operations.drain_worker(worker_id))

    def datasets(self) -> AsyncIterator[DatasetView]:
        """Sets of prompts: the built-in ones, then those that were uploaded."""
        return self._pages(operations.list_datasets())

    async def dataset(self, sha256: str) -> DatasetContent:
        """A set of prompts with its texts."""
        return await self._sender.send(operations.get_dataset(sha256))

    async def upload_dataset(self, name: str, prompts: Sequence[str]) -> DatasetView:
        """Upload prompts; their digest names them, so the same ones are stored once."""
        return await self._sender.send(operations.put_dataset(name, prompts))

    # --- how ----------------------------------------------------------------------------------------------------------

    async def _pages(self, operation: Operation[Page[M]]) -> AsyncIterator[M]:
        while True:
            page = await self._sender.send(operation)
            for item in page.items:
                yield item
            if page.next is None:
                return
            operation = operations.following_page(operation, page.next)

    async def _follow(self, following: Following) -> AsyncIterator[Event]:
        while not following.over:
            problem: Exception | None = None
            try:
                async with self._sender.stream(following.path, following.headers()) as response:
                    async for piece in response.aiter_bytes():
                        for event in following.feed(piece):
                            yield event
                following.ended()
            except httpx.TransportError as error:
                problem = error
            except AnswerError as error:
                if not following.may_pass(error):
                    raise
                problem = error
            if not following.over:
                await self._sender.wait(following.pause_s(self.server, problem))
