"""What the worker tries again, for how long, and what it takes as a refusal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from lem_domain.errors import LemError
from lem_domain.wire.workers import EndAttempt, RegisterWorker
from lem_worker.server_api import LeaseLost, ManifestIncomplete, NotAllowed, ServerApi, ServerRefused

pytestmark = pytest.mark.anyio

WORKER = f"wrk_{uuid4().hex}"
REGISTERED = {"id": WORKER, "beat_interval_s": 15, "lease_ttl_s": 60}
REGISTER = RegisterWorker.model_validate(
    {
        "id": WORKER,
        "boot_id": uuid4(),
        "name": "n",
        "host": "h",
        "backend": "simulated",
        "devices": [{"uuid": "SIM-0", "kind": "simulated", "name": "s"}],
    }
)
END = EndAttempt.model_validate({"outcome": "failed", "reason": "inference", "message": "m"})

Script = list[httpx.Response | Exception]


@pytest.fixture
def pauses() -> list[float]:
    return []


def api(script: Script, pauses: list[float] | None = None, seen: list[httpx.Request] | None = None) -> ServerApi:
    """Calls that are answered step by step; `pauses` gets how long each delay would have been."""

    async def sleep(seconds: float) -> None:
        if pauses is not None:
            pauses.append(seconds)

    def answer(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        step = script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    transport = httpx.MockTransport(answer)
    return ServerApi("http://lem", "secret", worker_id=WORKER, boot_id=uuid4(), transport=transport, sleep=sleep)


def refusal(status: int, code: str, **more: Any) -> httpx.Response:
    body = {"type": f"/problems/{code}", "title": "t", "status": status, "code": code, "detail": "do this.", **more}
    return httpx.Response(status, json=body)


async def test_a_worker_started_before_its_server_waits_and_says_so_once(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    script: Script = [httpx.ConnectError("refused")] * 12 + [httpx.Response(200, json=REGISTERED)]
    with caplog.at_level(logging.INFO, "lem_worker.server_api"):
        await api(script, pauses).register(REGISTER)
    assert len(pauses) == 12
    assert max(pauses) <= 30
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "no answer from http://lem" in caplog.text


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 507])
async def test_what_passes_is_tried_again(pauses: list[float], status: int) -> None:
    script: Script = [httpx.Response(status), httpx.Response(200, json=REGISTERED)]
    await api(script, pauses).register(REGISTER)
    assert script == []


async def test_a_pause_that_the_server_asks_for_is_kept(pauses: list[float]) -> None:
    script: Script = [
        httpx.Response(429, headers={"Retry-After": "45"}),
        httpx.Response(429, headers={"Retry-After": "86400"}),
        httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        httpx.Response(200, json=REGISTERED),
    ]
    await api(script, pauses).register(REGISTER)
    assert 45 <= pauses[0] <= 46
    assert 300 <= pauses[1] <= 301
    assert pauses[2] <= 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: refusal(409, "lease_lost"), LeaseLost),
        (lambda: refusal(409, "attempt_closed"), LeaseLost),
        (lambda: refusal(409, "boot_superseded"), LeaseLost),
        (lambda: refusal(401, "unauthenticated"), NotAllowed),
        (lambda: refusal(403, "forbidden"), NotAllowed),
        (lambda: refusal(426, "client_too_old"), NotAllowed),
        (lambda: refusal(422, "validation"), ServerRefused),
        (lambda: refusal(413, "payload_too_large"), ServerRefused),
    ],
)
async def test_a_refusal_is_not_tried_again_and_says_what_the_server_said(
    pauses: list[float], answer: Callable[[], httpx.Response], error: type[ServerRefused]
) -> None:
    with pytest.raises(error, match=r"do this\.") as caught:
        await api([answer()], pauses).end("att_1", END)
    assert type(caught.value) is error
    assert pauses == []


async def test_what_a_manifest_lacks_is_read_from_the_answer() -> None:
    missing = [{"process": "rank-0", "stream": "tokens", "seqs": [3, 5]}]
    with pytest.raises(ManifestIncomplete) as caught:
        await api([refusal(409, "manifest_incomplete", missing=missing)]).end("att_1", END)
    assert caught.value.missing[0].seqs == (3, 5)


@pytest.mark.parametrize("status", [200, 404])
async def test_an_answer_of_something_else_than_a_server_is_reported_as_that(status: int) -> None:
    with pytest.raises(ServerRefused, match="check that LEM_SERVER names one"):
        await api([httpx.Response(status, text="<html>It works!</html>")]).register(REGISTER)


async def test_an_address_without_a_scheme_is_refused_instead_of_waited_for() -> None:
    with pytest.raises(LemError, match="localhost:8420"):
        ServerApi("localhost:8420", "t", worker_id=WORKER, boot_id=uuid4())


async def test_every_call_says_who_calls() -> None:
    seen: list[httpx.Request] = []
    await api([httpx.Response(200, json=REGISTERED)], seen=seen).register(REGISTER)
    [request] = seen
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["lem-worker"] == WORKER
    assert request.headers["lem-protocol"] == "1"
    assert request.headers["lem-boot"]


async def test_signing_off_does_not_wait_for_a_server() -> None:
    await asyncio.wait_for(api([httpx.ConnectError("refused")]).sign_off(uuid4()), 5)


async def test_signing_off_tries_again_where_the_server_just_closed_the_connection() -> None:
    answers: Script = [httpx.RemoteProtocolError("closed"), httpx.Response(204)]
    await api(answers).sign_off(uuid4())
    assert answers == []
