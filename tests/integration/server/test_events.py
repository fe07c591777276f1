"""Event streams: complete, in order, resumable, and over when nothing more will happen."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.sse import ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import claim, complete, move, move_in, run_ids, set_progress, submit
from lem_domain.ids import IdKind, parse_id
from lem_domain.states import ActorKind
from lem_server.context import AppContext
from lem_server.events import queries
from lem_server.events.queries import Followed
from lem_server.events.stream import BEGINNING, follow

pytestmark = pytest.mark.anyio

LONG_S = 600.0


class Event(NamedTuple):
    """One event of a stream."""

    type: str
    id: str | None
    data: dict[str, Any]


def events_of(body: str) -> list[Event]:
    """The events of a whole stream, comments left out."""
    found = []
    for block in body.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        if fields:
            found.append(Event(fields["event"], fields.get("id"), json.loads(fields["data"])))
    return found


def event_of(sent: ServerSentEvent) -> Event:
    return Event(sent.event or "", sent.id, json.loads(sent.raw_data or "null"))


async def read(api: httpx.AsyncClient, address: str, last_event_id: str | None = None) -> list[Event]:
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    answer = await api.get(address, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events_of(answer.text)


class Stream:
    """An open stream whose events a test takes one by one."""

    def __init__(self, context: AppContext, followed: Followed) -> None:
        self._events: AsyncIterator[ServerSentEvent] = follow(
            context.engine, context.hub, context.settings.lease_terms, followed, BEGINNING
        )

    async def next(self) -> Event:
        async with asyncio.timeout(LONG_S):
            return event_of(await anext(self._events))

    async def until(self, kind: str, **values: object) -> Event:
        """The next event of a kind whose data has these values; others are passed over."""
        while True:
            event = await self.next()
            if event.type == kind and all(event.data.get(name) == value for name, value in values.items()):
                return event

    async def has_ended(self) -> bool:
        async with asyncio.timeout(LONG_S):
            return await anext(self._events, None) is None


@pytest.fixture
def context(app: FastAPI) -> AppContext:
    found: AppContext = app.state.context
    return found


def followed(campaign: dict[str, Any], run_id: str | None = None) -> Followed:
    run = None if run_id is None else parse_id(IdKind.RUN, run_id)
    return Followed(parse_id(IdKind.CAMPAIGN, campaign["id"]), run)


async def settled_campaign(api: httpx.AsyncClient, engine: AsyncEngine) -> dict[str, Any]:
    """Two runs: one completed, one failed."""
    view = await submit(api, execution={"cycles": 2})
    first, second = await run_ids(api, view)
    await complete(engine, first)
    await claim(engine, second)
    await move(engine, second, "failed", reason="out_of_memory", message="too big")
    return view


async def test_the_stream_of_a_settled_campaign_reports_everything_and_ends(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    view = await settled_campaign(api, engine)
    first, second = await run_ids(api, view)
    events = await read(api, f"/api/v1/campaigns/{view['id']}/events")
    assert (events[0].type, events[0].data["settled"]) == ("campaign", True)
    assert (events[-1].type, events[-1].data["settled"]) == ("campaign", True)
    assert events[-1].data["campaign"] == (await api.get(f"/api/v1/campaigns/{view['id']}")).json()
    transitions = [event.data for event in events if event.type == "transition"]
    assert [(one["run_id"], one["target"]) for one in transitions] == [
        (first, "queued"),
        (second, "queued"),
        (first, "initialised"),
        (first, "running"),
        (first, "completed"),
        (second, "initialised"),
        (second, "failed"),
    ]
    assert (transitions[-1]["reason"], transitions[-1]["message"], transitions[-1]["cycle"]) == (
        "out_of_memory",
        "too big",
        2,
    )


async def test_a_stream_continues_after_any_event_without_gap_or_repetition(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    address = f"/api/v1/campaigns/{(await settled_campaign(api, engine))['id']}/events"
    whole = [event for event in await read(api, address) if event.type == "transition"]
    assert all(re.match(r"^[0-9]+-[0-9]+$", event.id or "") for event in whole)
    for place, event in enumerate(whole):
        rest = [one for one in await read(api, address, event.id) if one.type == "transition"]
        assert rest == whole[place + 1 :]


async def test_the_stream_of_a_run_reports_that_run_alone(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    view = await submit(api, execution={"cycles": 2})
    first, _second = await run_ids(api, view)
    await complete(engine, first)
    events = await read(api, f"/api/v1/runs/{first}/events")
    assert {event.data["run_id"] for event in events if event.type == "transition"} == {first}
    assert [event.data["target"] for event in events if event.type == "transition"][-1] == "completed"
    assert (events[-1].type, events[-1].data["settled"]) == ("campaign", False)


@pytest.mark.parametrize("wrong", ["x", "1-", "99999999999999999999-1"])
async def test_an_unknown_last_event_is_refused_before_the_stream_begins(api: httpx.AsyncClient, wrong: str) -> None:
    view = await submit(api)
    answer = await api.get(f"/api/v1/campaigns/{view['id']}/events", headers={"Last-Event-ID": wrong})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_changes_are_reported_as_they_happen_until_the_campaign_settles(
    api: httpx.AsyncClient, engine: AsyncEngine, context: AppContext
) -> None:
    view = await submit(api)
    (run_id,) = await run_ids(api, view)
    stream = Stream(context, followed(view))
    start = await stream.next()
    assert (start.type, start.data["settled"], start.data["campaign"]["runs"]["queued"]) == ("campaign", False, 1)
    await stream.until("transition", target="queued")
    await claim(engine, run_id)
    await stream.until("transition", target="initialised")
    counts = await stream.until("campaign")
    assert (counts.data["campaign"]["runs"]["initialised"], counts.data["settled"]) == (1, False)
    await move(engine, run_id, "failed", reason="inference")
    await stream.until("transition", target="failed")
    last = await stream.until("campaign")
    assert (last.data["settled"], last.data["campaign"]["state"]) == (True, "completed")
    assert await stream.has_ended()


async def test_progress_is_reported_when_it_changed(
    api: httpx.AsyncClient, engine: AsyncEngine, context: AppContext
) -> None:
    view = await submit(api)
    (run_id,) = await run_ids(api, view)
    attempt = await claim(engine, run_id, progress={"phase": "load"})
    stream = Stream(context, followed(view, run_id))
    told = await stream.until("progress")
    assert (told.data["run_id"], told.data["attempt_id"], told.data["progress"]["phase"]) == (run_id, attempt, "load")
    assert told.id is None
    await set_progress(engine, run_id, {"phase": "warmup"})
    told = await stream.until("progress")
    assert told.data["progress"]["phase"] == "warmup"


async def test_a_transition_of_a_slow_transaction_is_not_skipped(
    api: httpx.AsyncClient, engine: AsyncEngine, context: AppContext
) -> None:
    """The slow one began first, so its entry stands before the quick one's: telling that at once would skip it."""
    view = await submit(api, execution={"cycles": 2})
    slow, quick = await run_ids(api, view)
    stream = Stream(context, followed(view))
    for _ in range(2):
        await stream.until("transition", target="queued")
    async with engine.begin() as connection:
        await move_in(connection, slow, "cancelled", actor=ActorKind.USER)
        await move(engine, quick, "cancelled", actor=ActorKind.USER)
        waiting = asyncio.create_task(stream.until("transition"))
        async with engine.connect() as looking:
            seen = await queries.transitions(looking, followed(view), after=BEGINNING, limit=10)
        assert [(row.event.target, row.stable) for row in seen] == [
            ("queued", True),
            ("queued", True),
            ("cancelled", False),
        ]
        assert not waiting.done()
    told = [(await waiting).data["run_id"], (await stream.until("transition")).data["run_id"]]
    assert told == [slow, quick]
    assert (await stream.until("campaign", settled=True)).data["campaign"]["runs"]["cancelled"] == 2
    assert await stream.has_ended()


