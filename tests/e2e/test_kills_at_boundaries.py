"""SIGKILL of the server, and of PostgreSQL, at each boundary of a run: the worker goes on, and its attempt counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from factories.clusters import Cluster
from lem_domain.config.campaign import CampaignSpec
from lem_domain.states import RunState

LONG_S = 600.0
POINTS = ("load", "warmup", "measure", "sealing")
QUICK = {("server", "measure"), ("postgresql", "sealing")}
"""The others are in the slow suite."""
STORY = ["queued", "initialised", "running", "completed"]
SPEC = CampaignSpec.model_validate(
    {
        "name": "over a kill",
        "experiment": {
            "backend": "simulated",
            "model": "m",
            "prompts": {"sample_size": 4},
            "output": {"max_tokens": 4},
            "baseline": {"enabled": False},
            "window": {"min_duration_s": 0, "min_requests": 4},
            "warmup": {"min_requests": 2, "window_size": 2, "max_requests": 3, "power_slope": None},
        },
    }
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL and one server; beats are frequent, so that some are sent while nobody answers."""
    made = Cluster(LEM_BEAT_INTERVAL_S="0.5")
    try:
        made.start("one")
        yield made
    finally:
        made.stop()


def wait_until(what: str, holds: Callable[[], bool], cluster: Cluster) -> None:
    """Look again and again until it holds."""
    deadline = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < deadline, f"never {what}\n{cluster.logs()}"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("victim", "point"),
    [
        pytest.param(victim, point, marks=() if (victim, point) in QUICK else pytest.mark.slow)
        for victim in ("server", "postgresql")
        for point in POINTS
    ],
)
def test_a_run_continues_over_a_kill_of(cluster: Cluster, victim: str, point: str) -> None:
    """What the worker says next (that it is ready, its evidence, its end) meets nobody, and is said again."""
    name = f"{victim}-{point}"
    server, reached = cluster.servers["one"], cluster.folder / f"{name}.reached"
    with server.client() as client:
        campaign = client.submit(SPEC).id
    worker = cluster.start_gated_worker(server.url, name, gate=point, reached=reached)
    wait_until(f"did the rank get to {point}", reached.exists, cluster)
    if victim == "server":
        server.kill()
    else:
        cluster.kill_postgres()
    reached.unlink()
    wait_until("did a beat of the worker get no answer", lambda: "no answer" in cluster.log(name), cluster)
    if victim == "server":
        server.start()
    else:
        cluster.postgres.stop()
        cluster.postgres.start()
    assert worker.wait(LONG_S) == 0, cluster.logs()
    with server.client() as client:
        (run,) = client.runs(campaign_id=campaign)
        assert (run.state, run.attempts) == (RunState.COMPLETED, 1), cluster.logs()
        assert [entry.target.value for entry in client.transitions(run.id)] == STORY
        # Strict: every chunk of the manifest is there, byte for byte.
        assert client.aggregate(run.id).work.requests == 4
