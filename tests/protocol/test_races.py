"""Requests that meet, in every order of their statements, over connections that hold and over such that break."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from factories.faulty_connections import Request, play
from factories.protocol_calls import OK, Answer, Call, Server
from factories.protocol_races import PAIRS, TRIPLES, Story
from factories.protocol_stage import Stage, Turns, of_three, of_two, stage
from factories.protocol_world import Machine, Seed, World

pytestmark = pytest.mark.anyio

HOLDING, BREAKING = 0.0, (0.05, 0.10)
"""Of the statements and commits, so many meet a connection that breaks."""
SAMPLED = {HOLDING: 24, **dict.fromkeys(BREAKING, 48)}
"""Of the orders of two requests, one in so many is played, by the rate of broken connections."""
AT_LENGTH = {HOLDING: 1, **dict.fromkeys(BREAKING, 5)}
"""In the slow suite."""
STRIDE = 480
"""Of the orders of three requests, one in so many is played; eight times as many in the slow suite."""
LEAST = 1500

rates = pytest.mark.parametrize("rate", (HOLDING, *BREAKING))
pairs = pytest.mark.parametrize("name", PAIRS)
triples = pytest.mark.parametrize("name", TRIPLES)


async def play_all(where: Stage, name: str, tell: Callable[[], Story], orders: Iterable[Turns], rate: float) -> None:
    """Every order in a world of its own; nothing may be wrong after any."""
    for turns in orders:
        played = await where.play(tell, turns, fault_rate=rate, seed=f"{name}:{turns}:{rate}")
        assert played.wrong == [], f"{name}, turns {turns}, fault rate {rate}"
    assert where.control.deadlocks == 0


async def test_there_are_enough_orders_of_two_requests_also_over_broken_connections(database_url: URL) -> None:
    async with stage(database_url) as where:
        orders = {name: list(of_two(await where.steps(tell))) for name, tell in PAIRS.items()}
    assert all(len(set(found)) == len(found) for found in orders.values())
    for share in AT_LENGTH.values():
        assert sum(len(found[::share]) for found in orders.values()) >= LEAST


@pairs
async def test_two_requests_that_meet_do_no_harm(database_url: URL, name: str) -> None:
    async with stage(database_url) as where:
        orders = list(of_two(await where.steps(PAIRS[name])))
        await play_all(where, name, PAIRS[name], orders[:: SAMPLED[HOLDING]], HOLDING)
        assert where.control.faults == 0
        for rate in BREAKING:
            await play_all(where, name, PAIRS[name], orders[:: SAMPLED[rate]], rate)


@pytest.mark.slow
@rates
@pairs
async def test_two_requests_that_meet_do_no_harm_at_length(database_url: URL, name: str, rate: float) -> None:
    async with stage(database_url) as where:
        orders = list(of_two(await where.steps(PAIRS[name])))
        await play_all(where, name, PAIRS[name], orders[:: AT_LENGTH[rate]], rate)
        assert rate > 0 or where.control.faults == 0


@triples
async def test_three_requests_that_meet_do_no_harm(database_url: URL, name: str) -> None:
    async with stage(database_url) as where:
        orders = of_three(await where.steps(TRIPLES[name]), stride=STRIDE)
        await play_all(where, name, TRIPLES[name], orders, HOLDING)


@pytest.mark.slow
@rates
@triples
async def test_three_requests_that_meet_do_no_harm_at_length(database_url: URL, name: str, rate: float) -> None:
    async with stage(database_url) as where:
        orders = of_three(await where.steps(TRIPLES[name]), stride=STRIDE // 8)
        await play_all(where, name, TRIPLES[name], orders, rate)


async def test_a_deadlock_is_answered_as_busy_and_the_request_sent_again_is_answered(database_url: URL) -> None:
    """The protocol has none; one that is made by hand shows that they would be counted and what they would cost."""

    def locking(server: Server, *ids: object) -> Call:
        async def call() -> Answer:
            async with server.engine.begin() as connection:
                for one in ids:
                    await connection.execute(text("SELECT 1 FROM runs WHERE id = :id FOR UPDATE"), {"id": one})
            return Answer(OK)

        return call

    world = World([Seed(), Seed()], [Machine()])
    first, second = (seed.run for seed in world.seeds)
    async with stage(database_url) as where:
        await where.lab.seed(world)
        requests = [
            Request("there", locking(where.servers[0], first, second), where.control),
            Request("back", locking(where.servers[1], second, first), where.control),
        ]
        answers = await play(requests, [(0, 1), (1, 1), (0, None), (1, None)])
        assert [answer.code for answer in answers] == [OK, OK]
        assert sorted(request.sendings for request in requests) == [1, 2]
        assert where.control.deadlocks == 1
