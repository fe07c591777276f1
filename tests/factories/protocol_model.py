"""The lease protocol as it was designed, in plain values: no SQL, no clock, one step at a time.

Every request is a method that changes the model and returns what a worker or user would be answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from uuid import UUID

OK = "ok"
NOTHING = "nothing"
LEASE_LOST = "lease_lost"
ATTEMPT_CLOSED = "attempt_closed"
BOOT_SUPERSEDED = "boot_superseded"
CONFLICT = "conflict"
ILLEGAL = "illegal_transition"
INCOMPLETE = "manifest_incomplete"

LOSSES = 3
WHOLE = frozenset({0, 1, 2})
"""The chunks that make an attempt's evidence whole."""

Outcome = Literal["failed", "interrupted", "cancelled"]
Lateness = Literal["fresh", "late", "expired"]
"""Renewed in time; run out within the grace; run out before it."""
LIVE = ("initialised", "running")


class Who(NamedTuple):
    """A worker under one boot."""

    worker: UUID
    boot: UUID


class Entry(NamedTuple):
    """One change of a run's state."""

    source: str | None
    target: str
    actor: str
    reason: str | None
    attempt: UUID | None


@dataclass
class Lease:
    """The right of one boot to write to one attempt."""

    holder: Who
    devices: tuple[str, ...]
    lateness: Lateness = "fresh"
    suspect: bool = False
    cancel: bool = False
    pause: bool = False


@dataclass
class Attempt:
    """One try at a run."""

    id: UUID
    run: UUID
    claim: UUID
    by: Who
    devices: tuple[str, ...]
    lease: Lease | None
    started: bool = False
    outcome: str | None = None
    reason: str | None = None
    chunks: set[int] = field(default_factory=set)
    marker: bool = False
    lease_events: list[str] = field(default_factory=list)


@dataclass
class Campaign:
    """Active, paused or cancelled, by its user's word."""

    id: UUID
    priority: int
    retries: int
    state: str = "active"
    placement: str = "any"
    gap: bool = False
    """Its runs wait until a device has rested since the last run on it, if the campaign was there before."""
    place: tuple[str, ...] = ()
    ran_on: set[str] = field(default_factory=set)
    served: int = 0
    """When it was served last: the number of that claim."""


