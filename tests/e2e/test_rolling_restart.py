"""Servers and PostgreSQL are stopped and started anew while a worker measures: it goes on, and its attempt counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from factories.clusters import Cluster, ServerProcess
from factories.runs import campaign_body
from lem_client import Client
from lem_domain.config.campaign import CampaignSpec
from lem_domain.states import RunState
from lem_domain.wire.events import RunTransitionEvent

LONG_S = 600.0
STORY = ["queued", "initialised", "running", "completed"]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL; the test starts its servers."""
    # Beats are frequent, so that some are sent while nobody answers; the lease outlasts every restart.
    made = Cluster(LEM_BEAT_INTERVAL_S="0.5")
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def server(cluster: Cluster) -> ServerProcess:
    """The only server."""
    cluster.start("one")
    return cluster.servers["one"]


def spec(*, runs: int = 1) -> CampaignSpec:
    return CampaignSpec.model_validate(
        {
            "name": "over a restart",
            "experiment": {
                "backend": "simulated",
                "model": "m",
                "prompts": {"sample_size": 4},
                "output": {"max_tokens": 8},
                "baseline": {"enabled": False},
                "window": {"min_duration_s": 5},
                "warmup": {"max_requests": 5, "power_slope": None},
            },
            "execution": {"cycles": runs, "placement": "any"},
        }
    )


def wait_until(what: str, holds: Callable[[], bool], cluster: Cluster) -> None:
    """Look again and again until it holds."""
    deadline = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < deadline, f"never {what}\n{cluster.logs()}"
        time.sleep(0.05)


def wait_for_run(client: Client, campaign: str, state: RunState, cluster: Cluster, *, position: int = 0) -> None:
    """Until a run is in this state, or has got through it on a machine that is busy with something else."""
    wait_until(
        f"was run {position} {state.value}",
        lambda: list(client.runs(campaign_id=campaign))[position].state in (state, RunState.COMPLETED),
        cluster,
    )


def check_untouched(client: Client, campaign: str, cluster: Cluster) -> None:
    """Each run was measured once, and nobody had to do anything again."""
    for run in client.runs(campaign_id=campaign):
        assert (run.state, run.attempts) == (RunState.COMPLETED, 1), cluster.logs()
        assert [entry.target.value for entry in client.transitions(run.id)] == STORY
        result = client.aggregate(run.id)
        assert result.efficiency.energy_per_output_token_j.value is not None
        assert result.window.duration_s >= 5


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [1, 2])
def test_a_server_is_restarted_while_a_worker_measures(cluster: Cluster, server: ServerProcess, restarts: int) -> None:
    cluster.start_worker(server.url, "worker")
    with server.client() as client:
        campaign = client.submit(spec()).id
        wait_for_run(client, campaign, RunState.RUNNING, cluster)
        for _ in range(restarts):
            server.terminate()
            server.start()
        wait_for_run(client, campaign, RunState.COMPLETED, cluster)
        check_untouched(client, campaign, cluster)


@pytest.mark.slow
def test_a_server_is_restarted_while_a_worker_waits_for_work(cluster: Cluster, server: ServerProcess) -> None:
    cluster.start_worker(server.url, "worker")
    with server.client() as client:
        wait_until("was the worker there", lambda: bool(list(client.workers())), cluster)
        server.terminate()
        server.start()
        campaign = client.submit(spec()).id
        wait_for_run(client, campaign, RunState.COMPLETED, cluster)
        check_untouched(client, campaign, cluster)


def test_one_server_after_the_other_is_restarted_behind_a_balancer(cluster: Cluster) -> None:
    cluster.start("one", "two")
    address = cluster.balancer()
    cluster.start_worker(address, "worker")
    with Client(address, token_file=cluster.servers["one"].token_file) as client:
        campaign = client.submit(spec(runs=2)).id
        for position, server in enumerate(cluster.servers.values()):
            wait_for_run(client, campaign, RunState.RUNNING, cluster, position=position)
            server.terminate()
            server.start()
        wait_for_run(client, campaign, RunState.COMPLETED, cluster, position=1)
        check_untouched(client, campaign, cluster)


class Follower(threading.Thread):
    """Follows a campaign over whatever happens to the server."""

    def __init__(self, server: ServerProcess, campaign: str) -> None:
        super().__init__(daemon=True)
        self.seen: list[str] = []
        self.failure: Exception | None = None
        self._server = server
        self._campaign = campaign
        self.start()

    def run(self) -> None:
        """Note every transition until the campaign is settled."""
        try:
            with self._server.client() as client:
                for event in client.follow_campaign(self._campaign):
                    if isinstance(event, RunTransitionEvent):
                        self.seen.append(event.target.value)
        except Exception as error:  # a thread's failure is the test's
            self.failure = error


@pytest.mark.slow
def test_postgresql_is_restarted_under_a_running_server(cluster: Cluster, server: ServerProcess) -> None:
    cluster.start_worker(server.url, "worker")
    key = {"Idempotency-Key": "one"}
    token = server.token_file.read_text().strip()
    with (
        server.client() as client,
        httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=LONG_S, trust_env=False
        ) as http,
    ):
        campaign = client.submit(spec()).id
        follower = Follower(server, campaign)
        wait_for_run(client, campaign, RunState.RUNNING, cluster)
        address = cluster.postgres.url
        cluster.postgres.stop()
        try:
            assert http.get("/livez").status_code == 200
            for answer in (
                http.get("/readyz"),
                http.get("/api/v1/campaigns"),
                http.get(f"/api/v1/campaigns/{campaign}/events"),
                http.post("/api/v1/campaigns", json=campaign_body(), headers=key),
            ):
                assert (answer.status_code, answer.json()["code"]) == (503, "not_ready"), answer.text
                assert answer.headers["retry-after"] == "1"
            wait_until("did a beat of the worker get no answer", lambda: "no answer" in cluster.log("worker"), cluster)
        finally:
            cluster.postgres.start()
        assert cluster.postgres.url == address
        wait_until("was it ready again", lambda: http.get("/readyz").status_code == 200, cluster)
        wait_for_run(client, campaign, RunState.COMPLETED, cluster)
        check_untouched(client, campaign, cluster)
        assert [http.post("/api/v1/campaigns", json=campaign_body(), headers=key).status_code for _ in "12"] == [
            201
        ] * 2
        assert len(list(client.campaigns())) == 2
        follower.join(LONG_S)
        assert not follower.is_alive() and follower.failure is None, follower.failure
        assert follower.seen[: len(STORY)] == STORY, "each transition once, over the break"
