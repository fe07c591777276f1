"""A creating request may be sent any number of times and creates once."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import campaign_body
from lem_server.campaigns import service

pytestmark = pytest.mark.anyio

CAMPAIGNS = "/api/v1/campaigns"


async def post(api: httpx.AsyncClient, key: str | None, **keys: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key is not None else {}
    return await api.post(CAMPAIGNS, json=campaign_body(**keys), headers=headers)


async def count(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())


async def test_a_request_sent_again_gets_the_first_answer_and_creates_nothing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    first = await post(api, "one")
    assert first.status_code == 201
    # What happened to the campaign since is not in the answer: it is the first one, byte for byte.
    assert (await api.post(f"{CAMPAIGNS}/{first.json()['id']}:cancel")).status_code == 200
    again = await post(api, "one")
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["location"] == first.headers["location"] == f"{CAMPAIGNS}/{first.json()['id']}"
    assert (await count(engine, "campaigns"), await count(engine, "runs")) == (1, 1)


async def test_duplicates_that_come_at_once_create_once(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    answers = await asyncio.gather(*(post(api, "one") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert (await count(engine, "campaigns"), await count(engine, "runs")) == (1, 1)


async def test_a_duplicate_waits_for_the_first_and_gets_its_answer(
    api: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()
    real = service.submit

    async def slow(*arguments: Any, **keys: Any) -> Any:
        inside.set()
        await go_on.wait()
        return await real(*arguments, **keys)

    monkeypatch.setattr(service, "submit", slow)
    first = asyncio.create_task(post(api, "one"))
    await inside.wait()
    monkeypatch.setattr(service, "submit", real)
    second = asyncio.create_task(post(api, "one"))
    await blocked(engine)
    assert not second.done()
    go_on.set()
    assert (await first).content == (await second).content
    assert await count(engine, "campaigns") == 1


async def blocked(engine: AsyncEngine) -> None:
    """Until somebody waits for another's transaction."""
    async with engine.connect() as connection:
        await connection.execute(text("SET ROLE NONE"))
        await connection.commit()
        while not (
            await connection.execute(
                text("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
            )
        ).first():
            await connection.rollback()


async def test_another_body_under_the_same_key_is_refused(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    assert (await post(api, "one")).status_code == 201
    answer = await post(api, "one", name="another")
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    assert answer.headers["content-type"] == "application/problem+json"
    assert await count(engine, "campaigns") == 1


async def test_the_same_request_written_differently_is_the_same(api: httpx.AsyncClient) -> None:
    first = await post(api, "one")
    body = campaign_body(priority=0, labels={})
    again = await api.post(CAMPAIGNS, json=dict(reversed(list(body.items()))), headers={"Idempotency-Key": "one"})
    assert (again.status_code, again.content) == (201, first.content)


async def test_other_keys_and_no_key_create_again(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    for key in ("one", "two", None, None):
        assert (await post(api, key)).status_code == 201
    assert await count(engine, "campaigns") == 4
    assert await count(engine, "idempotency_keys") == 2


async def test_another_principal_has_its_own_keys(
    api: httpx.AsyncClient, anonymous: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    token = (await api.post("/api/v1/tokens", json={"name": "somebody"})).json()["token"]
    first = await post(api, "one")
    anonymous.headers["Authorization"] = f"Bearer {token}"
    second = await post(anonymous, "one", name="another")
    assert second.status_code == 201
    assert second.json()["id"] != first.json()["id"]


async def test_a_creation_that_is_refused_stores_nothing_and_the_key_may_be_used_again(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    missing = {"backend": "simulated", "model": "m", "prompts": {"dataset": "sha256:" + "0" * 64}}
    refused = await post(api, "one", experiment=missing)
    assert refused.status_code == 422
    assert (await count(engine, "idempotency_keys"), await count(engine, "campaigns")) == (0, 0)
    assert (await post(api, "one")).status_code == 201


async def test_a_creation_that_fails_halfway_stores_nothing_and_can_be_sent_again(
    api: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = service.submit

    async def breaks(*arguments: Any, **keys: Any) -> Any:
        await real(*arguments, **keys)
        raise RuntimeError("after everything was written")

    monkeypatch.setattr(service, "submit", breaks)
    assert (await post(api, "one")).status_code == 500
    for table in ("idempotency_keys", "campaigns", "experiments", "runs", "run_transitions"):
        assert await count(engine, table) == 0, table
    monkeypatch.setattr(service, "submit", real)
    assert (await post(api, "one")).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 201])
async def test_a_key_of_no_use_is_refused(api: httpx.AsyncClient, engine: AsyncEngine, key: str) -> None:
    answer = await post(api, key)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation")
    assert await count(engine, "campaigns") == 0


@pytest.mark.parametrize("key", ["x" * 200, 'a key, with: "punctuation" and %00', "clé"])
async def test_any_text_may_be_a_key(api: httpx.AsyncClient, key: str) -> None:
    answers = []
    for _ in range(2):
        headers = {b"Idempotency-Key": key.encode("latin-1")}
        answers.append(await api.post(CAMPAIGNS, json=campaign_body(), headers=headers))
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].content == answers[1].content
