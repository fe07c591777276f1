"""Every answer that is no success is a problem with a stable code, a sentence, and the id of its request."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import ClientDisconnect

from factories.runs import complete, run_ids, submit
from factories.worker import FakeWorker
from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import MAX_CHUNK_BYTES
from lem_domain.states import ActorKind
from lem_server.campaigns import reading as campaigns
from lem_server.database.engine import make_engine
from lem_server.http.middleware import JSON_LIMIT_BYTES, SECURITY_HEADERS, body_limit
from lem_server.http.problems import STATUS, problem_of
from lem_server.runs import changes
from lem_server.runs.transitions import set_actor

pytestmark = pytest.mark.anyio

CAMPAIGNS = "/api/v1/campaigns"


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of a refusal, after what every refusal has in common."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["status"], body["code"], body["type"]) == (status, code, f"/problems/{code}")
    assert body["title"] == code.replace("_", " ")
    assert body["detail"] and "\n" not in body["detail"]
    assert body["request_id"] == answer.headers["lem-request-id"]
    assert_headers(answer)
    return body


def assert_headers(answer: httpx.Response) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["lem-request-id"])
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name] == value


async def body_in_pieces(size: int) -> AsyncIterator[bytes]:
    """A body without a declared length."""
    for sent in range(0, size, 65536):
        yield b" " * min(65536, size - sent)


# --- addresses and bodies ---------------------------------------------------------------------------------------------


def test_every_code_has_a_status() -> None:
    assert set(STATUS) == set(ProblemCode)


async def test_what_is_not_there_is_a_404(api: httpx.AsyncClient) -> None:
    problem(await api.get("/api/v1/nothing"), 404, "not_found")
    unknown = f"cmp_{uuid4().hex}"
    body = problem(await api.get(f"{CAMPAIGNS}/{unknown}"), 404, "not_found")
    assert unknown in body["detail"]


async def test_a_method_that_an_address_does_not_take_is_a_405(api: httpx.AsyncClient) -> None:
    answer = await api.delete(CAMPAIGNS)
    problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) <= {"GET", "POST", "HEAD"}


async def test_a_body_that_is_no_json_is_a_400(api: httpx.AsyncClient) -> None:
    answer = await api.post(CAMPAIGNS, content=b'{"name": ', headers={"Content-Type": "application/json"})
    assert "JSON" in problem(answer, 400, "bad_request")["detail"]


async def test_a_body_that_is_no_text_is_a_400(api: httpx.AsyncClient) -> None:
    answer = await api.post(CAMPAIGNS, content=b'{"name": "\xff"}', headers={"Content-Type": "application/json"})
    assert "UTF-8" in problem(answer, 400, "bad_request")["detail"]


async def test_json_that_nests_too_deep_is_refused(api: httpx.AsyncClient) -> None:
    deep = b"[" * 100_000
    answer = await api.post(CAMPAIGNS, content=deep, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    problem(answer, answer.status_code, answer.json()["code"])


async def test_no_body_at_all_is_a_422_that_asks_for_one(api: httpx.AsyncClient) -> None:
    assert "body is required" in problem(await api.post(CAMPAIGNS), 422, "validation")["detail"]


async def test_every_wrong_field_is_pointed_at(api: httpx.AsyncClient) -> None:
    answer = await api.post("/api/v1/tokens", json={"name": "", "kind": "king", "colour": "red"})
    errors = problem(answer, 422, "validation")["errors"]
    assert {one["pointer"] for one in errors} == {"/name", "/kind", "/colour"}
    [unknown] = [one["message"] for one in errors if one["pointer"] == "/colour"]
    assert "unknown key 'colour'" in unknown


async def test_a_wrong_parameter_is_a_422(api: httpx.AsyncClient) -> None:
    problem(await api.get(CAMPAIGNS, params={"limit": 0}), 422, "validation")
    problem(await api.get(f"{CAMPAIGNS}/no-id"), 422, "validation")


async def test_a_chunk_of_another_media_type_is_a_415(api: httpx.AsyncClient) -> None:
    await submit(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    answer = await worker.put_bytes(attempt, b"{}", Content_Type="application/json")
    problem(answer, 415, "unsupported_media_type")


# --- too large --------------------------------------------------------------------------------------------------------


async def test_a_body_whose_declared_length_is_too_large_is_refused_at_once(api: httpx.AsyncClient) -> None:
    answer = await api.post(CAMPAIGNS, content=b"{}", headers={"Content-Length": str(JSON_LIMIT_BYTES + 1)})
    assert str(JSON_LIMIT_BYTES) in problem(answer, 413, "payload_too_large")["detail"]


@pytest.mark.parametrize("length", ["-1", "1e3", "a", "", "²"])
async def test_a_length_that_is_no_number_is_refused(api: httpx.AsyncClient, length: str) -> None:
    headers = {b"Content-Length": length.encode("latin-1")}
    answer = await api.post(CAMPAIGNS, content=b"{}", headers=headers)
    assert answer.status_code in (400, 413)
    problem(answer, answer.status_code, answer.json()["code"])


async def test_a_body_without_length_is_refused_as_soon_as_it_is_too_large(api: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b" " * 65536
            assert sent < 4 * JSON_LIMIT_BYTES

    answer = await api.post(CAMPAIGNS, content=endless(), headers={"Content-Type": "application/json"})
    problem(answer, 413, "payload_too_large")
    assert sent <= JSON_LIMIT_BYTES + 65536


async def test_a_chunk_without_length_is_refused_as_soon_as_it_is_too_large(api: httpx.AsyncClient) -> None:
    await submit(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    path = f"/api/v1/attempts/{attempt}/processes/rank-0/streams/requests/chunks/0"
    headers = {
        **worker.headers,
        "Content-Type": "application/vnd.apache.arrow.stream",
        "Content-Digest": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
    }
    answer = await api.put(path, content=body_in_pieces(MAX_CHUNK_BYTES + 1), headers=headers)
    problem(answer, 413, "payload_too_large")


def test_only_evidence_and_prompts_may_be_large() -> None:
    assert body_limit("/api/v1/campaigns") == JSON_LIMIT_BYTES
    chunk = f"/api/v1/attempts/att_{'0' * 32}/processes/rank-0/streams/tokens/chunks/3"
    assert body_limit(chunk) == MAX_CHUNK_BYTES
    assert body_limit(chunk + "/x") == JSON_LIMIT_BYTES


# --- what the database says -------------------------------------------------------------------------------------------


async def test_a_transition_that_the_database_forbids_is_a_409(
    api: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request of ours gets there: the code asks first. Were it wrong, the database would still refuse."""
    await submit(api)
    [run] = await run_ids(api, (await api.get(CAMPAIGNS)).json()["items"][0])
    await complete(engine, run)

    async def forgetful(connection: AsyncConnection, run_id: Any, **_: Any) -> None:
        await set_actor(connection, ActorKind.USER, "somebody")
        await connection.execute(text("UPDATE runs SET state = 'queued' WHERE id = :id"), {"id": run_id})

    monkeypatch.setattr(changes, "cancel_run", forgetful)
    body = problem(await api.post(f"/api/v1/runs/{run}:cancel"), 409, "illegal_transition")
    assert "completed" in body["detail"] and "queued" in body["detail"]


