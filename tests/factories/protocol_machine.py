"""A Hypothesis machine that asks the real services and the pure model the same and compares everything after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.engine import URL

from factories import protocol_model as design
from factories.protocol_calls import OK, Answer, Call, Server, answered, holder_of
from factories.protocol_invariants import violations
from factories.protocol_model import Model, Who
from factories.protocol_world import CHUNKS, PROCESS, Facts, Laboratory, Machine, Seed, World, laboratory
from lem_domain.ids import IdKind, parse_id
from lem_domain.states import FailureReason
from lem_server.database.engine import make_engine

T = TypeVar("T")

AGES: dict[design.Lateness, float] = {"late": 100.0, "expired": 400.0}
ENDS: dict[design.Outcome, tuple[str, ...]] = {
    "failed": ("out_of_memory", "inference"),
    "interrupted": ("worker_shutdown", "user_paused"),
    "cancelled": ("user_cancelled",),
}
GAP_S = 1000.0
"""Longer than any example takes, and over when devices have rested for an hour."""
ANY = st.integers(0, 1_000)
"""Chooses one of however many there are."""
LIVE = st.sampled_from((True, True, False))
"""Whether it is about an attempt that is leased, or about any."""


class Bench(NamedTuple):
    """One database and one loop for all examples."""

    runner: asyncio.Runner
    lab: Laboratory
    server: Server

    def run(self, work: Awaitable[T]) -> T:
        """Do it now."""

        async def wait() -> T:
            return await work

        return self.runner.run(wait())


@contextmanager
def bench(url: URL) -> Iterator[Bench]:
    """A bench on a fresh database."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def begin() -> Bench:
            lab = await stack.enter_async_context(laboratory(url))
            engine = make_engine(url, pool_size=2)
            stack.push_async_callback(engine.dispose)
            return Bench(runner, lab, Server(engine))

        yield runner.run(begin())
        runner.run(stack.aclose())


