"""Who may do what: nothing without a token, and with one only what its scopes say."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, parse_id
from lem_domain.wire.access import DEFAULT_SCOPES, Scope, TokenKind
from lem_server.access.guard import PUBLIC_PATHS, SCOPE_KEY, check_scope
from lem_server.access.service import OWNER_TOKEN_FILE, ensure_owner_token
from lem_server.access.tokens import mint
from lem_server.app import create_app
from lem_server.settings import Settings

pytestmark = pytest.mark.anyio

TOKENS = "/api/v1/tokens"
CAMPAIGNS = "/api/v1/campaigns"
_NOWHERE = make_url("postgresql+asyncpg://nowhere/lem")
_METHODS = ("get", "put", "post", "delete", "patch")


def operations(app: FastAPI) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path with its parameters filled in, and description of every documented operation."""
    return [
        (method.upper(), re.sub(r"\{[^}]+\}", "x", path), operation)
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
        if method in _METHODS
    ]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def make_token(api: httpx.AsyncClient, **keys: Any) -> dict[str, Any]:
    answer = await api.post(TOKENS, json={"name": "test", **keys})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def unauthenticated(answer: httpx.Response) -> str:
    """The sentence of a 401."""
    assert answer.status_code == 401, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    problem = answer.json()
    assert problem["code"] == ProblemCode.UNAUTHENTICATED.value
    detail: str = problem["detail"]
    return detail


# --- every route ------------------------------------------------------------------------------------------------------


async def test_every_route_of_the_api_refuses_who_sends_no_token(app: FastAPI, anonymous: httpx.AsyncClient) -> None:
    asked = [(method, path) for method, path, _ in operations(app) if path.startswith("/api/")]
    assert len(asked) > 30
    for method, path in asked:
        detail = unauthenticated(await anonymous.request(method, path))
        assert "Authorization: Bearer" in detail and "owner.token" in detail, (method, path)


def test_only_a_short_list_of_paths_is_open_to_everyone(server_settings: Settings) -> None:
    made = create_app(server_settings, _NOWHERE)
    beside_the_api = {path for _, path, _ in operations(made) if not path.startswith("/api/")}
    assert beside_the_api == {"/livez", "/readyz", "/version"}
    assert set(PUBLIC_PATHS) == {"/", "/docs", "/openapi.json"} | beside_the_api


def test_every_operation_of_the_api_declares_a_scope(server_settings: Settings) -> None:
    for method, path, operation in operations(create_app(server_settings, _NOWHERE)):
        if path.startswith("/api/"):
            assert operation.get(SCOPE_KEY) in {scope.value for scope in Scope}, (method, path)
            assert operation["security"] == [{"HTTPBearer": []}], (method, path)


def test_every_route_of_the_api_checks_the_scope(server_settings: Settings) -> None:
    made = create_app(server_settings, _NOWHERE)
    checked = 0
    for context in iter_route_contexts(made.routes):
        if isinstance(context.original_route, APIRoute) and (context.path or "").startswith("/api/"):
            assert check_scope in calls(context.dependant), context.path
            checked += 1
    assert checked == sum(path.startswith("/api/") for _, path, _ in operations(made))


def calls(dependant: Dependant) -> list[Any]:
    return [one.call for one in dependant.dependencies]


async def test_an_unknown_path_is_closed_without_a_token_and_missing_with_one(
    anonymous: httpx.AsyncClient, api: httpx.AsyncClient
) -> None:
    for path in ("/api/v1/nothing", "/nothing", "/api", "/docs/nothing", "/docs/assets"):
        unauthenticated(await anonymous.get(path))
        answer = await api.get(path, follow_redirects=False)
        assert answer.status_code in (404, 307), path
    answer = await api.get("/api/v1/nothing")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert "/docs" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path", ["/livez/../api/v1/tokens", "//api/v1/tokens", "/API/v1/tokens", "/docs/assets/../../api/v1/tokens"]
)
async def test_no_spelling_of_a_path_gets_around_the_guard(app: FastAPI, path: str) -> None:
    """The path goes to the application as it is, not as a client would tidy it up."""
    seen = await raw_status(app, path)
    assert seen in (401, 404), path


async def raw_status(app: FastAPI, path: str) -> int:
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"testserver")],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }
    await app(scope, receive, send)
    return statuses[0]