async def test_a_step_that_comes_too_late_is_a_409(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await submit(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    assert (await worker.end(attempt)).status_code == 200
    answer = await worker.start(attempt)
    assert answer.status_code == 409
    problem(answer, 409, answer.json()["code"])


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionRefusedError(111, "Connection refused"),
        FileNotFoundError(2, "No such file or directory"),
        TimeoutError(),
        asyncpg.CannotConnectNowError("the database system is starting up"),
    ],
)
async def test_a_database_that_is_away_is_a_503_that_says_when_to_come_again(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(campaigns, "list_campaigns", broken)
    answer = await api.get(CAMPAIGNS)
    problem(answer, 503, "not_ready")
    assert answer.headers["retry-after"] == "1"


async def test_a_database_that_is_away_at_the_door_is_a_503(
    app: FastAPI, api: httpx.AsyncClient, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = make_engine(database_url.set(host="127.0.0.1", port=1, query={}))
    context = app.state.context
    monkeypatch.setattr(app.state, "context", replace(context, engine=gone))
    problem(await api.get(CAMPAIGNS), 503, "not_ready")
    await gone.dispose()


async def test_a_connection_that_breaks_is_a_503(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("SET ROLE NONE"))
        await connection.execute(
            text("""
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()
            """)
        )
    assert (await api.get(CAMPAIGNS)).status_code == 200  # the pool looks before it lends


async def test_a_statement_of_ours_that_is_wrong_is_a_500(
    api: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wrong(*_: Any, **__: Any) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT secret_column FROM runs"))

    monkeypatch.setattr(campaigns, "list_campaigns", wrong)
    answer = await api.get(CAMPAIGNS)
    problem(answer, 500, "internal")
    assert "secret_column" not in answer.text


# --- what nobody foresaw ----------------------------------------------------------------------------------------------


async def test_an_unexpected_failure_is_a_500_without_internal_details(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(campaigns, "list_campaigns", broken)
    with caplog.at_level(logging.ERROR):
        answer = await api.get(CAMPAIGNS)
    body = problem(answer, 500, "internal")
    assert "swordfish" not in answer.text and "Traceback" not in answer.text and "RuntimeError" not in answer.text
    [record] = [one for one in caplog.records if body["request_id"] in one.getMessage()]
    assert record.exc_info is not None and "swordfish" in str(record.exc_info[1])


# --- around every answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/docs", "/docs/assets/start.js", "/openapi.json", CAMPAIGNS, "/nothing"])
async def test_every_answer_has_a_request_id_and_the_security_headers(
    api: httpx.AsyncClient, anonymous: httpx.AsyncClient, path: str
) -> None:
    answers = [await client.get(path) for client in (api, anonymous, api)]
    for answer in answers:
        assert_headers(answer)
    assert len({answer.headers["lem-request-id"] for answer in answers}) == 3


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "testserver.evil:80", "evil:testserver"]
)
async def test_a_host_that_is_not_the_servers_is_refused(api: httpx.AsyncClient, host: str) -> None:
    answer = await api.get("/livez", headers={"Host": host})
    assert "LEM_TRUSTED_HOSTS" in problem(answer, 400, "bad_request")["detail"]


@pytest.mark.parametrize("host", ["testserver", "LOCALHOST:8420", "127.0.0.1:1"])
async def test_the_servers_hosts_are_answered_on_any_port(api: httpx.AsyncClient, host: str) -> None:
    assert (await api.get("/livez", headers={"Host": host})).status_code == 200


async def test_a_client_that_goes_away_is_no_failure_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        problem_of(ClientDisconnect(), "r1")
    assert [record.levelname for record in caplog.records] == ["INFO"]