class Protocol(RuleBasedStateMachine):
    """Three workers, two of which share a device, and four campaigns of two or three runs."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.model = Model()
        shared = f"SIM-{uuid4().hex[:12]}"
        self.machines = [
            Machine(devices=(shared,)),
            Machine(devices=(f"SIM-{uuid4().hex[:12]}", f"SIM-{uuid4().hex[:12]}")),
            Machine(devices=(shared, f"SIM-{uuid4().hex[:12]}")),
        ]
        self.old: list[Machine] = []
        self.claims: list[UUID] = []
        self.campaigns: list[UUID] = []
        self.steps = 0

    @initialize()
    def submit(self) -> None:
        """Campaigns of several priorities and placements, and runs of one and of two devices."""
        shapes = (
            (0, 1, (1, 2), "any", None),
            (5, 0, (1, 1), "same_device", GAP_S),
            (0, 2, (1, 2, 1), "same_device", None),
            (0, 1, (2, 1), "same_model", GAP_S),
        )
        worlds = [
            World(
                [Seed(device_count=devices, retries=retries) for devices in sizes],
                (),
                priority=priority,
                placement=placement,
                gap_s=gap_s,
            )
            for priority, retries, sizes, placement, gap_s in shapes
        ]
        for world in worlds[1:]:
            world.backend = worlds[0].backend
        self.bench.server.backend = worlds[0].backend
        self.bench.run(self.bench.lab.seed(*worlds))
        for world, (priority, retries, _, placement, gap_s) in zip(worlds, shapes, strict=True):
            campaign = design.Campaign(world.campaign, priority, retries, placement=placement, gap=gap_s is not None)
            self.model.submit(
                campaign,
                [
                    design.Run(seed.run, campaign, position, seed.device_count, retries)
                    for position, seed in enumerate(world.seeds)
                ],
            )
            self.campaigns.append(world.campaign)
        for machine in self.machines:
            self._same(self.bench.server.register(machine), self.model.register(_who(machine), machine.devices))
            self.claim(self.machines.index(machine), 2, "new")

    # --- claims ------------------------------------------------------------------------------------------------------

    @rule(which=ANY, offered=st.sampled_from((1, 2, 2)), what=st.sampled_from(("new", "new", "new", "again", "old")))
    def claim(self, which: int, offered: int, what: str) -> None:
        """A worker asks for work, or sends a claim of before again; or a boot of before does."""
        machine = self._machine(which, stale=what == "old")
        if what == "again" and self.claims:
            self._claim(machine, self.claims[which % len(self.claims)], offered)
        else:
            self.claims.append(uuid4())
            self._claim(machine, self.claims[-1], offered)

    # --- attempts -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.attempts)
    @rule(which=ANY, whose=ANY, live=LIVE, what=st.sampled_from(("start", "chunk", "marker", "beat", "all", "all")))
    def work(self, which: int, whose: int, live: bool, what: str) -> None:
        """A worker does something for an attempt, or everything but its end."""
        attempt, machine = self._attempt(which, whose, live=live)
        if what in ("start", "all"):
            self._start(attempt, machine)
        if what == "chunk":
            self._put_chunk(attempt, machine, whose % 3)
        if what == "all":
            for seq in range(3):
                self._put_chunk(attempt, machine, seq)
        if what in ("marker", "all"):
            call = self.bench.server.put_completion(holder_of(attempt, machine))
            self._same(call, self.model.put_completion(_who(machine), attempt))
        if what == "beat":
            self._beat(machine, list(self.model.attempts)[-8:])

    @precondition(lambda self: self.model.attempts)
    @rule(
        which=ANY, whose=ANY, live=LIVE, what=st.sampled_from(("complete", "all", "failed", "interrupted", "cancelled"))
    )
    def finish(self, which: int, whose: int, live: bool, what: Any) -> None:
        """An attempt ends, with a result or without one."""
        attempt, machine = self._attempt(which, whose, live=live)
        if what == "all":
            self.work(which, whose, live, "all")
        if what in ("complete", "all"):
            call = self.bench.server.complete(holder_of(attempt, machine))
            self._same(call, self.model.complete(_who(machine), attempt))
        else:
            reason = ENDS[what][which % len(ENDS[what])]
            call = self.bench.server.end(holder_of(attempt, machine), what, FailureReason(reason))
            self._same(call, self.model.end(_who(machine), attempt, what, reason))

    # --- time ---------------------------------------------------------------------------------------------------------

    @rule(which=ANY, what=st.sampled_from(("late", "expired", "mark_suspects", "expire", "lose", "lose_all", "rest")))
    def time_goes_by(self, which: int, what: str) -> None:
        """Devices rest; nothing is heard of an attempt; maintenance looks for what is late, and ends what is lost."""
        if what == "rest":
            self.bench.run(self.bench.lab.rest())
            self.model.rest()
            return
        if what == "lose_all":
            for _ in range(design.LOSSES + 1):
                self.time_goes_by(which, "lose")
                self.claim(which, 2, "new")
            return
        age = "expired" if what == "lose" else what
        if age in AGES and self._leased():
            attempt, _ = self._attempt(which, 0, live=True)
            self.bench.run(self.bench.lab.age(attempt, AGES[age]))
            self.model.age(attempt, age)
        if what in ("expire", "lose"):
            assert self._answer(self.bench.server.expire()) == (OK, self.model.expire())
        elif what == "mark_suspects":
            assert self._answer(self.bench.server.mark_suspects()) == (OK, self.model.mark_suspects())

    # --- everybody else -----------------------------------------------------------------------------------------------

    @rule(which=ANY, what=st.sampled_from(("boot", "register", "register", "leave", "old_leaves", "drain")))
    def workers_come_and_go(self, which: int, what: str) -> None:
        """A worker starts anew, says again that it is there, leaves, or is drained by a user."""
        which %= len(self.machines)
        if what == "boot":
            self.old.append(self.machines[which])
            self.machines[which] = replace(self.machines[which], boot=uuid4())
        machine = self._machine(which, stale=what == "old_leaves")
        if what in ("boot", "register"):
            self._same(self.bench.server.register(machine), self.model.register(_who(machine), machine.devices))
        elif what == "drain":
            self._same(self.bench.server.drain(machine), self.model.drain(machine.id))
        else:
            self._same(self.bench.server.sign_off(machine), self.model.sign_off(_who(machine)))

    @rule(which=ANY, what=st.sampled_from(("pause", "stop", "resume", "resume", "retry", "retry_failed", "cancel")))
    def users_steer(self, which: int, what: str) -> None:
        """A user pauses, resumes, tries again or cancels."""
        campaign, run = self.campaigns[which % len(self.campaigns)], self._run(which)
        server, model = self.bench.server, self.model
        if what == "resume":
            self._same(server.resume(campaign), model.resume(campaign))
        elif what == "retry":
            self._same(server.retry_run(run), model.retry_run(run))
        elif what == "retry_failed":
            self._same(server.retry_failed(campaign), model.retry_failed(campaign))
        elif what != "cancel":
            live_runs: Any = "stop" if what == "stop" else "finish"
            self._same(server.pause(campaign, live_runs), model.pause(campaign, live_runs))
        elif which % 5 == 0:
            self._same(server.cancel(campaign), model.cancel(campaign))
        else:
            self._same(server.cancel_run(run), model.cancel_run(run))

    # --- what is so after each step -----------------------------------------------------------------------------------

    @invariant()
    def the_database_is_as_the_model_says(self) -> None:
        """Everything that the protocol knows is compared."""
        self.steps += 1
        if not self.campaigns:
            return
        facts = self.bench.run(self.bench.lab.facts(self.campaigns, [machine.id for machine in self.machines]))
        assert told(facts) == expected(self.model)
        assert violations(facts) == []

    def teardown(self) -> None:
        """The next example has the database to itself."""
        self.bench.run(self.bench.lab.clear())

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _answer(self, call: Call) -> Answer:
        return self.bench.run(answered(call))

    def _same(self, call: Call, code: str) -> None:
        answer = self._answer(call)
        assert answer.code == code, answer

    def _start(self, attempt: UUID, machine: Machine) -> None:
        call = self.bench.server.start(holder_of(attempt, machine))
        self._same(call, self.model.start(_who(machine), attempt))

    def _put_chunk(self, attempt: UUID, machine: Machine, seq: int) -> None:
        answer = self._answer(self.bench.server.put_chunk(holder_of(attempt, machine), CHUNKS[seq]))
        code, body = self.model.put_chunk(_who(machine), attempt, seq)
        assert (answer.code, answer.body if code == OK else None) == (code, body)

    def _beat(self, machine: Machine, attempts: list[UUID]) -> None:
        answer = self._answer(self.bench.server.beat(machine, attempts))
        code, verdicts = self.model.beat(_who(machine), attempts)
        assert (answer.code, answer.body if code == OK else ()) == (code, verdicts)

    def _claim(self, machine: Machine, claim: UUID, offered: int) -> None:
        devices = machine.devices[-offered:]
        expected = self.model.claim(_who(machine), claim, devices)
        answer = self._answer(self.bench.server.claim(machine, claim, devices))
        assert answer.code == expected.code, answer
        if expected.run is None:
            return
        assert parse_id(IdKind.RUN, answer.body.run_id) == expected.run.id
        assert answer.body.devices == expected.devices
        self.model.made(parse_id(IdKind.ATTEMPT, answer.body.attempt_id), _who(machine), claim, expected)

    def _machine(self, which: int, *, stale: bool = False) -> Machine:
        boots = self.old if stale and self.old else self.machines
        return boots[which % len(boots)]

    def _attempt(self, which: int, whose: int, *, live: bool) -> tuple[UUID, Machine]:
        """An attempt, and its own holder two times of three, else anybody."""
        leased = self._leased()
        among = leased if live and leased else list(self.model.attempts.values())
        attempt = among[which % len(among)]
        if whose % 3 < 2:
            return attempt.id, Machine(attempt.by.worker, attempt.by.boot, ("unused",))
        anybody = [*self.machines, *self.old]
        return attempt.id, anybody[whose % len(anybody)]

    def _leased(self) -> list[design.Attempt]:
        return [attempt for attempt in self.model.attempts.values() if attempt.lease is not None]

    def _run(self, which: int) -> UUID:
        """A run; two times of three one that was claimed before."""
        tried = [run.id for run in self.model.runs.values() if run.attempts]
        among = tried if tried and which % 3 else list(self.model.runs)
        return among[which % len(among)]


def _who(machine: Machine) -> Who:
    return Who(machine.id, machine.boot)


def told(facts: Facts) -> dict[str, Any]:
    """What the database says, in the words of `expected`."""
    return {
        "campaigns": facts.campaigns,
        "places": facts.places,
        "workers": {one.id: (one.boot_id, one.draining, one.signed_off) for one in facts.workers.values()},
        "runs": {
            run.id: (
                *(run.state, run.reason, run.retries_left, run.losses_left),
                *(run.attempts, run.current_attempt, run.cancel_requested),
            )
            for run in facts.runs
        },
        "attempts": {
            one.id: (
                *(one.run_id, one.claim_id, Who(one.worker_id, one.boot_id), one.devices),
                *(one.started, one.outcome, one.reason, one.chunks, PROCESS in one.markers),
            )
            for one in facts.attempts.values()
        },
        "leases": {
            one.attempt_id: (
                *(Who(one.worker_id, one.boot_id), one.devices),
                *(one.late, one.suspect, one.cancel, one.pause),
            )
            for one in facts.leases.values()
        },
        "log": {
            run.id: [(one.source, one.target, one.actor, one.reason, one.attempt_id) for one in facts.log_of(run.id)]
            for run in facts.runs
        },
        "lease_events": {
            attempt: [kind for owner, kind in facts.lease_events if owner == attempt] for attempt in facts.attempts
        },
    }


def expected(model: Model) -> dict[str, Any]:
    """What the model says."""
    leased = {one.id: one.lease for one in model.attempts.values() if one.lease is not None}
    return {
        "campaigns": {one.id: one.state for one in model.campaigns.values()},
        "places": {one.id: one.place for one in model.campaigns.values() if one.place},
        "workers": {id_: (one.boot, one.draining, one.left) for id_, one in model.workers.items()},
        "runs": {
            run.id: (
                *(run.state, run.reason, run.retries, run.losses),
                *(len(run.attempts), run.current and run.current.id, run.cancel_requested),
            )
            for run in model.runs.values()
        },
        "attempts": {
            one.id: (
                *(one.run, one.claim, one.by, one.devices),
                *(one.started, one.outcome, one.reason, tuple(sorted(one.chunks)), one.marker),
            )
            for one in model.attempts.values()
        },
        "leases": {
            id_: (
                *(one.holder, tuple(sorted(one.devices))),
                *(one.lateness != "fresh", one.suspect, one.cancel, one.pause),
            )
            for id_, one in leased.items()
        },
        "log": {run.id: [tuple(entry) for entry in run.log] for run in model.runs.values()},
        "lease_events": {one.id: one.lease_events for one in model.attempts.values()},
    }


def explore(url: URL, *, examples: int, steps: int) -> None:
    """So many stories of so many steps; one that goes wrong is told as it was found."""
    with bench(url) as found:
        make: Any = lambda: Protocol(found)  # noqa: E731 - a factory that is told its type
        run_state_machine_as_test(
            make,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
