"""`lemctl pause`, `resume`, `retry`, `drain` and the timeline of a run, against the real application."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import claim, complete, move
from factories.served import Lem, by_sql, submitted
from lem_client import AsyncClient, Client
from lem_domain.ids import IdKind, parse_id
from lem_domain.states import CampaignState, RunState
from lem_domain.wire.events import CampaignEvent


def fail(database_url: URL, run: str) -> None:
    async def steps(engine: AsyncEngine) -> None:
        await claim(engine, run)
        await move(engine, run, "failed", reason="inference", message="it broke")

    by_sql(database_url, steps)


def test_a_campaign_is_paused_by_name_and_resumed(lem: Lem) -> None:
    campaign, _ = submitted(lem)
    assert lem("pause", "night").out == f"night ({campaign}) is paused: 4 queued\n"
    assert lem("pause", campaign, "--json").json["state"] == "paused"
    assert campaign in lem("list", "--state", "paused").out
    assert lem("resume", "night").out == f"night ({campaign}) is active: 4 queued\nnothing had failed\n"


def test_a_pause_says_what_becomes_of_live_runs(lem: Lem, database_url: URL) -> None:
    _, runs = submitted(lem)
    by_sql(database_url, lambda engine: claim(engine, runs[0]))
    assert lem("pause", "night").out.endswith("; 1 being measured finish\n")
    assert lem("pause", "night", "--stop").out.endswith("; 1 being measured are stopped\n")


def test_a_resume_queues_again_what_failed(lem: Lem, database_url: URL) -> None:
    _, runs = submitted(lem)
    fail(database_url, runs[0])
    by_sql(database_url, lambda engine: complete(engine, runs[1]))
    lem("pause", "night")
    answer = lem("resume", "night")
    assert answer.out.endswith("\n1 run is queued again\n")
    assert "3 queued" in answer.out and "1 completed" in answer.out


def test_a_retry_of_a_paused_campaign_says_what_is_still_missing(lem: Lem, database_url: URL) -> None:
    _, runs = submitted(lem)
    fail(database_url, runs[0])
    lem("pause", "night")
    assert lem("retry", "night").out.splitlines()[1:] == [
        "1 run is queued again",
        "the campaign is paused; `lemctl resume` lets workers claim them",
    ]


def test_a_campaign_is_placed_again(lem: Lem) -> None:
    campaign, _ = submitted(lem)
    assert lem("place", "night").out.splitlines()[1] == "placement: same_device, from the next run on"
    assert lem("place", campaign, "--placement", "any", "--json").json["placement"] == "any"
    shown = lem("show", "night").out
    assert "placement   any, instead of the submitted same_device" in shown
    assert "waiting     no worker for backend simulated is online" in shown
    assert lem("place", "night", "--placement", "somewhere").code == 2


def test_one_run_is_tried_again(lem: Lem, database_url: URL) -> None:
    _, runs = submitted(lem)
    fail(database_url, runs[0])
    assert lem("retry", runs[0]).out == f"{runs[0]} is queued\n"
    assert lem("retry", runs[0], "--json").json["state"] == "queued"


@pytest.mark.parametrize("command", ["pause", "resume", "retry"])
def test_what_can_not_be_done_is_one_sentence(lem: Lem, command: str) -> None:
    submitted(lem)
    answer = lem(command, "nobody")
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)
    lem("cancel", "night")
    answer = lem(command, "night")
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)
    assert "cancelled" in answer.err and "submit it again" in answer.err


def test_a_run_with_a_result_is_not_tried_again(lem: Lem, database_url: URL) -> None:
    _, runs = submitted(lem)
    by_sql(database_url, lambda engine: complete(engine, runs[0]))
    answer = lem("retry", runs[0])
    assert (answer.code, answer.out) == (1, "")
    assert "the run is completed" in answer.err


def test_a_worker_is_drained_by_name(lem: Lem, database_url: URL) -> None:
    _, runs = submitted(lem)
    by_sql(database_url, lambda engine: claim(engine, runs[0]))
    (worker,) = lem("workers", "--json").json
    said = lem("drain", worker["name"]).out
    assert said == f"{worker['name']} ({worker['id']}) is draining; it finishes {runs[0]} first\n"
    by_sql(database_url, lambda engine: claim(engine, runs[1]))
    assert "2 workers are named" in lem("drain", worker["name"]).err
    assert lem("drain", worker["id"], "--json").json["state"] == "draining"
    assert "there is no worker named" in lem("drain", "nobody").err


def test_the_timeline_has_leases_between_the_changes_of_state(lem: Lem, database_url: URL) -> None:
    _, runs = submitted(lem)

    async def steps(engine: AsyncEngine) -> None:
        attempt = await claim(engine, runs[0])
        await move(engine, runs[0], "running")
        async with engine.begin() as connection:
            for kind, silent_s in (("suspect", 60), ("recovered", 75)):
                await connection.execute(
                    text("""
                        INSERT INTO lease_events (attempt_id, run_id, kind, at, silent_s)
                        VALUES (:attempt, :run, :kind, clock_timestamp(), :silent_s)
                    """),
                    {
                        "attempt": parse_id(IdKind.ATTEMPT, attempt),
                        "run": parse_id(IdKind.RUN, runs[0]),
                        "kind": kind,
                        "silent_s": silent_s,
                    },
                )
        await move(engine, runs[0], "failed", reason="inference", message="it broke")

    by_sql(database_url, steps)
    shown = lem("show", runs[0]).out
    words = ["queued", "(attempt 1)", "running", "lease suspect", "lease recovered", "inference – it broke"]
    places = [shown.index(word, shown.index("History")) for word in words]
    assert places == sorted(places), shown
    assert [one["kind"] for one in lem("show", runs[0], "--json").json["lease_events"]] == ["suspect", "recovered"]


def test_watching_a_paused_campaign_reports_how_to_resume_it(lem: Lem) -> None:
    campaign, _ = submitted(lem)
    with Client() as client:
        states = []
        for event in client.follow_campaign(campaign):
            if isinstance(event, CampaignEvent):
                states.append(event.campaign.state)
                if len(states) == 1:
                    client.pause_campaign(campaign)
                elif event.campaign.state is CampaignState.PAUSED:
                    client.resume_campaign(campaign)
                else:
                    client.cancel_campaign(campaign)
                    break
    assert states == [CampaignState.ACTIVE, CampaignState.PAUSED, CampaignState.ACTIVE]


def test_the_asynchronous_client_does_the_same(lem: Lem, database_url: URL) -> None:
    campaign, runs = submitted(lem)
    fail(database_url, runs[0])
    fail(database_url, runs[1])

    async def act() -> None:
        async with AsyncClient() as client:
            assert (await client.pause_campaign(campaign, live_runs="stop")).state is CampaignState.PAUSED
            assert (await client.retry_run(runs[0])).state is RunState.QUEUED
            assert await client.retry_failed(campaign) == (runs[1],)
            assert (await client.resume_campaign(campaign)).state is CampaignState.ACTIVE
            assert (await client.place_campaign(campaign, placement="same_model")).placement == "same_model"
            assert [event async for event in client.lease_events(runs[0])] == []
            (worker, *_) = [worker async for worker in client.workers()]
            assert (await client.drain_worker(worker.id)).id == worker.id

    asyncio.run(act())
