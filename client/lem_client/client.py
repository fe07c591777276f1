"""The synchronous client: one method per operation of the REST API. Source of `async_client.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from uuid import uuid4

import httpx
from pydantic import BaseModel

from lem_client import credentials
from lem_client.bundles import check_bundle, open_bundle, write_whole
from lem_client.errors import AnswerError
from lem_client.events import Event, EventFollower
from lem_client.operations import PAGE_SIZE, Operation, Readiness, ServerVersion, api_path
from lem_client.sender import Sender
from lem_domain.bundle import OnBytes, Verified
from lem_domain.config.campaign import CampaignSpec
from lem_domain.config.execution import Placement
from lem_domain.prompt_sets import prompts_digest
from lem_domain.results.method import MethodVersion
from lem_domain.results.requests import RequestTable
from lem_domain.results.run import RunResult
from lem_domain.results.window_study import DEFAULT_LENGTHS_S, DEFAULT_TARGET, WindowStudy
from lem_domain.retries import CLIENT_RETRIES, RetryPolicy
from lem_domain.states import CampaignState, RunState
from lem_domain.tables import TableFormat, TableName
from lem_domain.wire.base import Page
from lem_domain.wire.calibration import METER_LOG_MEDIA_TYPE, CalibrationFit, MeterLogOptions
from lem_domain.wire.campaigns import (
    AggregatedCampaign,
    AggregationRequest,
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
from lem_domain.wire.decisions import (
    Allowance,
    ComparedPair,
    CompareRequest,
    Comparison,
    Gate,
    GateLimit,
    GateRequest,
)
from lem_domain.wire.runs import AttemptView, LeaseEventView, LogChunk, RunView, StreamView, TransitionView
from lem_domain.wire.workers import WorkerView

M = TypeVar("M", bound=BaseModel)

AGGREGATION_TIMEOUT_S = 24 * 3600.0


class Client:
    """Client of one LEM server. Default: `LEM_SERVER` or this machine, with the token found by `credentials`.

    Lists are iterators that fetch page after page. Every failure is a `lem_domain.errors.LemError` (the tree is in
    `lem_client.errors`). A request that was not sent, or that may be repeated, is sent again after a transport error,
    except a read timeout; bundles are transferred once. Not thread-safe.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        token: str | None = None,
        token_file: Path | None = None,
        retries: RetryPolicy = CLIENT_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        found = token if token is not None else credentials.find_token(token_file)
        self._sender = Sender(credentials.server_url(server), found, retries=retries, transport=transport)

    @property
    def server(self) -> str:
        """The server's address."""
        return self._sender.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._sender.close()

    # --- server ---

    def is_ready(self) -> bool:
        """Return whether the server and its database can serve.

        Raises:
            ServerUnreachable: no server answers.
        """
        try:
            readiness = self._sender.send(Operation("GET", "/readyz", Readiness))
        except AnswerError:
            return False
        return readiness.status == "ok"

    def version(self) -> ServerVersion:
        """Return the versions of the server, the protocol and the aggregation method."""
        return self._sender.send(Operation("GET", "/version", ServerVersion))

    # --- campaigns ---

    def plan(self, spec: CampaignSpec, *, listed: int | None = None) -> CampaignPlan:
        """Return what `submit` would queue, with at most `listed` experiments and runs. Stores nothing."""
        return self._act("plan", CampaignPlan, "campaigns", parameters={"listed": listed}, body=spec)

    def submit(self, spec: CampaignSpec, *, idempotency_key: str | None = None) -> CampaignView:
        """Queue a whole campaign, or nothing if any part is invalid. One key queues it once."""
        key = idempotency_key or uuid4().hex
        return self._sender.send(Operation("POST", api_path("campaigns"), CampaignView, body=spec, idempotency_key=key))

    def campaigns(
        self, *, state: CampaignState | None = None, name: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Iterator[CampaignView]:
        """List campaigns, the newest first; with labels, those that have all of them."""
        labelled = tuple(f"{key}={value}" for key, value in (labels or {}).items())
        return self._list(Page[CampaignView], "campaigns", state=state, name=name, label=labelled)

    def campaign(self, campaign_id: str) -> CampaignView:
        """Return one campaign with its number of runs per state."""
        return self._get(CampaignView, "campaigns", campaign_id)

    def experiments(self, campaign_id: str) -> Iterator[ExperimentView]:
        """List a campaign's experiments in the order of its sweep."""
        return self._list(Page[ExperimentView], "campaigns", campaign_id, "experiments")

    def experiment(self, experiment_id: str) -> ExperimentView:
        """Return one experiment with its whole configuration."""
        return self._get(ExperimentView, "experiments", experiment_id)

    def cancel_campaign(self, campaign_id: str) -> CampaignView:
        """Cancel queued runs and stop live ones."""
        return self._act("cancel", CampaignView, "campaigns", campaign_id)

    def pause_campaign(self, campaign_id: str, *, live_runs: Literal["finish", "stop"] = "finish") -> CampaignView:
        """Stop claims of the campaign's runs; live runs finish, or are stopped and queued again."""
        return self._act("pause", CampaignView, "campaigns", campaign_id, body=PauseCampaign(live_runs=live_runs))

    def place_campaign(self, campaign_id: str, *, placement: Placement | None = None) -> CampaignView:
        """Release the campaign's devices: its next run chooses new ones, by the given rule if there is one."""
        return self._act("place", CampaignView, "campaigns", campaign_id, body=PlaceCampaign(placement=placement))

    def resume_campaign(self, campaign_id: str) -> CampaignView:
        """Allow claims of a paused campaign's runs again."""
        return self._act("resume", CampaignView, "campaigns", campaign_id)

    def retry_failed(self, campaign_id: str) -> tuple[str, ...]:
        """Queue every failed or interrupted run of a campaign again; return their ids."""
        retried = self._act("retry_failed", RetriedRuns, "campaigns", campaign_id, idempotency_key=uuid4().hex)
        return retried.run_ids

    def aggregate_campaign(
        self,
        campaign_id: str,
        *,
        allow_partial: bool = False,
        method: MethodVersion | None = None,
        request: AggregationRequest | None = None,
    ) -> AggregatedCampaign:
        """Aggregate every completed run of a campaign by a method (the server's default if omitted).

        With calibrations in `request` also the runs whose newest result has others.
        The answer lists the runs that can't be aggregated. It takes as long as the runs need one after another; the
        campaign's events have the progress.
        """
        return self._act(
            "aggregate",
            AggregatedCampaign,
            "campaigns",
            campaign_id,
            parameters={"allow_partial": allow_partial or None, "method": method},
            body=request,
            read_timeout_s=AGGREGATION_TIMEOUT_S,
        )

    def results(self, campaign_id: str, *, method: MethodVersion | None = None) -> CampaignResults:
        """Return every experiment's summary over cycles, from the runs aggregated so far by a method."""
        return self._get(CampaignResults, "campaigns", campaign_id, "results", method=method)

    def compare(
        self,
        reference: str,
        candidate: str | None = None,
        *,
        match: Sequence[str] = (),
        pairs: Sequence[tuple[str, str]] = (),
        metrics: Sequence[str] = (),
        margin: float | None = None,
        allow: Sequence[Allowance] = (),
        method: MethodVersion | None = None,
    ) -> Comparison:
        """Compare campaigns or experiments by their stored results; aggregate them first.

        Without a candidate the first experiment of the reference's campaign is compared with each other one. `match`
        names keys that differ on purpose, `pairs` pairs of experiments; `margin` is a fraction below which a difference
        does not matter.
        """
        request = CompareRequest(
            reference=reference,
            candidate=candidate,
            match=tuple(match),
            pairs=tuple(ComparedPair(reference=first, candidate=second) for first, second in pairs),
            metrics=tuple(metrics),
            margin=margin,
            allow=tuple(allow),
        )
        parameters = {"method": method}
        return self._sender.send(
            Operation("POST", api_path("comparisons"), Comparison, parameters, request, idempotent=True)
        )

    def gate(
        self,
        reference: str,
        candidate: str,
        limits: Mapping[str, float],
        *,
        match: Sequence[str] = (),
        allow: Sequence[Allowance] = (),
        method: MethodVersion | None = None,
    ) -> Gate:
        """Decide whether a candidate is within the regressions that are allowed, a fraction per metric."""
        request = GateRequest(
            reference=reference,
            candidate=candidate,
            limits=tuple(GateLimit(metric=metric, max_regression=limit) for metric, limit in limits.items()),
            match=tuple(match),
            allow=tuple(allow),
        )
        parameters = {"method": method}
        return self._sender.send(Operation("POST", api_path("gates"), Gate, parameters, request, idempotent=True))

    def follow_campaign(self, campaign_id: str, *, last_event_id: str | None = None) -> Iterator[Event]:
        """Yield past and future events of a campaign until no run is queued or live. Resumes after a broken stream."""
        return self._follow(EventFollower(api_path("campaigns", campaign_id, "events"), last_event_id=last_event_id))

    def export_bundle(self, campaign_id: str, path: Path, *, progress: OnBytes | None = None) -> Verified:
        """Write the bundle of a campaign at rest to a new file, verify it, and return its header and digest.

        `progress` gets the number of bytes of each part. An incomplete file is removed.
        """
        with write_whole(path) as file:
            for part in self._sender.receive(api_path("campaigns", campaign_id, "bundle")):
                file.write(part)
                if progress is not None:
                    progress(len(part))
            return check_bundle(file)

    def table(
        self,
        campaign_id: str,
        table: TableName,
        *,
        form: TableFormat = TableFormat.CSV,
        method: MethodVersion | None = None,
    ) -> Iterator[bytes]:
        """Yield the bytes of a table of a campaign in a format. It is whole only if the iterator ends without an error.

        Raises:
            TransferInterrupted: the server ended the table early, because evidence is missing or damaged.
        """
        path = api_path("campaigns", campaign_id, "tables", table.value)
        by = {} if method is None else {"method": method.value}
        yield from self._sender.receive(path, {"format": form.value, **by})

    def export_table(
        self,
        campaign_id: str,
        table: TableName,
        path: Path,
        *,
        form: TableFormat = TableFormat.CSV,
        method: MethodVersion | None = None,
        progress: OnBytes | None = None,
    ) -> None:
        """Write a table of a campaign to a new file. An incomplete file is removed."""
        with write_whole(path) as file:
            for part in self.table(campaign_id, table, form=form, method=method):
                file.write(part)
                if progress is not None:
                    progress(len(part))

    def import_bundle(self, path: Path, *, progress: OnBytes | None = None) -> ImportedBundle:
        """Verify a bundle and load its campaign into the server. The same bundle again changes nothing."""
        operation = Operation("POST", api_path("campaigns:import"), ImportedBundle)
        with open_bundle(path) as (file, size):
            return self._sender.transmit(operation, file, size, progress)

    # --- runs ---

    def runs(self, *, campaign_id: str | None = None, state: RunState | None = None) -> Iterator[RunView]:
        """List runs in the order of the queue."""
        return self._list(Page[RunView], "runs", campaign_id=campaign_id, state=state)

    def run(self, run_id: str) -> RunView:
        """Return one run, with its progress while it is live."""
        return self._get(RunView, "runs", run_id)

    def cancel_run(self, run_id: str) -> RunView:
        """Cancel one run."""
        return self._act("cancel", RunView, "runs", run_id)

    def retry_run(self, run_id: str) -> RunView:
        """Queue a failed or interrupted run again; a queued or live one is not changed."""
        return self._act("retry", RunView, "runs", run_id, idempotency_key=uuid4().hex)

    def lease_events(self, run_id: str) -> Iterator[LeaseEventView]:
        """List the times at which leases of the run's attempts became suspect and recovered."""
        return self._list(Page[LeaseEventView], "runs", run_id, "lease_events")

    def transitions(self, run_id: str) -> Iterator[TransitionView]:
        """List the run's changes of state, the oldest first."""
        return self._list(Page[TransitionView], "runs", run_id, "transitions")

    def attempts(self, run_id: str) -> Iterator[AttemptView]:
        """List the run's attempts, the first one first."""
        return self._list(Page[AttemptView], "runs", run_id, "attempts")

    def attempt(self, attempt_id: str) -> AttemptView:
        """Return one attempt with its environment and its effective configuration."""
        return self._get(AttemptView, "attempts", attempt_id)

    def streams(self, attempt_id: str) -> Iterator[StreamView]:
        """List an attempt's stored raw evidence: every chunk with its digest."""
        return self._list(Page[StreamView], "attempts", attempt_id, "streams")

    def logs(self, run_id: str, *, process: str | None = None) -> Iterator[LogChunk]:
        """List the output of the run's processes."""
        return self._list(Page[LogChunk], "runs", run_id, "logs", process=process)

    def follow_run(self, run_id: str) -> Iterator[Event]:
        """Yield past and future events of a run until it has ended. Resumes after a broken stream."""
        return self._follow(EventFollower(api_path("runs", run_id, "events"), one_run=True))

    def aggregate(
        self,
        run_id: str,
        *,
        allow_partial: bool = False,
        method: MethodVersion | None = None,
        request: AggregationRequest | None = None,
    ) -> RunResult:
        """Compute the run's result from its raw evidence, verifying every digest. The same evidence gives the same.

        `request` has calibrations to use instead of the configuration's.
        """
        parameters = {"allow_partial": allow_partial or None, "method": method}
        return self._act("aggregate", RunResult, "runs", run_id, parameters=parameters, body=request)

    def result(self, run_id: str, *, method: MethodVersion | None = None) -> RunResult:
        """Return the run's newest stored result by a method (the server's default, else any, if omitted)."""
        return self._get(RunResult, "runs", run_id, "aggregate", method=method)

    def requests(self, run_id: str, *, method: MethodVersion | None = None) -> RequestTable:
        """Compute the run's requests with the energy of each; it takes as long as aggregating the run."""
        return self._get(RequestTable, "runs", run_id, "tables", "requests", method=method)

    def calibrate(self, run_id: str, log: bytes, options: MeterLogOptions | None = None) -> CalibrationFit:
        """Fit gain and offset of a device's power readings to an external meter's log, a CSV file. Stores nothing."""
        given = {} if options is None else options.model_dump(mode="json", exclude_unset=True)
        return self._act(
            "calibrate",
            CalibrationFit,
            "runs",
            run_id,
            parameters=given,
            file=log,
            media_type=METER_LOG_MEDIA_TYPE,
        )

    def window_study(
        self,
        run_id: str,
        *,
        lengths_s: Sequence[float] = DEFAULT_LENGTHS_S,
        target: float = DEFAULT_TARGET,
        method: MethodVersion | None = None,
    ) -> WindowStudy:
        """Compute how the run's energy per token would spread in shorter windows, from its evidence."""
        lengths = [str(length) for length in lengths_s]
        return self._get(
            WindowStudy, "runs", run_id, "window_study", length_s=lengths, target=str(target), method=method
        )

    # --- workers and datasets ---

    def workers(self) -> Iterator[WorkerView]:
        """List every worker that has registered, with its current runs."""
        return self._list(Page[WorkerView], "workers")

    def worker(self, worker_id: str) -> WorkerView:
        """Return one worker."""
        return self._get(WorkerView, "workers", worker_id)

    def drain_worker(self, worker_id: str) -> WorkerView:
        """Let a worker finish its runs and claim no more."""
        return self._act("drain", WorkerView, "workers", worker_id)

    def datasets(self) -> Iterator[DatasetView]:
        """List prompt sets: the built-in ones, then the uploaded ones."""
        return self._list(Page[DatasetView], "datasets")

    def dataset(self, sha256: str) -> DatasetContent:
        """Return a prompt set with its texts."""
        return self._get(DatasetContent, "datasets", sha256)

    def upload_dataset(self, name: str, prompts: Sequence[str]) -> DatasetView:
        """Upload prompts under their digest; equal prompts are stored once."""
        upload = DatasetUpload(name=name, prompts=tuple(prompts))
        path = api_path("datasets", prompts_digest(prompts))
        return self._sender.send(Operation("PUT", path, DatasetView, body=upload))

    # --- shared ---

    def _get(self, answer: type[M], *segments: str, **parameters: Any) -> M:
        return self._sender.send(Operation("GET", api_path(*segments), answer, parameters))

    def _act(self, verb: str, answer: type[M], *segments: str, **options: Any) -> M:
        """Send `POST {resource}:{verb}`; the API documents every verb as idempotent, some by a key."""
        return self._sender.send(Operation("POST", f"{api_path(*segments)}:{verb}", answer, idempotent=True, **options))

    def _list(self, answer: type[Page[M]], *segments: str, **parameters: Any) -> Iterator[M]:
        cursor = None
        while True:
            page = self._get(answer, *segments, limit=PAGE_SIZE, cursor=cursor, **parameters)
            yield from page.items
            cursor = page.next
            if cursor is None:
                return

    def _follow(self, follower: EventFollower) -> Iterator[Event]:
        while not follower.is_finished:
            problem: Exception | None = None
            try:
                with self._sender.stream(follower.path, follower.headers()) as response:
                    for part in response.iter_bytes():
                        yield from follower.feed(part)
                follower.stream_ended()
            except (httpx.TransportError, AnswerError) as error:
                if not follower.resumes_after(error):
                    raise
                problem = error
            if not follower.is_finished:
                self._sender.sleep(follower.delay_s(self.server, problem))
