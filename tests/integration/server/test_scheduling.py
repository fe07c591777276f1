"""Orders, gaps, placement, turns and fail_fast, as workers meet them that ask for work."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import EXPERIMENT, run_ids, submit
from factories.worker import FakeWorker
from lem_domain.config.ordering import order_runs
from lem_domain.wire.workers import Assignment
from lem_server.campaigns.service import end_after_failures

pytestmark = pytest.mark.anyio

SWEEP = {"output.max_tokens": [1, 2, 3]}
PYTORCH = {"backend": "pytorch", "model": "m"}


async def rested(engine: AsyncEngine, seconds: float) -> None:
    """Every device has been idle for so much longer."""
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE attempts SET ended_at = ended_at - make_interval(secs => :seconds)"), {"seconds": seconds}
        )


async def ran(worker: FakeWorker, outcome: str = "interrupted", **how: Any) -> Assignment:
    """Claim a run and end it: handed back at a cost to nobody, or as told."""
    answer = await worker.claim(**how)
    assert answer.status_code == 200, answer.text
    assignment = Assignment.model_validate_json(answer.content)
    ended = await worker.end(assignment.attempt_id, outcome, "inference" if outcome == "failed" else "user_cancelled")
    assert ended.status_code == 200, ended.text
    return assignment


async def done(worker: FakeWorker, **how: Any) -> Assignment:
    """Claim a run and be done with it."""
    return await ran(worker, "failed", **how)


async def nothing(worker: FakeWorker, **how: Any) -> float | None:
    """Claim nothing; how soon it is worth asking again."""
    answer = await worker.claim(**how)
    assert answer.status_code == 204, answer.text
    return float(answer.headers["retry-after"]) if "retry-after" in answer.headers else None


async def campaign_of(api: httpx.AsyncClient, campaign: dict[str, Any]) -> dict[str, Any]:
    view: dict[str, Any] = (await api.get(f"/api/v1/campaigns/{campaign['id']}")).json()
    return view


async def waiting(api: httpx.AsyncClient, campaign: dict[str, Any]) -> tuple[str, str]:
    """Why nothing of a campaign runs."""
    found = (await campaign_of(api, campaign))["waiting"]
    assert found is not None
    return found["reason"], found["message"]


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.proves("execution.order", "execution.seed", on="server")
@pytest.mark.parametrize("order", ["interleaved", "shuffled", "grouped", "latin_square"])
async def test_runs_are_claimed_in_the_campaigns_order_and_those_tried_again_keep_their_place(
    api: httpx.AsyncClient, order: Any
) -> None:
    execution = {"order": order, "seed": 7, "cycles": 2, "retries": 1, "placement": "same_device"}
    campaign = await submit(api, sweep=SWEEP, execution=execution)
    worker = await FakeWorker(api).ready()
    first = await done(worker)
    claimed = [await done(worker) for _ in range(11)]
    tried = [(one.config.output.max_tokens - 1, one.cycle) for one in (first, *claimed)]
    planned = [(run.experiment, run.cycle) for run in order_runs(3, 2, order, 7)]
    assert tried == [pair for pair in planned for _ in range(2)], "each is tried again before the next one's turn"
    assert await nothing(worker) is None
    await api.post(f"/api/v1/campaigns/{campaign['id']}:retry_failed")
    assert (await done(worker)).run_id == first.run_id


async def test_under_same_device_the_order_holds_across_backends(api: httpx.AsyncClient) -> None:
    """Two workers of one machine: the one that is faster at asking gets no run that is not next."""
    sweep = {"backend": ["simulated", "pytorch"]}
    await submit(api, experiment={"model": "m"}, sweep=sweep, execution={"cycles": 2, "placement": "same_device"})
    pytorch = await FakeWorker(api, "pytorch", uuids=("GPU-1",)).ready()
    simulated = await FakeWorker(api, uuids=("GPU-1",)).ready()
    for cycle in (1, 2):
        assert await nothing(pytorch) is not None, "the other backend is next, and has a worker"
        assert (await done(simulated)).cycle == cycle
        assert (await done(pytorch)).cycle == cycle


async def test_runs_of_a_backend_that_no_one_serves_do_not_hold_up_the_others(api: httpx.AsyncClient) -> None:
    campaign = await submit(
        api,
        experiment={"model": "m"},
        sweep={"backend": ["simulated", "pytorch"]},
        execution={"placement": "same_device"},
    )
    pytorch = await FakeWorker(api, "pytorch", uuids=("GPU-1",)).ready()
    await done(pytorch)
    assert await nothing(pytorch) is None
    reason, message = await waiting(api, campaign)
    assert reason == "no_worker"
    assert "simulated" in message


# --- gaps -------------------------------------------------------------------------------------------------------------


@pytest.mark.proves("execution.config_gap.seconds", "execution.cycle_gap.seconds", on="server")
async def test_gaps_count_once_from_the_end_of_the_previous_run_on_the_device(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    gaps = {"config_gap": {"seconds": 60}, "cycle_gap": {"seconds": 300}}
    await submit(api, sweep={"output.max_tokens": [1, 2]}, execution={"cycles": 2, **gaps})
    worker = await FakeWorker(api).ready()
    await done(worker)  # no gap before the first one
    assert 59 <= (await nothing(worker) or 0) <= 60
    await rested(engine, 61)
    await done(worker)
    # Another experiment and another cycle: the longer of the two, not their sum.
    assert 299 <= (await nothing(worker) or 0) <= 300
    await rested(engine, 200)
    assert 99 <= (await nothing(worker) or 0) <= 100
    await rested(engine, 101)
    await done(worker)


@pytest.mark.proves("execution.config_gap.temperature_c", "execution.config_gap.max_seconds", on="server")
async def test_a_gap_by_cooling_ends_when_the_worker_says_so_or_after_its_bound(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    gap = {"temperature_c": 45, "max_seconds": 300}
    campaign = await submit(api, sweep=SWEEP, execution={"config_gap": gap})
    worker = await FakeWorker(api, uuids=("GPU-1",)).ready()
    await done(worker, warm_c=80)
    assert (await nothing(worker, warm_c=61) or 0) <= 5, "it is asked again soon how warm it is"
    reason, message = await waiting(api, campaign)
    assert (reason, "61 °C" in message) == ("cooling", True)
    await done(worker, warm_c=45)
    assert await nothing(worker, warm_c=61) is not None
    await rested(engine, 301)
    await done(worker, warm_c=61)


@pytest.mark.proves("execution.cycle_gap.temperature_c", "execution.cycle_gap.max_seconds", on="server")
async def test_a_device_that_does_not_say_how_warm_it_is_waits_the_whole_bound(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    campaign = await submit(api, execution={"cycles": 3, "cycle_gap": {"temperature_c": 45, "max_seconds": 300}})
    worker = await FakeWorker(api).ready()
    await done(worker)
    assert await nothing(worker) is not None
    assert "reports no temperature" in (await waiting(api, campaign))[1]
    await done(worker, warm_c=40)
    await rested(engine, 301)
    await done(worker)


async def test_in_a_gap_another_device_continues(api: httpx.AsyncClient) -> None:
    await submit(api, execution={"cycles": 3, "cycle_gap": {"seconds": 300}})
    worker = await FakeWorker(api, devices=2).ready()
    assert [(await done(worker)).devices for _ in range(2)] == [(worker.uuids[0],), (worker.uuids[1],)]
    assert await nothing(worker) is not None


async def test_in_a_gap_another_campaign_continues_once_and_then_it_is_the_first_ones_turn(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """Nobody is overtaken for ever: who waits for a gap, and was served less recently, keeps the device."""
    with_gap = await submit(api, execution={"cycles": 3, "cycle_gap": {"seconds": 60}})
    without = await submit(api, execution={"cycles": 9})
    worker = await FakeWorker(api).ready()
    order = [(await done(worker)).campaign_id for _ in range(2)]
    assert order == [with_gap["id"], without["id"]]
    assert await nothing(worker) is not None
    assert (await waiting(api, with_gap))[0] == "gap"
    assert (await waiting(api, without))[0] == "turn"
    await rested(engine, 61)
    assert [(await done(worker)).campaign_id for _ in range(2)] == [with_gap["id"], without["id"]]


async def test_a_claim_that_waits_gets_its_run_when_the_gap_is_over(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await submit(api, execution={"cycles": 2, "cycle_gap": {"seconds": 60}})
    worker = await FakeWorker(api).ready()
    await done(worker)
    await rested(engine, 59.5)
    assert (await worker.claim(wait_s=20)).status_code == 200


# --- placement --------------------------------------------------------------------------------------------------------


@pytest.mark.proves("execution.placement", on="server")
async def test_by_default_all_runs_are_on_the_device_of_the_first(api: httpx.AsyncClient) -> None:
    answer = await api.post(
        "/api/v1/campaigns", json={"name": "c", "experiment": EXPERIMENT, "execution": {"cycles": 3}}
    )
    campaign = answer.json()
    assert campaign["placement"] == "same_device"
    one, other = await FakeWorker(api, devices=2).ready(), await FakeWorker(api).ready()
    first = await one.claimed()
    assert await nothing(other) is None
    assert await nothing(one, devices=one.uuids[1:]) is None
    await one.end(first.attempt_id)
    assert await nothing(other) is None
    assert (await done(one)).devices == first.devices == (one.uuids[0],)
    assert [place["devices"] for place in (await campaign_of(api, campaign))["places"]] == [[one.uuids[0]]]


@pytest.mark.proves("execution.placement", on="server")
async def test_under_same_model_workers_with_such_devices_share_the_campaign(api: httpx.AsyncClient) -> None:
    await submit(api, execution={"cycles": 3, "placement": "same_model"})
    one, other, strange = [await FakeWorker(api).ready() for _ in range(3)]
    await _rename(api, strange, "Another model")
    await one.claimed()
    assert (await strange.claim()).status_code == 204
    assert (await other.claimed()).cycle == 2


@pytest.mark.proves("execution.placement", on="server")
async def test_under_any_every_worker_shares_the_campaign(api: httpx.AsyncClient) -> None:
    campaign = await submit(api, execution={"cycles": 3, "placement": "any"})
    workers = [await FakeWorker(api).ready() for _ in range(3)]
    await _rename(api, workers[2], "Another model")
    assert [(await worker.claimed()).cycle for worker in workers] == [1, 2, 3]
    assert (await campaign_of(api, campaign))["places"] == []


async def test_a_run_with_more_devices_takes_others_next_to_those_of_the_place(api: httpx.AsyncClient) -> None:
    sweep = {"devices.count": [1, 2, 1]}
    campaign = await submit(api, sweep=sweep, execution={"cycles": 2, "placement": "same_device", "order": "grouped"})
    worker = await FakeWorker(api, devices=3).ready()
    placed = [len((await done(worker)).devices) for _ in range(4)]
    assert placed == [1, 1, 2, 2]
    assert (await campaign_of(api, campaign))["places"][0]["devices"] == list(worker.uuids[:2])


async def test_a_device_that_is_gone_is_named_and_the_campaign_can_be_placed_elsewhere(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    campaign = await submit(api, execution={"cycles": 3, "placement": "same_device"})
    gone = await FakeWorker(api).ready()
    await done(gone)
    await gone.sign_off()
    other = await FakeWorker(api).ready()
    assert await nothing(other) is None
    reason, message = await waiting(api, campaign)
    assert reason == "device_gone"
    assert gone.uuids[0] in message
    assert "lemctl place" in message
    placed = (await api.post(f"/api/v1/campaigns/{campaign['id']}:place", json={})).json()
    assert placed["placement"] == "same_device"
    assert (await done(other)).cycle == 2
    places = (await campaign_of(api, campaign))["places"]
    assert [place["devices"] for place in places] == [list(gone.uuids), list(other.uuids)]
    assert places[0]["ended_at"] is not None
    assert places[0]["ended_by"]


async def test_a_campaign_may_be_placed_under_another_rule(api: httpx.AsyncClient) -> None:
    campaign = await submit(api, execution={"cycles": 3, "placement": "same_device"})
    one, other = await FakeWorker(api).ready(), await FakeWorker(api).ready()
    await one.claimed()
    assert await nothing(other) is None
    answer = await api.post(f"/api/v1/campaigns/{campaign['id']}:place", json={"placement": "any"})
    assert (answer.json()["placement"], answer.json()["execution"]["placement"]) == ("any", "same_device")
    assert (await other.claimed()).cycle == 2


async def test_a_cancelled_campaign_is_not_placed(api: httpx.AsyncClient) -> None:
    campaign = await submit(api)
    await api.post(f"/api/v1/campaigns/{campaign['id']}:cancel")
    assert (await api.post(f"/api/v1/campaigns/{campaign['id']}:place", json={})).status_code == 409
    assert (await api.post(f"/api/v1/campaigns/cmp_{uuid4().hex}:place", json={})).status_code == 404


# --- turns ------------------------------------------------------------------------------------------------------------


@pytest.mark.proves("priority", on="server")
async def test_campaigns_of_equal_priority_take_turns_and_those_of_a_higher_one_come_first(
    api: httpx.AsyncClient,
) -> None:
    campaigns = [await submit(api, execution={"cycles": 4}) for _ in range(3)]
    urgent = await submit(api, execution={"cycles": 2}, priority=1)
    worker = await FakeWorker(api).ready()
    served = [(await done(worker)).campaign_id for _ in range(14)]
    assert served == [urgent["id"]] * 2 + [campaign["id"] for campaign in campaigns] * 4


async def test_workers_of_one_device_do_not_starve_each_others_campaigns(api: httpx.AsyncClient) -> None:
    """The worker that has just finished asks first; the device is kept for the campaign whose turn it is."""
    mine = await submit(api, experiment=PYTORCH, execution={"cycles": 4})
    yours = await submit(api, execution={"cycles": 3})
    pytorch = await FakeWorker(api, "pytorch", uuids=("GPU-1",)).ready()
    simulated = await FakeWorker(api, uuids=("GPU-1",)).ready()
    assert (await done(pytorch)).campaign_id == mine["id"]
    await done(simulated)
    for _ in range(2):
        await done(pytorch)
        assert await nothing(pytorch) is not None
        assert (await done(simulated)).campaign_id == yours["id"]


# --- failures ---------------------------------------------------------------------------------------------------------


async def test_a_campaigns_failures_stop_neither_it_nor_another(api: httpx.AsyncClient) -> None:
    campaigns = [await submit(api, execution={"cycles": 3}) for _ in range(2)]
    worker = await FakeWorker(api).ready()
    for _ in range(6):
        await done(worker)
    for campaign in campaigns:
        view = await campaign_of(api, campaign)
        assert (view["state"], view["runs"]["failed"]) == ("completed", 3)


@pytest.mark.proves("execution.fail_fast", on="server")
async def test_fail_fast_ends_a_campaign_with_its_first_run_that_failed_for_good(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    campaign = await submit(api, execution={"cycles": 4, "retries": 1, "fail_fast": True})
    other = await submit(api, execution={"cycles": 4})
    one, two = await FakeWorker(api).ready(), await FakeWorker(api).ready()
    live = await one.claimed()
    await done(two)
    assert live.campaign_id == campaign["id"]
    failing = await two.claimed()
    assert failing.campaign_id == campaign["id"]
    await two.end(failing.attempt_id, "failed")
    again = await two.claimed()
    while again.campaign_id != campaign["id"]:
        await two.end(again.attempt_id, "failed")
        again = await two.claimed()
    assert again.run_id == failing.run_id, "a retry is left"
    assert await end_after_failures(engine) == 0
    await two.end(again.attempt_id, "failed")
    # From here on nothing of it is claimed, even before the server has come by to cancel it.
    assert {(await done(two)).campaign_id for _ in range(2)} == {other["id"]}
    assert await nothing(two) is None
    assert await end_after_failures(engine) == 1
    assert await end_after_failures(engine) == 0
    runs = [(await api.get(f"/api/v1/runs/{run}")).json() for run in await run_ids(api, campaign)]
    assert [run["state"] for run in runs] == ["initialised", "failed", "cancelled", "cancelled"]
    assert {run["reason"] for run in runs[2:]} == {"fail_fast"}
    assert failing.run_id in runs[2]["message"]
    assert (await campaign_of(api, campaign))["state"] == "active", "what is live finishes"
    await one.end(live.attempt_id, "failed")
    assert await end_after_failures(engine) == 1, "nothing of it is tried again either"
    assert (await campaign_of(api, campaign))["state"] == "completed"


async def test_without_fail_fast_a_failure_ends_nothing(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await submit(api, execution={"cycles": 2})
    worker = await FakeWorker(api).ready()
    await done(worker)
    assert await end_after_failures(engine) == 0
    await done(worker)


# --- why nothing runs -------------------------------------------------------------------------------------------------


async def test_a_campaign_says_what_it_waits_for(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    campaign = await submit(api, execution={"placement": "same_device"})
    reason, message = await waiting(api, campaign)
    assert reason == "no_worker" and "simulated" in message
    worker = await FakeWorker(api).ready()
    assert (await waiting(api, campaign))[0] == "worker_silent"
    urgent = await submit(api, priority=1)
    held = await worker.claimed()
    reason, message = await waiting(api, campaign)
    assert reason == "busy"
    assert held.run_id in message
    assert (await campaign_of(api, urgent))["waiting"] is None, "it runs"
    await worker.end(held.attempt_id)
    assert (await campaign_of(api, campaign))["waiting"] is None, "it is about to be claimed"
    await _set(engine, "UPDATE workers SET asked_at = now() - interval '1 hour'")
    assert (await campaign_of(api, campaign))["waiting"] is None, "after a run of an hour, too"
    await _set(engine, "UPDATE attempts SET ended_at = ended_at - interval '1 hour'")
    assert (await waiting(api, campaign))[0] == "worker_silent"
    await api.post(f"/api/v1/campaigns/{campaign['id']}:pause", json={})
    assert (await campaign_of(api, campaign))["waiting"] is None, "its user knows why"


async def test_a_campaign_that_needs_more_devices_than_there_are_says_so(api: httpx.AsyncClient) -> None:
    campaign = await submit(api, experiment={**EXPERIMENT, "devices": {"count": 2}})
    await (await FakeWorker(api).ready()).claim()
    reason, message = await waiting(api, campaign)
    assert (reason, "2 devices" in message) == ("device_gone", True)


async def _set(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL ROLE NONE"))
        await connection.execute(text(statement))


async def _rename(api: httpx.AsyncClient, worker: FakeWorker, name: str) -> None:
    """The worker's devices are of another model."""
    body = {
        "id": worker.id,
        "boot_id": str(worker.boot),
        "name": "fake-2",
        "host": "host-2",
        "backend": worker.backend,
        "devices": [{"uuid": uuid, "kind": "simulated", "name": name} for uuid in worker.uuids],
    }
    answer = await api.post("/api/v1/workers", json=body, headers=worker.headers)
    assert answer.status_code == 200, answer.text
