"""What an answer promises, whoever else did what at the same time: checked against the database afterwards."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from factories.protocol_calls import NOTHING, OK, Answer
from factories.protocol_world import AttemptFacts, Facts, Machine
from lem_domain.states import LIVE_STATES, RunState

Check = Callable[[Facts, Answer], str | None]
"""What is wrong, or None."""


class Promise(NamedTuple):
    """The answers that a request may get, and what has to be true of them."""

    codes: Collection[str]
    check: Check


@dataclass(frozen=True)
class Context:
    """What else happens in a story, where a promise depends on it."""

    after: frozenset[str] = frozenset()
    """Requests that were answered before this one was sent."""
    together: frozenset[str] = frozenset()
    """All requests of the story."""


def broken(promise: Promise, facts: Facts, answer: Answer) -> list[str]:
    """What an answer says that is not so."""
    if answer.code not in promise.codes:
        return [f"it was answered {answer.code}: {answer.body}"]
    wrong = promise.check(facts, answer)
    return [f"answered {answer.code}, but {wrong}"] if wrong else []


def nothing_more() -> Promise:
    """It is answered; the invariants say the rest."""
    return Promise({OK}, lambda *_: None)


def claim(machine: Machine, claim_id: UUID, context: Context) -> Promise:
    """One attempt per claim id, made for this worker, and none once nothing may be claimed."""

    def check(facts: Facts, answer: Answer) -> str | None:
        made = [one for one in facts.attempts.values() if one.claim_id == claim_id]
        if answer.code == OK:
            if [f"att_{one.id.hex}" for one in made] != [answer.body.attempt_id]:
                return f"{len(made)} attempts have its claim id"
            if made[0].worker_id != machine.id:
                return "the attempt is another worker's"
            if context.after & {"pause", "cancel", "sign_off", "cancel_run"}:
                return f"it was claimed after {', '.join(context.after)}"
            return None
        if answer.code == "lease_lost":
            return "it is still leased" if made and made[0].id in facts.leases else None
        return "it made an attempt" if made else None

    return Promise({OK, NOTHING, "lease_lost", "boot_superseded"}, check)


def write(attempt_id: UUID, stored: Callable[[AttemptFacts], bool]) -> Promise:
    """What was accepted stands; what was refused because the lease was lost was not written and the lease is lost."""

    def check(facts: Facts, answer: Answer) -> str | None:
        attempt = facts.attempts[attempt_id]
        if answer.code == OK:
            return None if stored(attempt) else "it is not there"
        if attempt_id in facts.leases:
            return "it holds its lease"
        return "it is there" if stored(attempt) else None

    return Promise({OK, "lease_lost"}, check)


def start(attempt_id: UUID) -> Promise:
    """A start that was accepted stands; sent again after the lease was lost, it is refused."""

    def check(facts: Facts, answer: Answer) -> str | None:
        attempt = facts.attempts[attempt_id]
        if answer.code == OK:
            return None if attempt.started else "it is not started"
        if answer.code == "conflict":
            run = next(run for run in facts.runs if run.id == attempt.run_id)
            return None if run.cancel_requested or run.state == RunState.CANCELLED else "no cancel was asked for"
        return "it holds its lease" if attempt_id in facts.leases else None

    return Promise({OK, "lease_lost", "attempt_closed", "conflict"}, check)


def completion_of_attempt(attempt_id: UUID, *more: str) -> Promise:
    """Only a completion that was accepted completes."""

    def check(facts: Facts, answer: Answer) -> str | None:
        outcome = facts.attempts[attempt_id].outcome
        if (answer.code == OK) != (outcome == "completed"):
            return f"the attempt ended as {outcome}"
        return None

    return Promise({OK, "lease_lost", "attempt_closed", *more}, check)


def end(attempt_id: UUID, outcome: str) -> Promise:
    """Only an end that was accepted is the attempt's; an unwanted run's interruption is its cancel."""
    same = {outcome, "cancelled"} if outcome == "interrupted" else {outcome}

    def check(facts: Facts, answer: Answer) -> str | None:
        found = facts.attempts[attempt_id].outcome
        return None if found is not None and (answer.code == OK) == (found in same) else f"it ended as {found}"

    return Promise({OK, "lease_lost", "attempt_closed"}, check)


def beat(attempt_id: UUID, context: Context) -> Promise:
    """An attempt that is said to be lost is lost; maintenance takes none away that was renewed."""

    def check(facts: Facts, answer: Answer) -> str | None:
        if answer.code != OK:
            return None
        if answer.body == ("lost",):
            return "it was called lost and is leased" if attempt_id in facts.leases else None
        if context.together <= {"beat", "expire", "suspects"} and attempt_id not in facts.leases:
            return "it was renewed and taken away"
        return None

    return Promise({OK, "boot_superseded"}, check)


def register(machine: Machine) -> Promise:
    """The boot is its worker's, and no older one holds a lease."""

    def check(facts: Facts, _: Answer) -> str | None:
        return None if facts.workers[machine.id].boot_id == machine.boot else "another boot is"

    return Promise({OK}, check)


def sign_off(machine: Machine) -> Promise:
    """A boot that has left holds nothing."""

    def check(facts: Facts, answer: Answer) -> str | None:
        worker = facts.workers[machine.id]
        if answer.code != OK:
            return "it is the worker's boot" if worker.boot_id == machine.boot else None
        held = [one for one in facts.leases.values() if (one.worker_id, one.boot_id) == (machine.id, machine.boot)]
        return "it holds a lease" if held else None

    return Promise({OK, "boot_superseded"}, check)


def cancel(context: Context) -> Promise:
    """Nothing that was cancelled waits, and who is busy with it will hear of it."""

    def check(facts: Facts, _: Answer) -> str | None:
        if "retry" in context.together:
            return None
        if any(run.state in (RunState.QUEUED, RunState.INTERRUPTED) for run in facts.runs):
            return "a run waits"
        if any(run.state in LIVE_STATES and not run.cancel_requested for run in facts.runs):
            return "a run goes on"
        return None

    return Promise({OK}, check)


def pause(context: Context, *, stop: bool) -> Promise:
    """The campaign is paused; where live runs are to stop, each of them is told."""

    def check(facts: Facts, answer: Answer) -> str | None:
        if answer.code != OK or "resume" in context.together:
            return None
        still_open = any(run.state in (RunState.QUEUED, *LIVE_STATES) for run in facts.runs)
        if still_open and set(facts.campaigns.values()) == {"active"}:
            return "it is active"
        if stop and any(not lease.pause for lease in facts.leases.values()):
            return "a live run was not told"
        return None

    return Promise({OK, "conflict"}, check)


def resume(context: Context) -> Promise:
    """The campaign goes on and nobody is asked to stop any more."""

    def check(facts: Facts, answer: Answer) -> str | None:
        if answer.code != OK or "pause" in context.together:
            return None
        if "paused" in facts.campaigns.values():
            return "it is paused"
        return "a live run is asked to stop" if any(lease.pause for lease in facts.leases.values()) else None

    return Promise({OK, "conflict"}, check)


def retry() -> Promise:
    """One request queues a run again once at most."""

    def check(facts: Facts, _: Answer) -> str | None:
        again = [entry for entry in facts.log if entry.actor == "user" and entry.source in ("failed", "interrupted")]
        return f"it was queued again {len(again)} times" if len(again) > 1 else None

    return Promise({OK, "conflict"}, check)
