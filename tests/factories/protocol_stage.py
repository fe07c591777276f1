"""A stage for stories: plays the requests of one in a given order of their steps and says what is wrong afterwards."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from sqlalchemy.engine import URL

from factories.faulty_connections import Control, Request, play, scripted_engines
from factories.protocol_calls import Server
from factories.protocol_invariants import violations
from factories.protocol_promises import Context, broken
from factories.protocol_races import Story
from factories.protocol_world import Facts, Laboratory, laboratory

Turns = tuple[tuple[int, int | None], ...]
"""Whose turn it is, and the step before which he stops; None lets him go to his answer."""


class Played(NamedTuple):
    """What came of one interleaving."""

    wrong: list[str]
    steps: list[int]


class Stage:
    """Plays stories on one database, each request on a replica of its own."""

    def __init__(self, lab: Laboratory, control: Control, servers: Sequence[Server]) -> None:
        self.lab = lab
        self.control = control
        self.servers = servers

    async def play(self, tell: Callable[[], Story], turns: Turns, *, fault_rate: float = 0.0, seed: str = "") -> Played:
        """One interleaving in a new world, and everything that is wrong after it."""
        story = tell()
        await self.lab.seed(story.world)
        requests = []
        for part, server in zip(story.parts, self.servers, strict=False):
            server.backend = story.world.backend
            requests.append(Request(part.name, part.call(server), self.control, fault_rate=fault_rate, seed=seed))
        answers = await play(requests, turns)
        facts = await self._facts(story)
        await self.lab.clear()
        wrong = violations(facts)
        for part, request, answer in zip(story.parts, requests, answers, strict=True):
            context = Context(request.sent_after, frozenset(one.name for one in story.parts))
            wrong += [f"{part.name}: {one}" for one in broken(part.promise(context), facts, answer)]
        return Played(wrong, [request.steps for request in requests])

    async def steps(self, tell: Callable[[], Story]) -> list[int]:
        """The most steps that each request takes when they come one after another, in any order."""
        orders = itertools.permutations(range(len(tell().parts)))
        taken = [(await self.play(tell, tuple((one, None) for one in order))).steps for order in orders]
        return [max(counts) for counts in zip(*taken, strict=True)]

    async def _facts(self, story: Story) -> Facts:
        return await self.lab.facts([story.world.campaign], [machine.id for machine in story.world.machines])


@asynccontextmanager
async def stage(url: URL) -> AsyncIterator[Stage]:
    """A stage on a fresh database, with three replicas."""
    async with laboratory(url) as lab:
        control = Control(lab.connection)
        async with scripted_engines(url, control, 3) as engines:
            yield Stage(lab, control, [Server(engine) for engine in engines])


def of_two(steps: Sequence[int]) -> Iterator[Turns]:
    """One stops before each of its steps, the other then before each of its own or not at all; and the other way."""
    for one, other in ((0, 1), (1, 0)):
        yield ((one, None), (other, None))
        for mine in range(1, steps[one]):
            for theirs in (*range(1, steps[other]), None):
                yield ((one, mine), (other, theirs), (one, None), (other, None))


def of_three(steps: Sequence[int], *, stride: int) -> Iterator[Turns]:
    """Each stops once, in every order; of all these every so many."""
    every = (
        (*((who, stops[who]) for who in order), *((who, None) for who in order))
        for order in itertools.permutations(range(3))
        for stops in itertools.product(*(range(1, count) for count in steps))
    )
    return itertools.islice(every, 0, None, stride)
