"""Campaigns over HTTP: plan, submit, follow, cancel, results."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import campaign_body, claim, complete, move, result_json, run_ids, store_aggregate, submit
from lem_domain.ids import IdKind, parse_id

pytestmark = pytest.mark.anyio

SWEEP = {"sweep": {"simulated.batch_size": [1, 8]}, "execution": {"cycles": 2}}


async def rows_of(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())


async def pages(api: httpx.AsyncClient, address: str, **parameters: Any) -> list[list[dict[str, Any]]]:
    """Every page of a list."""
    found = []
    cursor: dict[str, str] = {}
    while True:
        answer = await api.get(address, params={**parameters, **cursor})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found.append(page["items"])
        if page["next"] is None:
            return found
        cursor = {"cursor": page["next"]}


# --- plan -------------------------------------------------------------------------------------------------------------


async def test_a_plan_shows_what_would_be_queued_and_queues_nothing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    answer = await api.post("/api/v1/campaigns:plan", json=campaign_body(**SWEEP))
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert [one["display_name"] for one in plan["experiments"]] == ["batch_size=1", "batch_size=8"]
    assert [(run["experiment"], run["cycle"]) for run in plan["runs"]] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert plan["minimum_duration_s"] == 40
    assert plan["notes"] == [
        "No registered worker serves backend 'simulated'; its runs wait until one is started.",
        "Registered workers can run 0 of the 4 runs.",
    ]
    assert await rows_of(engine, "campaigns") == 0


# --- submit -----------------------------------------------------------------------------------------------------------


@pytest.mark.proves("name", "sweep", "execution.cycles", "execution.order", "labels", on="server")
async def test_a_submitted_campaign_is_queued_in_its_order(api: httpx.AsyncClient) -> None:
    answer = await api.post("/api/v1/campaigns", json=campaign_body(**SWEEP, labels={"team": "a"}, priority=3))
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert answer.headers["location"] == f"/api/v1/campaigns/{view['id']}"
    assert (view["state"], view["experiments"], view["runs"]["queued"]) == ("active", 2, 4)
    assert (view["labels"], view["priority"], view["submitted_by"]) == ({"team": "a"}, 3, "owner")
    found = (await api.get(answer.headers["location"])).json()
    assert found.pop("waiting")["reason"] == "no_worker"
    assert found == {key: value for key, value in view.items() if key != "waiting"}

    runs = (await api.get("/api/v1/runs", params={"campaign_id": view["id"]})).json()["items"]
    assert [(run["display_name"], run["cycle"], run["position"]) for run in runs] == [
        ("batch_size=1", 1, 0),
        ("batch_size=8", 1, 1),
        ("batch_size=1", 2, 2),
        ("batch_size=8", 2, 3),
    ]
    assert [run["id"] for run in runs] == sorted(run["id"] for run in runs)

    experiments = (await api.get(f"/api/v1/campaigns/{view['id']}/experiments")).json()["items"]
    assert [one["config"]["simulated"]["batch_size"] for one in experiments] == [1, 8]
    assert [one["varied"] for one in experiments] == [{"simulated.batch_size": 1}, {"simulated.batch_size": 8}]


async def test_the_budgets_of_runs_come_from_the_campaign_and_the_house(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await submit(api, execution={"retries": 2})
    async with engine.connect() as connection:
        row = (await connection.execute(text("SELECT retries_left, losses_left FROM runs"))).one()
    assert tuple(row) == (2, 3)


async def test_ten_thousand_runs_are_queued_at_once(api: httpx.AsyncClient) -> None:
    view = await submit(api, sweep={"output.max_tokens": list(range(1, 101))}, execution={"cycles": 100})
    assert (view["experiments"], view["runs"]["queued"]) == (100, 10_000)
    answer = await api.get("/api/v1/runs", params={"campaign_id": view["id"], "limit": 500})
    assert [run["position"] for run in answer.json()["items"]] == list(range(500))


async def test_the_same_key_and_body_create_once(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await api.post("/api/v1/campaigns", json=campaign_body(), headers=headers)
    await api.post(f"{first.headers['location']}:cancel")
    again = await api.post("/api/v1/campaigns", json=campaign_body(), headers=headers)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert await rows_of(engine, "campaigns") == 1


async def test_the_same_key_sent_at_once_creates_once(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    answers = await asyncio.gather(
        *(api.post("/api/v1/campaigns", json=campaign_body(), headers={"Idempotency-Key": "k"}) for _ in range(4))
    )
    assert {(answer.status_code, answer.content) for answer in answers} == {(201, answers[0].content)}
    assert await rows_of(engine, "runs") == 1


async def test_the_same_key_with_another_body_is_refused(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    headers = {"Idempotency-Key": "once"}
    await api.post("/api/v1/campaigns", json=campaign_body(), headers=headers)
    answer = await api.post("/api/v1/campaigns", json=campaign_body(priority=1), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    assert await rows_of(engine, "campaigns") == 1


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"experiment": {"backend": "simulated"}}, "/experiment/model", "'model' is required; add it"),
        (
            {"experiment": {"backend": "simulated", "model": "m", "outptu": {}}},
            "/experiment/outptu",
            "unknown key 'outptu'; did you mean 'output'?",
        ),
        (
            {"experiment": {"backend": "simulated", "model": "m", "output": {"max_tokens": "many"}}},
            "/experiment/output/max_tokens",
            "not 'many'",
        ),
        ({"sweep": {"output.max_tokens": [-8, 0]}}, "/experiment/output/max_tokens", "greater than or equal to 1"),
        ({"sweep": {"zip": [{"output.max_tokens": [8, 9], "decoding.seed": [1]}]}}, "/sweep/zip/0", "make them equal"),
        ({"sweep": {"output.max_tokens": []}}, None, "sweep.output.max_tokens has no values"),
        ({"execution": {"cycles": 0}}, "/execution/cycles", "greater than or equal to 1"),
        ({"nmae": "x"}, "/nmae", "unknown key 'nmae'; did you mean 'name'?"),
        ({"execution": {"cycels": 3}}, "/execution/cycels", "unknown key 'cycels'; did you mean 'cycles'?"),
        ({"execution": {"cycle_gap": {"secs": 3}}}, "/execution/cycle_gap/secs", "did you mean 'seconds'?"),
        (
            {"experiment": {"backend": "simulated", "model": "m", "prompts": {"file": "p.txt"}}},
            "/experiment/prompts/file",
            "only lemctl reads files; upload",
        ),
        (
            {"experiment": {"backend": "simulated", "model": "m", "prompts": {"builtin": "nope"}}},
            "/experiment/prompts/builtin",
            "'nope'",
        ),
        (
            {"experiment": {"backend": "simulated", "model": "m", "prompts": {"dataset": "ab" * 32}}},
            "/experiment/prompts/dataset",
            "the server holds no dataset",
        ),
        ({"name": "a\x00b"}, "/name", "U+0000"),
        (
            {"sweep": {"output.max_tokens": list(range(1, 102))}, "execution": {"cycles": 1000}},
            None,
            "the campaign has 101000 runs; the limit is 100000",
        ),
    ],
)
@pytest.mark.parametrize("address", ["/api/v1/campaigns", "/api/v1/campaigns:plan"])
async def test_bad_input_is_one_sentence_and_creates_nothing(
    api: httpx.AsyncClient,
    engine: AsyncEngine,
    address: str,
    change: dict[str, Any],
    pointer: str | None,
    words: str,
) -> None:
    answer = await api.post(address, json=campaign_body(**change))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "validation"), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in problem["detail"]
    if pointer is not None:
        assert pointer in [one["pointer"] for one in problem["errors"]]
    assert await rows_of(engine, "campaigns") == 0


@pytest.mark.proves("on_refused", "experiments", on="server")
async def test_what_is_refused_is_planned_with_its_reason_and_queued_around_only_if_asked(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    listed = [{"name": "short"}, {"name": "long", "window": {"min_duration_s": -1}}]
    body = campaign_body(experiments=listed, sweep={"output.max_tokens": [8, 0, 8]})
    plan = (await api.post("/api/v1/campaigns:plan", json=body)).json()
    assert [one["display_name"] for one in plan["experiments"]] == ["short, max_tokens=8"]
    assert (plan["duplicates"], plan["refused"]) == (1, 4)
    assert plan["merged"] == [{"display_name": "short, max_tokens=8", "same_as": "short, max_tokens=8"}]
    assert [(one["display_name"], [each["pointer"] for each in one["problems"]]) for one in plan["refusals"][:2]] == [
        ("short, max_tokens=0", ["/experiment/output/max_tokens"]),
        ("long, max_tokens=8", ["/experiments/1/window/min_duration_s"]),
    ]
    refused = await api.post("/api/v1/campaigns", json=body)
    assert refused.status_code == 422
    assert {one["pointer"] for one in refused.json()["errors"]} == {
        "/experiment/output/max_tokens",
        "/experiments/1/window/min_duration_s",
    }
    assert await rows_of(engine, "campaigns") == 0
    view = await submit(api, experiments=listed, sweep={"output.max_tokens": [8, 0, 8]}, on_refused="skip")
    assert (view["experiments"], view["runs"]["queued"]) == (1, 1)


async def test_a_body_that_is_no_json_is_refused(api: httpx.AsyncClient) -> None:
    answer = await api.post("/api/v1/campaigns", content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


# --- lists ------------------------------------------------------------------------------------------------------------


async def test_campaigns_are_listed_newest_first_and_pages_stay_stable(api: httpx.AsyncClient) -> None:
    made = [(await submit(api, name=f"c{number}"))["id"] for number in range(5)]
    first = (await api.get("/api/v1/campaigns", params={"limit": 2})).json()
    await submit(api, name="meanwhile")
    second = (await api.get("/api/v1/campaigns", params={"limit": 2, "cursor": first["next"]})).json()
    third = (await api.get("/api/v1/campaigns", params={"limit": 2, "cursor": second["next"]})).json()
    assert [one["id"] for one in first["items"] + second["items"] + third["items"]] == made[::-1]
    assert third["next"] is None


async def test_campaigns_are_filtered_by_name_and_state(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    _active, cancelled, done = [await submit(api, name=name) for name in ("active", "cancelled", "done")]
    await api.post(f"/api/v1/campaigns/{cancelled['id']}:cancel")
    await complete(engine, (await run_ids(api, done))[0])

    async def listed(**parameters: str) -> list[str]:
        return [one["name"] for one in (await api.get("/api/v1/campaigns", params=parameters)).json()["items"]]

    assert await listed(state="active") == ["active"]
    assert await listed(state="cancelled") == ["cancelled"]
    assert await listed(state="completed") == ["done"]
    assert await listed(state="paused") == []
    assert await listed(name="active") == ["active"]
    assert await listed(name="active", state="completed") == []


@pytest.mark.proves("labels", on="server")
async def test_campaigns_are_filtered_by_all_of_the_labels_that_are_asked_for(api: httpx.AsyncClient) -> None:
    for name, labels in (("a", {"team": "x", "note": "a=b"}), ("b", {"team": "x"}), ("c", {"team": "y"}), ("d", {})):
        await submit(api, name=name, labels=labels)

    async def listed(*labels: str, **parameters: object) -> list[str]:
        answer = await api.get("/api/v1/campaigns", params={"label": labels, **parameters})
        return [one["name"] for one in answer.json()["items"]]

    assert await listed("team=x") == ["b", "a"]
    assert await listed("team=x", "note=a=b") == ["a"]
    assert await listed("team=x", name="b") == ["b"]
    assert await listed("team=z") == await listed("team=") == []
    first = (await api.get("/api/v1/campaigns", params={"label": "team=x", "limit": 1})).json()
    following = await api.get("/api/v1/campaigns", params={"label": "team=x", "cursor": first["next"]})
    assert [one["name"] for one in following.json()["items"]] == ["a"]
    for wrong in ("team", "=x", "a=\x00"):
        answer = await api.get("/api/v1/campaigns", params={"label": wrong})
        assert answer.status_code == 422


@pytest.mark.parametrize(
    ("parameters", "status", "words"),
    [
        ({"cursor": "nonsense"}, 400, "cursor"),
        ({"limit": 501}, 422, "less than or equal to 500"),
        ({"limit": 0}, 422, "greater than or equal to 1"),
        ({"state": "nope"}, 422, "'active'"),
        ({"name": "a\x00"}, 422, "pattern"),
    ],
)
async def test_a_list_refuses_what_it_does_not_understand(
    api: httpx.AsyncClient, parameters: dict[str, Any], status: int, words: str
) -> None:
    answer = await api.get("/api/v1/campaigns", params=parameters)
    assert answer.status_code == status
    assert words in answer.json()["detail"]


async def test_a_cursor_of_another_list_is_refused(api: httpx.AsyncClient) -> None:
    await submit(api, execution={"cycles": 2})
    cursor = (await api.get("/api/v1/runs", params={"limit": 1})).json()["next"]
    assert (await api.get("/api/v1/campaigns", params={"cursor": cursor})).status_code == 400


async def test_experiments_come_in_pages(api: httpx.AsyncClient) -> None:
    view = await submit(api, sweep={"output.max_tokens": [1, 2, 3, 4, 5]})
    found = await pages(api, f"/api/v1/campaigns/{view['id']}/experiments", limit=2)
    assert [len(page) for page in found] == [2, 2, 1]
    assert [one["config"]["output"]["max_tokens"] for one in itertools.chain(*found)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("method_and_path", ["GET ", "GET /experiments", "GET /results", "GET /events", "POST :cancel"])
async def test_an_unknown_campaign_is_a_404_with_a_sentence(api: httpx.AsyncClient, method_and_path: str) -> None:
    method, _, path = method_and_path.partition(" ")
    answer = await api.request(method, f"/api/v1/campaigns/cmp_{'0' * 32}{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "there is no campaign cmp_000" in answer.json()["detail"]


async def test_a_malformed_id_is_refused(api: httpx.AsyncClient) -> None:
    answer = await api.get("/api/v1/campaigns/run_1")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation")


# --- state and cancel -------------------------------------------------------------------------------------------------


async def test_a_campaign_is_completed_once_no_run_is_queued_or_live(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    view = await submit(api, execution={"cycles": 2})
    first, second = await run_ids(api, view)

    async def state() -> str:
        return str((await api.get(f"/api/v1/campaigns/{view['id']}")).json()["state"])

    await complete(engine, first)
    assert await state() == "active"
    await claim(engine, second)
    assert await state() == "active"
    await move(engine, second, "failed", reason="inference")
    assert await state() == "completed"


async def test_a_cancel_ends_what_is_queued_and_asks_for_what_is_live(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    view = await submit(api, execution={"cycles": 3})
    done, live, queued = await run_ids(api, view)
    await complete(engine, done)
    attempt = await claim(engine, live)
    cancelled = await api.post(f"/api/v1/campaigns/{view['id']}:cancel")
    assert cancelled.status_code == 200
    assert cancelled.json()["state"] == "cancelled"
    runs = {run["id"]: run for run in (await api.get("/api/v1/runs")).json()["items"]}
    assert {run_id: (run["state"], run["cancel_requested"]) for run_id, run in runs.items()} == {
        done: ("completed", False),
        live: ("initialised", True),
        queued: ("cancelled", True),
    }
    assert runs[queued]["reason"] == "user_cancelled"
    async with engine.connect() as connection:
        lease = await connection.execute(
            text("SELECT cancel FROM leases WHERE attempt_id = :id"), {"id": parse_id(IdKind.ATTEMPT, attempt)}
        )
        assert lease.scalar_one() is True
    log = (await api.get(f"/api/v1/runs/{queued}/transitions")).json()["items"]
    assert (log[-1]["target"], log[-1]["actor"], log[-1]["actor_name"]) == ("cancelled", "user", "owner")


async def test_a_cancel_sent_again_changes_nothing(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    view = await submit(api)
    first = await api.post(f"/api/v1/campaigns/{view['id']}:cancel")
    entries = await rows_of(engine, "run_transitions")
    again = await api.post(f"/api/v1/campaigns/{view['id']}:cancel")
    assert (again.status_code, again.json()) == (200, first.json())
    assert await rows_of(engine, "run_transitions") == entries


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.proves("execution.cycles", "execution.order", on="server")
async def test_results_summarise_the_cycles_and_say_why_others_have_none(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    view = await submit(api, sweep={"simulated.batch_size": [1, 8]}, execution={"cycles": 3, "order": "grouped"})
    good, better, failed, cancelled, completed, _queued = await run_ids(api, view)
    for run_id, watts in ((good, 100.0), (better, 110.0)):
        await store_aggregate(engine, run_id, await complete(engine, run_id), result_json(watts))
    await claim(engine, failed)
    await move(engine, failed, "failed", reason="out_of_memory", message="too big")
    await api.post(f"/api/v1/runs/{cancelled}:cancel")
    await complete(engine, completed)

    answer = await api.get(f"/api/v1/campaigns/{view['id']}/results")
    assert answer.status_code == 200, answer.text
    results = answer.json()
    first, second = results["experiments"]
    assert [(one["cycle"], one["state"], one["verdict"], one["reason"]) for one in first["outcomes"]] == [
        (1, "aggregated", "valid", None),
        (2, "aggregated", "valid", None),
        (3, "failed", None, "out_of_memory"),
    ]
    metrics = {one["metric"]: one for one in first["metrics"]}
    assert metrics["energy.mean_power_w"]["values"] == pytest.approx([100, 110], abs=0.01)
    assert metrics["energy.mean_power_w"]["mean"] == pytest.approx(105, abs=0.01)
    assert (first["verdict"], first["energy_method"], first["energy_includes"]) == ("valid", "counter", ["GPU-0"])
    assert [(one["state"], one["reason"]) for one in second["outcomes"]] == [
        ("cancelled", "user_cancelled"),
        ("completed", "completed"),
        ("queued", "queued"),
    ]
    assert (second["verdict"], second["energy_method"]) == (None, None)
    assert results["runs"]["aggregated"] == 2


@pytest.mark.parametrize(
    ("experiment", "outputs", "found"),
    [
        ({"precision": "float32"}, ("a", "a", "a"), []),
        ({"precision": "float32"}, ("a", "b", "a"), [1]),
        ({"precision": "bfloat16"}, ("a", "b", "a"), []),
        ({"precision": "float32", "decoding": {"temperature": 1}}, ("a", "b", "a"), []),
    ],
)
async def test_an_experiment_that_must_give_the_tokens_of_another_and_does_not_is_found(
    api: httpx.AsyncClient,
    engine: AsyncEngine,
    experiment: dict[str, Any],
    outputs: tuple[str, ...],
    found: list[int],
) -> None:
    """Greedy, in float32, on the same prompts: whatever the backend and its settings are."""
    base = {"backend": "simulated", "model": "builtin:tiny-llama", **experiment}
    view = await submit(api, experiment=base, sweep={"simulated.batch_size": [1, 2, 4]})
    for run_id, output in zip(await run_ids(api, view), outputs, strict=True):
        await store_aggregate(engine, run_id, await complete(engine, run_id), result_json(100.0, output))
    results = (await api.get(f"/api/v1/campaigns/{view['id']}/results")).json()["experiments"]
    told = [any("tokens than batch_size=1" in finding for finding in one["findings"]) for one in results]
    assert [place for place, said in enumerate(told) if said] == found
    assert [one["verdict"] for one in results] == ["questionable" if said else "valid" for said in told]


async def test_work_of_other_length_is_not_held_against_it(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    base = {"backend": "simulated", "model": "builtin:tiny-llama", "precision": "float32"}
    view = await submit(api, experiment=base, sweep={"output.max_tokens": [8, 16]})
    for run_id, output in zip(await run_ids(api, view), ("a", "b"), strict=True):
        await store_aggregate(engine, run_id, await complete(engine, run_id), result_json(100.0, output))
    results = (await api.get(f"/api/v1/campaigns/{view['id']}/results")).json()["experiments"]
    assert not any(one["findings"] for one in results)


async def test_results_take_the_latest_aggregate(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    view = await submit(api)
    (run_id,) = await run_ids(api, view)
    attempt = await complete(engine, run_id)
    for watts in (100.0, 200.0):
        await store_aggregate(engine, run_id, attempt, result_json(watts))
    results = (await api.get(f"/api/v1/campaigns/{view['id']}/results")).json()
    metrics = {one["metric"]: one for one in results["experiments"][0]["metrics"]}
    assert metrics["energy.mean_power_w"]["values"] == pytest.approx([200], abs=0.01)


@pytest.mark.parametrize(("experiments", "cycles"), [(3, 150), (450, 1), (2, 200), (1, 401)])
async def test_results_of_more_runs_than_one_statement_reads(
    api: httpx.AsyncClient, experiments: int, cycles: int
) -> None:
    sweep = {"output.max_tokens": list(range(1, experiments + 1))}
    view = await submit(api, sweep=sweep, execution={"cycles": cycles})
    results = (await api.get(f"/api/v1/campaigns/{view['id']}/results")).json()["experiments"]
    assert [experiment["varied"]["output.max_tokens"] for experiment in results] == sweep["output.max_tokens"]
    assert all([one["cycle"] for one in experiment["outcomes"]] == list(range(1, cycles + 1)) for experiment in results)


@pytest.mark.proves("metadata", "labels", on="server")
async def test_metadata_is_kept_and_changes_no_experiment(api: httpx.AsyncClient) -> None:
    plain = await submit(api)
    kept = {"ticket": 7, "who": {"team": "a"}}
    noted = await submit(api, metadata=kept, labels={"a": "b"})
    assert (plain["metadata"], noted["metadata"], noted["labels"]) == ({}, kept, {"a": "b"})
    hashes = []
    for campaign in (plain, noted):
        answer = await api.get(f"/api/v1/campaigns/{campaign['id']}/experiments")
        hashes.append([one["config_hash"] for one in answer.json()["items"]])
    assert hashes[0] == hashes[1]
