"""Stories of two or three requests that meet: a small world, who asks for what in it, and what each answer promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid4

from factories import protocol_promises as promises
from factories.protocol_calls import Call, Server, holder_of
from factories.protocol_promises import Context, Promise
from factories.protocol_world import CHUNKS, PROCESS, Machine, Seed, World
from lem_domain.states import FailureReason

LOST_S = 400.0
"""So long ago a lease ended that is to be taken away: longer than the grace."""


class Part(NamedTuple):
    """One request of a story."""

    name: str
    call: Callable[[Server], Call]
    promise: Callable[[Context], Promise]


class Story(NamedTuple):
    """A world and the requests that meet in it."""

    world: World
    parts: Sequence[Part]


def _always(promise: Promise) -> Callable[[Context], Promise]:
    return lambda _: promise


# --- requests ---------------------------------------------------------------------------------------------------------


def claim(machine: Machine, claim_id: UUID | None = None, name: str = "claim") -> Part:
    """A worker asks for work."""
    claim_id = claim_id or uuid4()
    return Part(
        name,
        lambda server: server.claim(machine, claim_id),
        lambda context: promises.claim(machine, claim_id, context),
    )


def start(attempt: UUID, machine: Machine) -> Part:
    """The window may open."""
    return Part("start", lambda server: server.start(holder_of(attempt, machine)), _always(promises.start(attempt)))


def chunk(attempt: UUID, machine: Machine, seq: int = 0) -> Part:
    """One chunk."""
    return Part(
        "chunk",
        lambda server: server.put_chunk(holder_of(attempt, machine), CHUNKS[seq]),
        _always(promises.write(attempt, lambda found: seq in found.chunks)),
    )


def log(attempt: UUID, machine: Machine) -> Part:
    """A piece of log; the audit says whether its writer held the lease."""
    codes = {"ok", "lease_lost"}
    return Part(
        "log",
        lambda server: server.put_log(holder_of(attempt, machine)),
        _always(Promise(codes, lambda *_: None)),
    )


def marker(attempt: UUID, machine: Machine) -> Part:
    """The completion marker of its process."""
    return Part(
        "marker",
        lambda server: server.put_completion(holder_of(attempt, machine)),
        _always(promises.write(attempt, lambda found: PROCESS in found.markers)),
    )


def complete(attempt: UUID, machine: Machine, *more: str, name: str = "complete") -> Part:
    """The manifest."""
    return Part(
        name,
        lambda server: server.complete(holder_of(attempt, machine)),
        _always(promises.completion_of_attempt(attempt, *more)),
    )


def end(
    attempt: UUID,
    machine: Machine,
    outcome: Literal["failed", "interrupted", "cancelled"],
    reason: FailureReason = FailureReason.INFERENCE,
) -> Part:
    """An end without a result."""
    return Part(
        "end",
        lambda server: server.end(holder_of(attempt, machine), outcome, reason),
        _always(promises.end(attempt, outcome)),
    )


def beat(attempt: UUID, machine: Machine) -> Part:
    """A beat for one attempt."""
    return Part("beat", lambda server: server.beat(machine, [attempt]), lambda context: promises.beat(attempt, context))


def expire(name: str = "expire") -> Part:
    """Maintenance takes away what ran out."""
    return Part(name, lambda server: server.expire(), _always(promises.nothing_more()))


def suspects() -> Part:
    """Maintenance notes what is late."""
    return Part("suspects", lambda server: server.mark_suspects(), _always(promises.nothing_more()))


def register(machine: Machine) -> Part:
    """A new boot announces itself."""
    return Part("register", lambda server: server.register(machine), _always(promises.register(machine)))


def sign_off(machine: Machine) -> Part:
    """A worker leaves."""
    return Part("sign_off", lambda server: server.sign_off(machine), _always(promises.sign_off(machine)))


def cancel_run(run: UUID) -> Part:
    """A user cancels a run."""
    return Part("cancel_run", lambda server: server.cancel_run(run), promises.cancel)


def cancel(campaign: UUID) -> Part:
    """A user cancels the campaign."""
    return Part("cancel", lambda server: server.cancel(campaign), promises.cancel)


def pause(campaign: UUID, live_runs: Literal["finish", "stop"] = "stop") -> Part:
    """A user pauses the campaign."""
    return Part(
        "pause",
        lambda server: server.pause(campaign, live_runs),
        lambda context: promises.pause(context, stop=live_runs == "stop"),
    )


def resume(campaign: UUID) -> Part:
    """A user resumes the campaign."""
    return Part("resume", lambda server: server.resume(campaign), promises.resume)


def retry_run(run: UUID) -> Part:
    """A user tries a run again."""
    return Part("retry", lambda server: server.retry_run(run), _always(promises.retry()))


def retry_failed(campaign: UUID) -> Part:
    """A user tries again what failed."""
    return Part("retry", lambda server: server.retry_failed(campaign), _always(promises.retry()))


# --- stories ----------------------------------------------------------------------------------------------------------

_PAUSED, _SHUTDOWN = FailureReason.USER_PAUSED, FailureReason.WORKER_SHUTDOWN


def _whole(**more: Any) -> Seed:
    return replace(Seed("running", chunks=3, marker=True), **more)


class _Cast(NamedTuple):
    """Who and what a story of one run is about."""

    world: World
    seed: Seed
    machine: Machine
    reboot: Machine

    @property
    def attempt(self) -> UUID:
        return self.seed.attempt

    @property
    def campaign(self) -> UUID:
        return self.world.campaign


def _cast(seed: Seed, *others: Machine, **world: Any) -> _Cast:
    machine = Machine()
    return _Cast(World([seed], [machine, *others], **world), seed, machine, replace(machine, boot=uuid4()))


def _one(seed: Callable[[], Seed], parts: Callable[[_Cast], Sequence[Part]], **world: Any) -> Callable[[], Story]:
    def tell() -> Story:
        cast = _cast(seed(), **world)
        return Story(cast.world, parts(cast))

    return tell


def _two_workers(*, shared: bool, runs: int) -> Story:
    devices = ("SIM-" + uuid4().hex[:12],)
    first = Machine(devices=devices)
    second = Machine(devices=devices) if shared else Machine()
    world = World([Seed() for _ in range(runs)], [first, second])
    return Story(world, [claim(first, name="first"), claim(second, name="second")])


def _same_claim() -> Story:
    machine, claim_id = Machine(), uuid4()
    world = World([Seed(), Seed()], [machine])
    return Story(world, [claim(machine, claim_id, "first"), claim(machine, claim_id, "second")])


def _claims_and(other: Callable[[World], Part]) -> Story:
    first, second = Machine(), Machine()
    world = World([Seed(), Seed()], [first, second])
    return Story(world, [claim(first, name="first"), claim(second, name="second"), other(world)])


def _lost() -> Seed:
    return Seed("running", late_s=LOST_S)


PAIRS: dict[str, Callable[[], Story]] = {
    # a lease that ran out meets its worker
    "expire-beat": _one(_lost, lambda c: [expire(), beat(c.attempt, c.machine)]),
    "expire-complete": _one(lambda: _whole(late_s=LOST_S), lambda c: [expire(), complete(c.attempt, c.machine)]),
    "expire-start": _one(lambda: Seed("initialised", late_s=LOST_S), lambda c: [expire(), start(c.attempt, c.machine)]),
    "expire-chunk": _one(_lost, lambda c: [expire(), chunk(c.attempt, c.machine)]),
    "expire-end": _one(_lost, lambda c: [expire(), end(c.attempt, c.machine, "failed")]),
    "expire-expire": _one(_lost, lambda c: [expire("one"), expire("other")]),
    "suspects-beat": _one(lambda: Seed("running", late_s=5), lambda c: [suspects(), beat(c.attempt, c.machine)]),
    "expire-log": _one(_lost, lambda c: [expire(), log(c.attempt, c.machine)]),
    "expire-register": _one(_lost, lambda c: [expire(), register(c.reboot)]),
    "expire-suspects": _one(_lost, lambda c: [expire(), suspects()]),
    # two claims
    "claim-claim-of-one-run": lambda: _two_workers(shared=False, runs=1),
    "claim-claim-of-two-runs": lambda: _two_workers(shared=False, runs=2),
    "claim-claim-of-one-device": lambda: _two_workers(shared=True, runs=2),
    "claim-claim-with-one-id": _same_claim,
    # a boot is replaced
    "register-start": _one(lambda: Seed("initialised"), lambda c: [register(c.reboot), start(c.attempt, c.machine)]),
    "register-complete": _one(_whole, lambda c: [register(c.reboot), complete(c.attempt, c.machine)]),
    "register-chunk": _one(lambda: Seed("running"), lambda c: [register(c.reboot), chunk(c.attempt, c.machine)]),
    "register-marker": _one(lambda: Seed("running"), lambda c: [register(c.reboot), marker(c.attempt, c.machine)]),
    "register-claim": _one(Seed, lambda c: [register(c.reboot), claim(c.machine)]),
    # stale evidence
    "end-chunk": _one(
        lambda: Seed("running"), lambda c: [end(c.attempt, c.machine, "interrupted"), chunk(c.attempt, c.machine)]
    ),
    "complete-chunk": _one(
        lambda: _whole(chunks=2),
        lambda c: [complete(c.attempt, c.machine, "manifest_incomplete"), chunk(c.attempt, c.machine, 2)],
    ),
    "complete-marker": _one(
        lambda: _whole(marker=False),
        lambda c: [complete(c.attempt, c.machine, "manifest_incomplete"), marker(c.attempt, c.machine)],
    ),
    "complete-complete": _one(
        _whole, lambda c: [complete(c.attempt, c.machine), complete(c.attempt, c.machine, name="again")]
    ),
    # users meet workers
    "cancel-complete": _one(_whole, lambda c: [cancel_run(c.seed.run), complete(c.attempt, c.machine)]),
    "cancel-campaign-complete": _one(_whole, lambda c: [cancel(c.campaign), complete(c.attempt, c.machine)]),
    "cancel-start": _one(lambda: Seed("initialised"), lambda c: [cancel_run(c.seed.run), start(c.attempt, c.machine)]),
    "cancel-claim": _one(Seed, lambda c: [cancel_run(c.seed.run), claim(c.machine)]),
    "cancel-campaign-claim": _one(Seed, lambda c: [cancel(c.campaign), claim(c.machine)]),
    "cancel-requeue-after-failure": _one(
        lambda: Seed("running"), lambda c: [cancel_run(c.seed.run), end(c.attempt, c.machine, "failed")]
    ),
    "cancel-campaign-requeue-after-failure": _one(
        lambda: Seed("running"), lambda c: [cancel(c.campaign), end(c.attempt, c.machine, "failed")]
    ),
    "cancel-requeue-after-loss": _one(_lost, lambda c: [cancel_run(c.seed.run), expire()]),
    "cancel-campaign-requeue-after-loss": _one(_lost, lambda c: [cancel(c.campaign), expire()]),
    "retry-complete": _one(_whole, lambda c: [retry_run(c.seed.run), complete(c.attempt, c.machine)]),
    "retry-stale-complete": _one(
        lambda: replace(Seed("failed"), chunks=3, marker=True),
        lambda c: [retry_run(c.seed.run), complete(c.attempt, c.machine)],
    ),
    "retry-failed-end": _one(
        lambda: Seed("running", retries=0), lambda c: [retry_failed(c.campaign), end(c.attempt, c.machine, "failed")]
    ),
    "retry-cancel": _one(lambda: Seed("failed"), lambda c: [retry_run(c.seed.run), cancel(c.campaign)]),
    "cancel-register": _one(lambda: Seed("running"), lambda c: [cancel_run(c.seed.run), register(c.reboot)]),
    "cancel-sign-off": _one(lambda: Seed("running"), lambda c: [cancel(c.campaign), sign_off(c.machine)]),
    "cancel-pause": _one(lambda: Seed("running"), lambda c: [cancel(c.campaign), pause(c.campaign)]),
    "retry-retry": _one(lambda: Seed("failed"), lambda c: [retry_run(c.seed.run), retry_failed(c.campaign)]),
    "pause-claim": _one(Seed, lambda c: [pause(c.campaign), claim(c.machine)]),
    "pause-claim-that-may-finish": _one(Seed, lambda c: [pause(c.campaign, "finish"), claim(c.machine)]),
    "pause-requeue": _one(lambda: Seed("running"), lambda c: [pause(c.campaign), end(c.attempt, c.machine, "failed")]),
    "resume-end": _one(
        lambda: Seed("running", pause=True),
        lambda c: [resume(c.campaign), end(c.attempt, c.machine, "interrupted", _PAUSED)],
        campaign_state="paused",
    ),
    "resume-claim": _one(Seed, lambda c: [resume(c.campaign), claim(c.machine)], campaign_state="paused"),
    "pause-resume": _one(lambda: Seed("running"), lambda c: [pause(c.campaign), resume(c.campaign)]),
    # a worker leaves
    "sign-off-claim": _one(Seed, lambda c: [sign_off(c.machine), claim(c.machine)]),
    "sign-off-complete": _one(_whole, lambda c: [sign_off(c.machine), complete(c.attempt, c.machine)]),
    "sign-off-beat": _one(lambda: Seed("running"), lambda c: [sign_off(c.machine), beat(c.attempt, c.machine)]),
    "sign-off-register": _one(lambda: Seed("running"), lambda c: [sign_off(c.machine), register(c.reboot)]),
    "sign-off-expire": _one(_lost, lambda c: [sign_off(c.machine), expire()]),
}

TRIPLES: dict[str, Callable[[], Story]] = {
    "claim-claim-pause": lambda: _claims_and(lambda world: pause(world.campaign)),
    "claim-claim-cancel": lambda: _claims_and(lambda world: cancel(world.campaign)),
    "complete-expire-register": _one(
        lambda: _whole(late_s=LOST_S), lambda c: [complete(c.attempt, c.machine), expire(), register(c.reboot)]
    ),
    "end-expire-cancel": _one(_lost, lambda c: [end(c.attempt, c.machine, "failed"), expire(), cancel_run(c.seed.run)]),
    "chunk-end-register": _one(
        lambda: Seed("running"),
        lambda c: [
            chunk(c.attempt, c.machine),
            end(c.attempt, c.machine, "interrupted", _SHUTDOWN),
            register(c.reboot),
        ],
    ),
    "pause-resume-claim": _one(Seed, lambda c: [pause(c.campaign), resume(c.campaign), claim(c.machine)]),
}