# --- scopes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needed", "method", "path", "body"),
    [
        (Scope.READ, "GET", CAMPAIGNS, None),
        (Scope.READ, "POST", f"{CAMPAIGNS}:plan", {"name": "a", "experiment": {"backend": "simulated", "model": "m"}}),
        (Scope.SUBMIT, "POST", CAMPAIGNS, {"name": "a", "experiment": {"backend": "simulated", "model": "m"}}),
        (Scope.SUBMIT, "POST", f"/api/v1/runs/run_{'0' * 32}:cancel", None),
        (Scope.WORK, "POST", "/api/v1/workers", {}),
        (Scope.WORK, "POST", f"/api/v1/workers/wrk_{'0' * 32}/claims", {}),
        (Scope.ADMIN, "GET", TOKENS, None),
        (Scope.ADMIN, "POST", TOKENS, {"name": "more power", "scopes": ["admin"]}),
    ],
)
async def test_a_token_without_the_scope_is_refused_and_with_it_alone_goes_through(
    api: httpx.AsyncClient, anonymous: httpx.AsyncClient, needed: Scope, method: str, path: str, body: Any
) -> None:
    others = await make_token(api, name="others", scopes=[scope.value for scope in Scope if scope is not needed])
    answer = await anonymous.request(method, path, json=body, headers=bearer(others["token"]))
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")
    assert answer.json()["code"] == ProblemCode.FORBIDDEN.value
    assert needed.value in answer.json()["detail"] and "'others'" in answer.json()["detail"]

    alone = await make_token(api, scopes=[needed.value])
    answer = await anonymous.request(method, path, json=body, headers=bearer(alone["token"]))
    assert answer.status_code not in (401, 403), answer.text


@pytest.mark.parametrize("kind", [kind for kind in TokenKind if kind is not TokenKind.OWNER])
async def test_a_kind_of_token_brings_its_scopes(api: httpx.AsyncClient, kind: TokenKind) -> None:
    made = await make_token(api, kind=kind.value)
    assert made["scopes"] == [scope.value for scope in DEFAULT_SCOPES[kind]]
    assert made["token"].startswith(f"lem_{kind.value}_")


# --- tokens that don't do ---------------------------------------------------------------------------------------------


async def test_each_useless_token_is_refused_with_its_own_sentence(
    api: httpx.AsyncClient, anonymous: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    good, revoked, expired = [await make_token(api, name=name) for name in ("good", "revoked", "expired")]
    assert (await api.delete(f"{TOKENS}/{revoked['id']}")).status_code == 204
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE api_tokens SET expires_at = now() WHERE id = :id"),
            {"id": parse_id(IdKind.TOKEN, expired["id"])},
        )

    async def sentence(token: str) -> str:
        return unauthenticated(await anonymous.get(CAMPAIGNS, headers=bearer(token)))

    wrong_letter = good["token"][:20] + ("a" if good["token"][20] != "a" else "b") + good["token"][21:]
    assert "mistyped" in await sentence(wrong_letter)
    assert "mistyped" in await sentence(good["token"][:-3])
    assert "mistyped" in await sentence("anything")
    assert "does not know" in await sentence(mint(TokenKind.USER))
    assert "revoked" in await sentence(revoked["token"])
    assert "expired" in await sentence(expired["token"])
    assert (await anonymous.get(CAMPAIGNS, headers=bearer(good["token"]))).status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic bGVtOmxlbQ==", "lem_user_x"])
async def test_an_authorization_that_is_no_bearer_token_is_refused(anonymous: httpx.AsyncClient, header: str) -> None:
    assert "Authorization: Bearer" in unauthenticated(await anonymous.get(CAMPAIGNS, headers={"Authorization": header}))


async def test_what_is_no_text_is_a_mistyped_token(anonymous: httpx.AsyncClient) -> None:
    answer = await anonymous.get(CAMPAIGNS, headers={b"Authorization": b"Bearer \xff\x00\xfe"})
    assert "mistyped" in unauthenticated(answer)


