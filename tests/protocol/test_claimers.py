"""Many claimers at a long queue: each run once, in order, nobody's run overlooked."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from bisect import bisect
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from factories.protocol_calls import NOTHING, OK, Server, answered
from factories.protocol_invariants import violations
from factories.protocol_world import Laboratory, Machine, World, laboratory
from lem_domain.ids import IdKind, parse_id
from lem_server.database.engine import make_engine

pytestmark = pytest.mark.anyio

CLAIMERS = 32
PRIORITIES = (0, 7, 3)
"""Of the campaigns in the order of their ids."""

_QUEUE = """
    SELECT set_config('lem.actor', 'user', true), set_config('lem.actor_name', 'tester', true);
    INSERT INTO runs (id, campaign_id, experiment_id, cycle, position, backend, device_count, priority, retries_left,
                      losses_left)
    SELECT gen_random_uuid(), '{campaign}', '{campaign}', n, n, '{backend}', CASE WHEN n % 4 = 0 THEN 2 ELSE 1 END,
           {priority}, 0, 3
      FROM generate_series(1, {count}) AS n;
"""
_ENDS = """
    CREATE FUNCTION protocol_end(attempt uuid) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        PERFORM set_config('lem.actor', 'worker', true), set_config('lem.actor_name', 'tester', true);
        UPDATE attempts SET ended_at = clock_timestamp(), outcome = 'cancelled' WHERE id = attempt;
        UPDATE runs SET state = 'cancelled' WHERE current_attempt = attempt;
        DELETE FROM leases WHERE attempt_id = attempt;
    END $$
"""
_CLAIMED = """
    SELECT t.run_id FROM run_transitions t WHERE t.target = 'initialised' ORDER BY t.id
"""


class Claimed(NamedTuple):
    """One claim: what it got, and the instants of this process at which it was sent and answered."""

    run: UUID
    sent: int
    answered: int


class Run(NamedTuple):
    """A queued run, compared by its place in the order."""

    priority: int
    campaign: UUID
    position: int
    id: UUID
    devices: int


async def queue(lab: Laboratory, count: int, machines: Sequence[Machine]) -> list[World]:
    """Campaigns that hold so many runs together, of one backend."""
    first = World([], machines, priority=PRIORITIES[0])
    worlds = [first, *(World([], (), priority=priority, backend=first.backend) for priority in PRIORITIES[1:])]
    await lab.seed(*worlds)
    shares = [count // 3, count // 3, count - 2 * (count // 3)]
    for world, share in zip(worlds, shares, strict=True):
        await lab.connection.execute(
            _QUEUE.format(campaign=world.campaign, backend=world.backend, priority=world.priority, count=share)
        )
    await lab.connection.execute("ANALYZE runs")
    await lab.connection.execute(_ENDS)
    return worlds


async def claim_until_nothing_is_left(
    server: Server, machine: Machine, instants: itertools.count[int]
) -> list[Claimed]:
    """One claimer: claims and ends at once, until nothing fits any more."""
    got = []
    while True:
        sent = next(instants)
        answer = await answered(server.claim(machine))
        if answer.code == NOTHING:
            return got
        assert answer.code == OK, answer
        got.append(Claimed(parse_id(IdKind.RUN, answer.body.run_id), sent, next(instants)))
        async with server.engine.begin() as connection:
            await connection.execute(
                text("SELECT protocol_end(:id)"), {"id": parse_id(IdKind.ATTEMPT, answer.body.attempt_id)}
            )


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_each_run_is_claimed_once_and_in_order(
    database_url: URL, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    machines = [
        Machine(devices=tuple(f"SIM-{number}-{place}" for place in range(2 if number % 4 == 0 else 1)))
        for number in range(CLAIMERS)
    ]
    async with laboratory(database_url) as lab:
        worlds = await queue(lab, count, machines)
        engines = [make_engine(database_url, pool_size=CLAIMERS // 2) for _ in range(2)]
        servers = [Server(engine) for engine in engines]
        instants, began = itertools.count(), time.perf_counter()
        claimed = await asyncio.gather(
            *(
                claim_until_nothing_is_left(servers[number % 2], machine, instants)
                for number, machine in enumerate(machines)
            )
        )
        seconds = time.perf_counter() - began
        for engine in engines:
            await engine.dispose()
        facts = await lab.facts([world.campaign for world in worlds], [machine.id for machine in machines])
        in_log = [row["run_id"] for row in await lab.connection.fetch(_CLAIMED)]
        rows = await lab.connection.fetch("SELECT priority, campaign_id, position, id, device_count FROM runs")
    with capsys.disabled():
        sys.stdout.write(
            f"\n{count} claims by {CLAIMERS} claimers, each ended at once: {count / seconds:.0f} a second\n"
        )
    runs = {row["id"]: Run(-row["priority"], *list(row)[1:]) for row in rows}
    assert violations(facts) == []
    check_once(claimed, runs)
    for machine, sequence in zip(machines, claimed, strict=True):
        places = [runs[one.run] for one in sequence]
        assert places == sorted(places), "a claimer went back in the order"
        assert all(run.devices <= len(machine.devices) for run in places)
    check_nothing_is_overlooked(machines, claimed, runs)
    for devices in (1, 2):
        check_places([runs[run] for run in in_log if runs[run].devices == devices])


def check_once(claimed: Sequence[Sequence[Claimed]], runs: dict[UUID, Run]) -> None:
    """Every run was claimed, by one claimer, once."""
    found = [one.run for sequence in claimed for one in sequence]
    assert len(found) == len(set(found)) == len(runs)


def check_nothing_is_overlooked(
    machines: Sequence[Machine], claimed: Sequence[Sequence[Claimed]], runs: dict[UUID, Run]
) -> None:
    """Nobody got a run while one that comes before it and fits was free from his sending to his answer.

    One whose own claim was sent after the answer was.
    """
    sent = sorted((one.sent, runs[one.run]) for sequence in claimed for one in sequence)
    for devices in (1, 2):
        free = {instant: run for instant, run in sent if run.devices <= devices}
        instants = sorted(free)
        first_from = list(itertools.accumulate((free[instant] for instant in reversed(instants)), min))[::-1]
        for machine, sequence in zip(machines, claimed, strict=True):
            if len(machine.devices) != devices:
                continue
            for one in sequence:
                first_free = first_from[bisect(instants, one.answered) :][:1]
                assert [runs[one.run]] < first_free or not first_free, "a run that comes first was overlooked"


def check_places(order: Sequence[Run]) -> None:
    """Among the runs that the same claimers may take, none waits longer than all claimers that were under way."""
    place = {run: number for number, run in enumerate(sorted(order))}
    assert max(abs(place[run] - number) for number, run in enumerate(order)) <= CLAIMERS
