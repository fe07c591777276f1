"""Processes that are killed with SIGKILL, and a campaign that goes on all the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from factories.campaign_files import campaign
from lem_client import Client
from lem_domain.states import RunState
from lem_domain.wire.events import RunTransitionEvent


def submit(house, path: Path) -> str:  # type: ignore[no-untyped-def]
    done = house.lemctl("submit", path, "--json")
    assert done.returncode == 0, done.stderr
    with house.client() as client:
        return next(iter(client.campaigns())).id


def wait_for(client: Client, campaign_id: str, state: RunState) -> str:
    """The first run that gets into a state, from the campaign's stream of events."""
    for event in client.follow_campaign(campaign_id):
        if isinstance(event, RunTransitionEvent) and event.target is state:
            return event.run_id
    raise AssertionError(f"no run became {state.value}")


def settle(client: Client, campaign_id: str) -> None:
    for _ in client.follow_campaign(campaign_id):
        pass


def test_a_server_killed_in_the_middle_loses_nothing(house, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    house.start_worker("simulated")
    path = campaign(
        tmp_path,
        backend="simulated",
        model="m",
        prompts={"sample_size": 4},
        output={"max_tokens": 8},
        baseline={"enabled": False},
        window={"min_duration_s": 3},
        warmup={"max_requests": 5, "power_slope": None},
    )
    campaign_id = submit(house, path)
    with house.client() as client:
        run_id = wait_for(client, campaign_id, RunState.RUNNING)
    port = urlsplit(house.url).port
    house.kill_server()
    house.start_server(port)
    with house.client() as client:
        settle(client, campaign_id)
        run = client.run(run_id)
        assert (run.state, run.attempts) == (RunState.COMPLETED, 1), house.log("worker")
        result = client.aggregate(run_id)
        assert result.efficiency.energy_per_output_token_j.value is not None


def test_a_killed_worker_takes_its_processes_along_and_its_run_is_measured_again(house, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    worker = house.start_worker("simulated")
    path = campaign(
        tmp_path,
        backend="simulated",
        model="m",
        prompts={"sample_size": 4},
        output={"max_tokens": 8},
        baseline={"enabled": False},
        window={"min_duration_s": 4},
        warmup={"max_requests": 5, "power_slope": None},
    )
    campaign_id = submit(house, path)
    with house.client() as client:
        run_id = wait_for(client, campaign_id, RunState.RUNNING)
        children = psutil.Process(worker.pid).children(recursive=True)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        psutil.wait_procs(children, timeout=300)
        assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
        house.start_worker("simulated")
        settle(client, campaign_id)
        run = client.run(run_id)
        assert (run.state, run.attempts) == (RunState.COMPLETED, 2), house.log("worker")
        reasons = [entry.reason for entry in client.transitions(run_id)]
        assert "worker_lost" in reasons
        assert client.aggregate(run_id).energy.total.joules is not None


def test_a_cancelled_campaign_stops_its_worker_which_continues_with_the_next(house, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    house.start_worker("simulated")
    long = campaign(
        tmp_path,
        "long",
        backend="simulated",
        model="m",
        prompts={"sample_size": 4},
        baseline={"enabled": False},
        window={"min_duration_s": 600},
        warmup={"max_requests": 5, "power_slope": None},
        execution={"cycles": 2},
    )
    campaign_id = submit(house, long)
    with house.client() as client:
        run_id = wait_for(client, campaign_id, RunState.RUNNING)
        done = house.lemctl("cancel", campaign_id)
        assert done.returncode == 0, done.stderr
        settle(client, campaign_id)
        assert {run.state for run in client.runs(campaign_id=campaign_id)} == {RunState.CANCELLED}
        assert client.run(run_id).reason == "user_cancelled"
    quick = campaign(
        tmp_path,
        "quick",
        backend="simulated",
        model="m",
        prompts={"sample_size": 2},
        baseline={"enabled": False},
        window={"min_duration_s": 0.1},
    )
    assert house.lemctl("run", quick).returncode == 0
