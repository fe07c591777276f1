"""What is sent again and what isn't, and what each failure says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from lem_client.async_client import AsyncClient
from lem_client.async_sender import AsyncSender
from lem_client.client import Client
from lem_client.credentials import data_dir, find_token, server_url
from lem_client.errors import (
    Conflict,
    CredentialsError,
    Forbidden,
    InvalidRequest,
    NoAnswerInTime,
    NotFound,
    ServerFailed,
    ServerUnreachable,
    Unauthenticated,
)
from lem_client.operations import Operation, Readiness, api_path
from lem_client.sender import Sender
from lem_domain.config.campaign import CampaignSpec
from lem_domain.retries import CLIENT_RETRIES
from lem_domain.wire.campaigns import CampaignView
from lem_domain.wire.workers import WorkerView

URL = "http://127.0.0.1:1"
SPEC = CampaignSpec(name="a", experiment={"model": "builtin:tiny-llama"})
READY = Operation("GET", "/readyz", Readiness)
ONCE = Operation("POST", "/readyz", Readiness)
SUBMIT = Operation("POST", "/api/v1/campaigns", CampaignView, body=SPEC, idempotency_key="key")
LONGEST_DELAYS = replace(CLIENT_RETRIES, uniform=lambda _, high: high)
Step = httpx.Response | Exception


class Server:
    """Answers with one step after another and remembers what it was asked."""

    def __init__(self, *steps: Step) -> None:
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []
        self._steps = list(steps)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def sender(self, **options: object) -> Sender:
        return Sender(
            URL, "token", retries=LONGEST_DELAYS, transport=httpx.MockTransport(self), sleep=self.pauses.append
        )

    def async_sender(self) -> AsyncSender:
        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        return AsyncSender(URL, None, retries=LONGEST_DELAYS, transport=httpx.MockTransport(self), sleep=sleep)


def ok() -> httpx.Response:
    return httpx.Response(200, json={"status": "ok"})


def refused(status: int, **members: object) -> httpx.Response:
    body = {"type": "/problems/x", "title": "x", "status": status, "code": "internal", "detail": "do this.", **members}
    return httpx.Response(status, json=body)


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("no"),
        httpx.ReadError("gone"),
        httpx.RemoteProtocolError("x"),
        *(refused(status) for status in (408, 429, 502, 503, 504)),
    ],
)
def test_a_repeatable_request_is_sent_again(trouble: Step) -> None:
    server = Server(trouble, trouble, ok())
    assert server.sender().send(READY).status == "ok"
    assert server.pauses == [0.4, 0.8]


def test_asynchronously_it_is_the_same() -> None:
    server = Server(httpx.ConnectError("no"), refused(503), ok())
    assert asyncio.run(server.async_sender().send(READY)).status == "ok"
    assert server.pauses == [0.4, 0.8]


def test_a_submission_is_sent_again_under_the_same_key() -> None:
    server = Server(httpx.ReadError("gone"), refused(409))
    with pytest.raises(Conflict):
        server.sender().send(SUBMIT)
    assert [request.headers["Idempotency-Key"] for request in server.requests] == ["key", "key"]


@pytest.mark.parametrize(
    ("trouble", "error"), [(httpx.ReadError("gone"), ServerUnreachable), (refused(503), ServerFailed)]
)
def test_what_may_have_been_done_is_not_done_again(trouble: Step, error: type[Exception]) -> None:
    server = Server(trouble)
    with pytest.raises(error):
        server.sender().send(ONCE)


def test_what_was_never_sent_is_sent_again_whatever_it_is() -> None:
    assert Server(httpx.ConnectError("no"), ok()).sender().send(ONCE).status == "ok"


def test_retries_are_bounded_and_the_server_is_said_to_be_unreachable() -> None:
    server = Server(*[httpx.ConnectError("no")] * 4)
    with pytest.raises(ServerUnreachable) as caught:
        server.sender().send(READY)
    assert str(caught.value) == f"no LEM server answers at {URL}; start one with `lemctl up` or set LEM_SERVER."
    assert len(server.requests) == 4


def test_a_server_that_does_not_answer_is_not_asked_again() -> None:
    server = Server(httpx.ReadTimeout("slow"))
    with pytest.raises(NoAnswerInTime, match="did not answer within 300 s"):
        server.sender().send(READY)


def test_the_delay_that_the_server_asks_for_is_observed() -> None:
    busy = httpx.Response(503, headers={"Retry-After": "3"})
    server = Server(busy, ok())
    assert server.sender().send(READY).status == "ok"
    assert server.pauses == [3.4]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, Unauthenticated),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (422, InvalidRequest),
        (413, InvalidRequest),
        (500, ServerFailed),
    ],
)
def test_each_refusal_has_its_error_and_the_servers_sentence(status: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^do this\.$"):
        Server(refused(status)).sender().send(READY)


def test_findings_come_through() -> None:
    answer = refused(422, errors=[{"pointer": "/a", "message": "b"}])
    with pytest.raises(InvalidRequest) as caught:
        Server(answer).sender().send(READY)
    assert [(one.pointer, one.message) for one in caught.value.field_problems] == [("/a", "b")]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, text="<html>nginx</html>"),
        httpx.Response(302, headers={"Location": "https://login"}),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"no": "status"}),
    ],
)
def test_what_is_no_lem_server_is_said_to_be_none(answer: httpx.Response) -> None:
    with pytest.raises(ServerFailed, match="check LEM_SERVER"):
        Server(answer).sender().send(READY)


def pages(make: Callable[[httpx.MockTransport], object]) -> Server:
    first = {"items": [], "next": "c1"}
    return Server(httpx.Response(200, json=first), httpx.Response(200, json={"items": [], "next": None}))


def test_lists_continue_page_after_page() -> None:
    server = pages(lambda _: None)
    with Client(URL, token="t", transport=httpx.MockTransport(server)) as client:
        assert list(client.workers()) == []
    assert [dict(request.url.params) for request in server.requests] == [
        {"limit": "500"},
        {"limit": "500", "cursor": "c1"},
    ]
    assert server.requests[0].headers["Authorization"] == "Bearer t"


def test_asynchronous_lists_continue_page_after_page() -> None:
    server = pages(lambda _: None)

    async def read() -> list[WorkerView]:
        async with AsyncClient(URL, token="t", transport=httpx.MockTransport(server)) as client:
            return [worker async for worker in client.workers()]

    assert asyncio.run(read()) == []
    assert len(server.requests) == 2


def test_a_submission_carries_only_what_was_written() -> None:
    server = Server(refused(409))
    with pytest.raises(Conflict):
        server.sender().send(SUBMIT)
    assert json.loads(server.requests[0].content) == {"name": "a", "experiment": {"model": "builtin:tiny-llama"}}


def test_ids_cannot_leave_their_place_in_the_path() -> None:
    assert api_path("runs", "../tokens?x") == "/api/v1/runs/..%2Ftokens%3Fx"


# --- where the server is and which token opens it ---------------------------------------------------------------------


def test_the_server_is_the_given_one_then_the_environments_then_this_machine() -> None:
    assert server_url("http://a:1/", {"LEM_SERVER": "http://b"}) == "http://a:1"
    assert server_url(None, {"LEM_SERVER": "http://b"}) == "http://b"
    assert server_url(None, {}) == "http://127.0.0.1:8420"


@pytest.mark.parametrize("url", ["localhost:8420", "ftp://a", "http://", "http://a b"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(CredentialsError, match="is not a server address"):
        server_url(url, {})


def test_the_token_comes_from_the_option_then_the_environment_then_the_owners_file(tmp_path: Path) -> None:
    for name in ("given", "named", "owner.token"):
        (tmp_path / name).write_text(f"{name}\n")
    environment = {"LEM_DATA_DIR": str(tmp_path)}
    assert find_token(None, environment) == "owner.token"
    environment["LEM_TOKEN_FILE"] = str(tmp_path / "named")
    assert find_token(None, environment) == "named"
    environment["LEM_TOKEN"] = "plain"
    assert find_token(None, environment) == "plain"
    assert find_token(tmp_path / "given", environment) == "given"
    assert find_token(None, {"LEM_DATA_DIR": str(tmp_path / "none")}) is None
    assert data_dir(environment={"XDG_DATA_HOME": "/x"}) == Path("/x/lem")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "can't be read"), (b"", "is empty"), (b"a b", "more than one"), (b"\xff", "not text")],
)
def test_an_unusable_token_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CredentialsError, match=message):
        find_token(path, {})