async def test_an_expiry_lies_so_many_days_ahead(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    made = await make_token(api, expires_in_days=7)
    async with engine.connect() as connection:
        days = await connection.execute(
            text("SELECT expires_at - created_at = interval '7 days' FROM api_tokens WHERE id = :id"),
            {"id": parse_id(IdKind.TOKEN, made["id"])},
        )
        assert days.scalar_one()


# --- the secret -------------------------------------------------------------------------------------------------------


async def test_a_secret_is_shown_once_and_stored_never(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    answer = await api.post(TOKENS, json={"name": "once"})
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    listed = await api.get(TOKENS)
    assert made["token"] not in listed.text
    [shown] = [one for one in listed.json()["items"] if one["id"] == made["id"]]
    assert shown == {key: value for key, value in made.items() if key != "token"}
    async with engine.connect() as connection:
        rows = (await connection.execute(text("SELECT row_to_json(t)::text FROM api_tokens t"))).scalars().all()
    assert made["token"].split("_")[2] not in "".join(rows)


async def test_tokens_are_listed_in_pages(api: httpx.AsyncClient) -> None:
    made = [(await make_token(api, name=f"token {number}"))["id"] for number in range(4)]
    found, cursor = [], None
    while True:
        page = (await api.get(TOKENS, params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
        assert len(page["items"]) <= 2
        found += [one["id"] for one in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found[1:] == made and len(found) == 5  # the owner's is the first


async def test_revoking_what_is_not_there_is_a_404_and_revoking_twice_is_fine(api: httpx.AsyncClient) -> None:
    answer = await api.delete(f"{TOKENS}/tok_{uuid4().hex}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    made = await make_token(api)
    assert [(await api.delete(f"{TOKENS}/{made['id']}")).status_code for _ in range(2)] == [204, 204]


# --- the owner's token ------------------------------------------------------------------------------------------------


async def test_the_owners_token_is_the_owners_alone_to_read(app: FastAPI, server_settings: Settings) -> None:
    path = server_settings.data_dir / OWNER_TOKEN_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == [OWNER_TOKEN_FILE]


async def test_the_owners_token_stays_over_restarts(app: FastAPI, engine: AsyncEngine, tmp_path: Any) -> None:
    path = await ensure_owner_token(engine, tmp_path)
    first = path.read_text()
    await ensure_owner_token(engine, tmp_path)
    assert path.read_text() == first


@pytest.mark.parametrize(
    "wrong", ["", "not a token\n", mint(TokenKind.OWNER) + "\n"], ids=["empty", "words", "unknown"]
)
async def test_the_owners_token_is_recreated_where_the_database_does_not_know_it(
    app: FastAPI, anonymous: httpx.AsyncClient, engine: AsyncEngine, server_settings: Settings, wrong: str
) -> None:
    path = server_settings.data_dir / OWNER_TOKEN_FILE
    path.write_text(wrong)
    await ensure_owner_token(engine, server_settings.data_dir)
    assert path.stat().st_mode & 0o777 == 0o600
    answer = await anonymous.get(TOKENS, headers=bearer(path.read_text().strip()))
    assert answer.status_code == 200


async def test_the_owners_token_is_recreated_after_it_was_revoked(
    api: httpx.AsyncClient, anonymous: httpx.AsyncClient, engine: AsyncEngine, server_settings: Settings
) -> None:
    [owner] = (await api.get(TOKENS)).json()["items"]
    assert (await api.delete(f"{TOKENS}/{owner['id']}")).status_code == 204
    unauthenticated(await api.get(TOKENS))
    path = await ensure_owner_token(engine, server_settings.data_dir)
    assert (await anonymous.get(TOKENS, headers=bearer(path.read_text().strip()))).status_code == 200


# --- use --------------------------------------------------------------------------------------------------------------


async def test_the_last_use_is_noted_at_most_once_a_minute(
    api: httpx.AsyncClient, anonymous: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    made = await make_token(api)
    assert made["last_used_at"] is None

    async def use_and_look() -> str:
        await anonymous.get(CAMPAIGNS, headers=bearer(made["token"]))
        [shown] = [one for one in (await api.get(TOKENS)).json()["items"] if one["id"] == made["id"]]
        noted: str = shown["last_used_at"]
        return noted

    first = await use_and_look()
    assert first is not None
    assert await use_and_look() == first
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE api_tokens SET last_used_at = last_used_at - interval '2 minutes'"))
    assert await use_and_look() > first