@dataclass
class Run:
    """One place in a campaign's order."""

    id: UUID
    campaign: Campaign
    position: int
    devices: int
    retries: int
    losses: int = LOSSES
    state: str = "queued"
    reason: str | None = None
    cancel_requested: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    log: list[Entry] = field(default_factory=list)

    @property
    def current(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    def move(self, target: str, actor: str, reason: str | None = None) -> None:
        """One change of state, logged."""
        current = None if self.current is None else self.current.id
        self.log.append(Entry(self.state if self.log else None, target, actor, reason, current))
        self.state, self.reason = target, reason


@dataclass
class Worker:
    """A worker as the server knows it."""

    boot: UUID
    devices: tuple[str, ...]
    draining: bool = False
    left: bool = False


class Claimed(NamedTuple):
    """What a claim is answered: a code, and the run that it gets."""

    code: str
    run: Run | None = None
    devices: tuple[str, ...] = ()


class Model:
    """Everything the protocol knows."""

    def __init__(self) -> None:
        self.workers: dict[UUID, Worker] = {}
        self.campaigns: dict[UUID, Campaign] = {}
        self.runs: dict[UUID, Run] = {}
        self.attempts: dict[UUID, Attempt] = {}
        self.warm: dict[str, int] = {}
        """Devices that have not rested since the last run on them, with the number of that run's end."""
        self._ends = 0

    # --- what there is to do ------------------------------------------------------------------------------------------

    def submit(self, campaign: Campaign, runs: Iterable[Run]) -> None:
        """A user submits a campaign."""
        self.campaigns[campaign.id] = campaign
        for run in runs:
            run.move("queued", "user")
            self.runs[run.id] = run

    def leased_devices(self) -> set[str]:
        """Devices that somebody uses."""
        return {device for attempt in self.attempts.values() if attempt.lease for device in attempt.lease.devices}

    def runs_of(self, campaign: UUID) -> list[Run]:
        """The runs of a campaign."""
        return [run for run in self.runs.values() if run.campaign.id == campaign]

    # --- workers ------------------------------------------------------------------------------------------------------

    def register(self, who: Who, devices: tuple[str, ...]) -> str:
        """A new boot ends every lease of the boots before it."""
        before = self.workers.get(who.worker)
        same = before is not None and before.boot == who.boot
        self.workers[who.worker] = Worker(who.boot, devices, draining=bool(same and before and before.draining))
        for attempt in self._leased():
            if attempt.by.worker == who.worker and attempt.by.boot != who.boot:
                self._lose(attempt)
        return OK

    def sign_off(self, who: Who) -> str:
        """A boot that leaves gives back what it holds."""
        worker = self.workers.get(who.worker)
        if worker is None or worker.boot != who.boot:
            return BOOT_SUPERSEDED
        worker.left = True
        for attempt in self._leased():
            if attempt.by == who:
                self._end(attempt, "worker", "interrupted", "worker_shutdown")
        return OK

    def drain(self, worker: UUID) -> str:
        """A draining worker claims nothing more."""
        self.workers[worker].draining = True
        return OK

    def is_current(self, who: Who) -> bool:
        """Whether a boot is its worker's and has not left."""
        worker = self.workers.get(who.worker)
        return worker is not None and worker.boot == who.boot and not worker.left

    def claim(self, who: Who, claim: UUID, offered: Sequence[str]) -> Claimed:
        """The first run in order that fits, once per claim id; `made` writes down which attempt it became."""
        for attempt in self.attempts.values():
            if attempt.claim == claim:
                if attempt.lease is None or attempt.by.worker != who.worker:
                    return Claimed(LEASE_LOST)
                return Claimed(OK, self.runs[attempt.run], attempt.devices)
        if not self.is_current(who):
            return Claimed(BOOT_SUPERSEDED)
        worker, taken = self.workers[who.worker], self.leased_devices()
        free = tuple(one for one in offered if one in worker.devices and one not in taken)
        if worker.draining or not free:
            return Claimed(NOTHING)
        active = [one for one in self.campaigns.values() if one.state == "active"]
        kept: set[str] = set()
        for campaign in sorted(active, key=lambda one: (-one.priority, one.served, one.id)):
            run = self._next_of(campaign, len(free))
            if run is None:
                continue
            pool = _pool(campaign, run.devices, [one for one in free if one not in kept])
            if len(pool) < run.devices:
                continue
            rested = [one for one in pool if not (campaign.gap and one in campaign.ran_on and one in self.warm)]
            if len(rested) >= run.devices:
                return Claimed(OK, run, tuple(rested[: run.devices]))
            # The devices that rest for it are kept for it: those that have rested first, then the longest idle.
            kept.update(sorted(pool, key=lambda one: -1 if one in rested else self.warm[one])[: run.devices])
        return Claimed(NOTHING)

    def _next_of(self, campaign: Campaign, free: int) -> Run | None:
        queued = sorted(
            (run for run in self.runs_of(campaign.id) if run.state == "queued"), key=lambda run: run.position
        )
        if campaign.placement == "same_device":
            return queued[0] if queued else None
        return next((run for run in queued if run.devices <= free), None)

    def made(self, attempt: UUID, who: Who, claim: UUID, claimed: Claimed) -> None:
        """A claim became an attempt, if it is a new one."""
        if attempt in self.attempts:
            return
        run, devices = claimed.run, claimed.devices
        assert run is not None
        new = Attempt(attempt, run.id, claim, who, devices, Lease(who, devices))
        self.attempts[attempt] = new
        run.attempts.append(new)
        run.cancel_requested = False
        run.campaign.served = len(self.attempts)
        run.campaign.ran_on.update(devices)
        if run.campaign.placement != "any" and len(devices) > len(run.campaign.place):
            run.campaign.place = (
                devices if run.campaign.placement == "same_device" or not run.campaign.place else run.campaign.place
            )
        run.move("initialised", "worker")

    def beat(self, who: Who, attempts: Sequence[UUID]) -> tuple[str, tuple[str, ...]]:
        """Every lease that is still held is renewed, the late ones too."""
        if not self.is_current(who):
            return BOOT_SUPERSEDED, ()
        return OK, tuple(self._beat(who, self.attempts[attempt]) for attempt in attempts)

    def _beat(self, who: Who, attempt: Attempt) -> str:
        lease = attempt.lease
        if lease is None or lease.holder != who:
            return "lost"
        if lease.lateness != "fresh":
            if not lease.suspect:
                attempt.lease_events.append("suspect")
            attempt.lease_events.append("recovered")
        lease.lateness, lease.suspect = "fresh", False
        return "cancel" if lease.cancel else "pause" if lease.pause else OK

    # --- attempts -----------------------------------------------------------------------------------------------------

    def start(self, who: Who, attempt_id: UUID) -> str:
        """The window opens, unless the run is to be cancelled."""
        attempt = self.attempts[attempt_id]
        run = self.runs[attempt.run]
        refused = self._refused(who, attempt)
        if refused or attempt.started:
            return refused or OK
        if run.cancel_requested:
            return CONFLICT
        attempt.started = True
        run.move("running", "worker")
        return OK

    def put_chunk(self, who: Who, attempt_id: UUID, seq: int) -> tuple[str, tuple[bool, bool] | None]:
        """The same bytes are welcome at any time, new ones from the holder alone."""
        attempt = self.attempts[attempt_id]
        if seq in attempt.chunks:
            return OK, (False, False)
        if attempt.lease is None or attempt.lease.holder != who:
            return LEASE_LOST, None
        attempt.chunks.add(seq)
        return OK, (True, attempt.lease.cancel)

    def put_completion(self, who: Who, attempt_id: UUID) -> str:
        """The same marker is welcome at any time, a new one from the holder alone."""
        attempt = self.attempts[attempt_id]
        if not attempt.marker:
            if attempt.lease is None or attempt.lease.holder != who:
                return LEASE_LOST
            attempt.marker = True
        return OK

    def complete(self, who: Who, attempt_id: UUID) -> str:
        """What is whole and was started is completed, by its holder, once."""
        attempt = self.attempts[attempt_id]
        if attempt.by == who and attempt.outcome == "completed":
            return OK
        refused = self._refused(who, attempt)
        if refused:
            return refused
        if not attempt.marker or attempt.chunks != WHOLE:
            return INCOMPLETE
        if not attempt.started:
            return ILLEGAL
        attempt.outcome, attempt.lease = "completed", None
        self._warm_up(attempt)
        self.runs[attempt.run].move("completed", "worker")
        return OK

    def end(self, who: Who, attempt_id: UUID, outcome: Outcome, reason: str) -> str:
        """An end without a result; the same end sent again is the same end."""
        attempt = self.attempts[attempt_id]
        same = (outcome, "cancelled") if outcome == "interrupted" else (outcome,)
        if attempt.by == who and attempt.outcome in same:
            return OK
        refused = self._refused(who, attempt)
        if not refused:
            self._end(attempt, "worker", outcome, reason)
        return refused or OK

    def _refused(self, who: Who, attempt: Attempt) -> str | None:
        if attempt.by == who and attempt.outcome in ("completed", "failed"):
            return ATTEMPT_CLOSED
        return None if attempt.lease is not None and attempt.lease.holder == who else LEASE_LOST

    def _lose(self, attempt: Attempt) -> None:
        self._end(attempt, "server", "interrupted", "worker_lost")

    def _end(self, attempt: Attempt, actor: str, outcome: Outcome, reason: str) -> None:
        run = self.runs[attempt.run]
        unwanted = run.cancel_requested or run.campaign.state == "cancelled"
        if outcome == "interrupted" and unwanted:
            outcome, reason = "cancelled", "user_cancelled"
        attempt.outcome, attempt.reason, attempt.lease = outcome, reason, None
        self._warm_up(attempt)
        run.move(outcome, actor, reason)
        if unwanted or outcome == "cancelled":
            return
        if outcome == "failed" and run.retries > 0:
            run.retries -= 1
            run.move("queued", "server")
        elif outcome == "interrupted" and reason == "user_paused":
            run.move("queued", "server")
        elif outcome == "interrupted" and run.losses > 0:
            run.losses -= 1
            run.move("queued", "server")
        elif outcome == "interrupted":
            run.move("failed", "server", "worker_lost")

    def _warm_up(self, attempt: Attempt) -> None:
        self._ends += 1
        self.warm.update(dict.fromkeys(attempt.devices, self._ends))

    # --- time ---------------------------------------------------------------------------------------------------------

    def age(self, attempt_id: UUID, lateness: Lateness) -> None:
        """A lease gets no beat for so long."""
        lease = self.attempts[attempt_id].lease
        if lease is not None:
            lease.lateness = lateness

    def rest(self) -> None:
        """All devices rest long enough for every gap."""
        self.warm.clear()

    def mark_suspects(self) -> int:
        """What is late is suspect."""
        late = [one for one in self._leased() if one.lease and one.lease.lateness != "fresh" and not one.lease.suspect]
        for attempt in late:
            assert attempt.lease is not None
            attempt.lease.suspect = True
            attempt.lease_events.append("suspect")
        return len(late)

    def expire(self) -> int:
        """What is late beyond the grace is lost."""
        expired = [one for one in self._leased() if one.lease and one.lease.lateness == "expired"]
        for attempt in expired:
            self._lose(attempt)
        return len(expired)

    def _leased(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts.values() if attempt.lease is not None]

    # --- users --------------------------------------------------------------------------------------------------------

    def cancel_run(self, run_id: UUID) -> str:
        """What waits is cancelled at once, the worker of what is live is asked."""
        run = self.runs[run_id]
        if run.state in ("queued", "interrupted"):
            run.cancel_requested = True
            run.move("cancelled", "user", "user_cancelled")
        elif run.state in LIVE:
            run.cancel_requested = True
            assert run.current is not None and run.current.lease is not None
            run.current.lease.cancel = True
        return OK

    def cancel(self, campaign_id: UUID) -> str:
        """For good, unless nothing is left to do."""
        if self._is_open(campaign_id):
            self.campaigns[campaign_id].state = "cancelled"
        for run in self.runs_of(campaign_id):
            self.cancel_run(run.id)
        return OK

    def pause(self, campaign_id: UUID, live_runs: Literal["finish", "stop"]) -> str:
        """Nothing is claimed any more; live runs go on or are handed back."""
        campaign = self.campaigns[campaign_id]
        if campaign.state == "cancelled":
            return CONFLICT
        if self._is_open(campaign_id):
            campaign.state = "paused"
        if live_runs == "stop":
            self._ask_for_pause(campaign_id, pause=True)
        return OK

    def resume(self, campaign_id: UUID) -> str:
        """Claims go on, and who was not told to stop yet will not be."""
        campaign = self.campaigns[campaign_id]
        if campaign.state == "cancelled":
            return CONFLICT
        campaign.state = "active"
        self._ask_for_pause(campaign_id, pause=False)
        return OK

    def retry_run(self, run_id: UUID) -> str:
        """What failed is queued again, as new."""
        run = self.runs[run_id]
        if run.campaign.state == "cancelled" or run.state in ("completed", "cancelled"):
            return CONFLICT
        self._queue_again(run)
        return OK

    def retry_failed(self, campaign_id: UUID) -> str:
        """All of a campaign that failed is queued again, as new."""
        if self.campaigns[campaign_id].state == "cancelled":
            return CONFLICT
        for run in self.runs_of(campaign_id):
            self._queue_again(run)
        return OK

    def _queue_again(self, run: Run) -> None:
        if run.state in ("failed", "interrupted"):
            run.retries, run.losses, run.cancel_requested = run.campaign.retries, LOSSES, False
            run.move("queued", "user")

    def _ask_for_pause(self, campaign_id: UUID, *, pause: bool) -> None:
        for attempt in self._leased():
            if self.runs[attempt.run].campaign.id == campaign_id and attempt.lease is not None:
                attempt.lease.pause = pause

    def _is_open(self, campaign_id: UUID) -> bool:
        return any(run.state in ("queued", *LIVE) for run in self.runs_of(campaign_id))


def _pool(campaign: Campaign, count: int, fitting: Sequence[str]) -> Sequence[str]:
    """Where a run of a campaign may be; all devices here are of one model."""
    if campaign.placement != "same_device":
        return fitting
    own = campaign.place[:count]
    if not set(own) <= set(fitting):
        return ()
    return [*own, *(one for one in fitting if one not in own)][:count]
