"""What is always true of runs, attempts and leases, whatever happened to them: pure functions over what was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from factories.protocol_world import CHUNKS, LOSSES, PROCESS, AttemptFacts, Facts, LeaseFacts, LogFacts, RunFacts
from lem_domain.states import EDGES, LIVE_STATES, ActorKind, Edge, RunState

_ENDINGS = ("completed", "failed", "interrupted", "cancelled")


def violations(facts: Facts) -> list[str]:
    """Every broken promise, in words."""
    return [
        *(f"{what} of an attempt that had lost its lease was committed" for what in facts.audit),
        *_of_leases(facts),
        *_of_runs(facts),
    ]


def _of_leases(facts: Facts) -> Iterator[str]:
    if facts.loose_devices:
        yield f"{facts.loose_devices} devices are leased without a lease"
    runs = {run.id: run for run in facts.runs}
    for lease in facts.leases.values():
        attempt, run = facts.attempts.get(lease.attempt_id), runs.get(lease.run_id)
        if attempt is None or run is None:
            yield "a lease is of nobody's run"
            continue
        if (attempt.run_id, attempt.worker_id, attempt.boot_id) != (lease.run_id, lease.worker_id, lease.boot_id):
            yield "a lease names another worker or run than its attempt"
        if run.current_attempt != lease.attempt_id:
            yield "a lease is not of its run's current attempt"
        if tuple(sorted(attempt.devices)) != lease.devices:
            yield f"the devices leased are {lease.devices}, the attempt's {attempt.devices}"
        if attempt.outcome is not None:
            yield f"an attempt that ended as {attempt.outcome} is still leased"
    for worker in facts.workers.values():
        held = [lease for lease in facts.leases.values() if lease.worker_id == worker.id]
        if any(lease.boot_id != worker.boot_id for lease in held):
            yield "a boot that is not its worker's any more holds a lease"
        if worker.signed_off and held:
            yield "a worker that has left holds a lease"


class _Story(NamedTuple):
    """What there is of one run."""

    run: RunFacts
    campaign: str
    log: list[LogFacts]
    attempts: list[AttemptFacts]
    leases: list[LeaseFacts]


def _of_runs(facts: Facts) -> Iterator[str]:
    stories = {run.id: _Story(run, facts.campaigns[run.campaign_id], [], [], []) for run in facts.runs}
    for entry in facts.log:
        stories[entry.run_id].log.append(entry)
    for attempt in facts.attempts.values():
        stories[attempt.run_id].attempts.append(attempt)
    for lease in facts.leases.values():
        if lease.run_id in stories:
            stories[lease.run_id].leases.append(lease)
    for story in stories.values():
        for wrong in _of_run(story):
            yield f"run {story.run.position}: {wrong}"


def _of_run(story: _Story) -> Iterator[str]:
    run, campaign, log, attempts, leased = story
    yield from _of_log(run, log)
    yield from _of_budgets(run, log)
    if len(leased) != (run.state in LIVE_STATES):
        yield f"it is {run.state} with {len(leased)} leases"
    if sorted(one.number for one in attempts) != list(range(1, run.attempts + 1)):
        yield f"its attempts are not numbered 1 to {run.attempts}"
    completed = [one for one in attempts if one.outcome == "completed"]
    if len(completed) > 1:
        yield f"{len(completed)} attempts completed"
    if (run.state in (RunState.COMPLETED, RunState.AGGREGATED)) != bool(completed):
        yield f"it is {run.state} with {len(completed)} completed attempts"
    for attempt in attempts:
        if attempt.outcome is None and attempt.id not in {lease.attempt_id for lease in leased}:
            yield f"attempt {attempt.number} is open without a lease"
        yield from _of_attempt(attempt, [entry for entry in log if entry.attempt_id == attempt.id])
    if campaign == "cancelled" and run.state == RunState.QUEUED:
        yield "it waits though its campaign was cancelled"
    if campaign == "cancelled" and any(not lease.cancel for lease in leased):
        yield "its worker is not told that its campaign was cancelled"
    if any(lease.cancel != run.cancel_requested for lease in leased):
        yield "its lease and itself disagree on the cancel"


def _of_log(run: RunFacts, log: list[LogFacts]) -> Iterator[str]:
    state: str | None = None
    for entry in log:
        if entry.source != state:
            yield f"its log goes on from {entry.source} where it was {state}"
        if entry.source is None and entry.target != RunState.QUEUED:
            yield f"its log begins with {entry.target}"
        if entry.source is not None:
            edge = Edge(RunState(entry.source), RunState(entry.target), ActorKind(entry.actor))
            if edge not in EDGES:
                yield f"its log has the illegal edge {edge}"
        state = entry.target
    if state != run.state:
        yield f"its log ends with {state}, it is {run.state}"
    if run.version != len(log) - 1:
        yield f"its version is {run.version} after {len(log)} entries"


def _of_budgets(run: RunFacts, log: list[LogFacts]) -> Iterator[str]:
    retries, losses = run.retries_granted, LOSSES
    before: LogFacts | None = None
    for entry in log:
        if entry.target == RunState.QUEUED and entry.source is not None:
            if entry.actor == "user":
                retries, losses = run.retries_granted, LOSSES
            elif entry.source == RunState.FAILED:
                retries -= 1
            elif before is not None and before.reason != "user_paused":
                losses -= 1
        before = entry
        if retries < 0 or losses < 0:
            yield f"it was queued again on a budget that was used up: {retries} retries, {losses} losses"
    if (run.retries_left, run.losses_left) != (retries, losses):
        yield f"its budgets are {run.retries_left} and {run.losses_left}, its log says {retries} and {losses}"


def _of_attempt(attempt: AttemptFacts, log: list[LogFacts]) -> Iterator[str]:
    """`log` is what its run's log says of this attempt; queueing again is told of the attempt before."""
    seen = Counter(entry.target for entry in log)
    name = f"attempt {attempt.number}"
    if seen["initialised"] != 1:
        yield f"{name} was initialised {seen['initialised']} times"
    if (seen["running"] == 1) != attempt.started:
        yield f"{name} is {'' if attempt.started else 'not '}started, the log has it {seen['running']} times"
    endings = [entry for entry in log if entry.source in LIVE_STATES and entry.target in _ENDINGS]
    if len(endings) > 1:
        yield f"{name} ended as {', then '.join(entry.target for entry in endings)}"
    ending = endings[0] if endings else None
    if attempt.outcome != (None if ending is None else ending.target):
        yield f"{name} ended as {attempt.outcome}, the log says {ending and ending.target}"
    if attempt.has_manifest != (attempt.outcome == "completed"):
        yield f"{name} ended as {attempt.outcome} and has {'a' if attempt.has_manifest else 'no'} manifest"
    whole = attempt.chunks == tuple(chunk.seq for chunk in CHUNKS) and attempt.markers == (PROCESS,)
    if attempt.outcome == "completed" and not whole:
        yield f"{name} completed with chunks {attempt.chunks} and markers {attempt.markers}"