async def test_more_transitions_than_one_statement_reads_are_all_reported(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    view = await submit(api, execution={"cycles": 600})
    await api.post(f"/api/v1/campaigns/{view['id']}:cancel")
    events = await read(api, f"/api/v1/campaigns/{view['id']}/events")
    told = [event.data["target"] for event in events if event.type == "transition"]
    assert told == ["queued"] * 600 + ["cancelled"] * 600


async def test_a_stream_holds_no_connection_while_nothing_happens(api: httpx.AsyncClient, context: AppContext) -> None:
    streams = [Stream(context, followed(await submit(api))) for _ in range(3)]
    for stream in streams:
        await stream.until("transition", target="queued")
    waiting = [asyncio.create_task(stream.until("transition")) for stream in streams]
    async with asyncio.timeout(LONG_S):
        while context.engine.pool.checkedout():  # type: ignore[attr-defined]  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    context.hub.release()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_stream_ends_when_the_server_shuts_down(api: httpx.AsyncClient, context: AppContext) -> None:
    stream = Stream(context, followed(await submit(api)))
    await stream.until("transition", target="queued")
    ended = asyncio.create_task(stream.has_ended())
    context.hub.release()
    assert await ended


class Server:
    """The application under a real uvicorn on a port of its own, in the test's own loop."""

    def __init__(self, app: FastAPI) -> None:
        # The fixture has started the application already.
        config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=60)
        self.server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    async def __aenter__(self) -> Server:
        self._task = asyncio.create_task(self.server._serve(sockets=[self._socket]))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.should_exit = True
        async with asyncio.timeout(LONG_S):
            await self._task


async def test_open_streams_do_not_hold_up_the_shutdown_and_a_client_may_leave(
    api: httpx.AsyncClient, app: FastAPI, context: AppContext
) -> None:
    view = await submit(api)
    async with (
        Server(app) as server,
        httpx.AsyncClient(base_url=server.address, headers=dict(api.headers), timeout=LONG_S) as client,
    ):
        address = f"/api/v1/campaigns/{view['id']}/events"
        async with client.stream("GET", address, headers={"Host": "localhost"}) as leaving:
            assert "event: campaign" in await anext(leaving.aiter_lines())
        async with client.stream("GET", address, headers={"Host": "localhost"}) as staying:
            lines = staying.aiter_lines()
            assert "event: campaign" in await anext(lines)
            context.hub.release()
            async with asyncio.timeout(LONG_S):
                rest = [line async for line in lines]
    assert any("queued" in line for line in rest)
    gc.collect()
    assert not context.hub.followed
