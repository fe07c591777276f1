"""Which queued run a worker gets next, and why a run has to wait: pure functions over rows of the database.

Campaigns are ordered by priority, and those of equal priority by how long ago they were served. Inside a campaign the
order of its runs holds: strictly under `same_device`, otherwise for each worker among the runs that fit it. A campaign
whose turn it is reserves the devices that it waits for, whether for a gap or for another worker of the same machine, so
that no other campaign overtakes it twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from lem_domain.config.execution import Placement
from lem_domain.config.gaps import ExperimentCycle, GapConfig, RunGaps


class FreeDevice(NamedTuple):
    """A device that a worker offers and that has no lease."""

    uuid: str
    kind: str
    name: str
    idle_s: float | None
    """Seconds since the last run on it ended, whatever its campaign; None if there was none."""
    temperature_c: float | None = None

    @property
    def model(self) -> tuple[str, str]:
        """The pair that `same_model` compares."""
        return self.kind, self.name


class OnlineWorker(NamedTuple):
    """A worker that could take runs: the one that claims, or another one, also on the same machine."""

    backend: str
    devices: frozenset[str]
    asking: bool
    """It claimed within the last seconds. A worker that is only online is busy."""


class CampaignPlace(NamedTuple):
    """The devices on which a campaign's runs are placed, since its first run."""

    devices: tuple[str, ...]
    kind: str
    name: str


class NextRun(NamedTuple):
    """The first queued run of a campaign for one backend."""

    position: int
    experiment_cycle: ExperimentCycle
    device_count: int
    fitting: tuple[str, ...]
    """The free devices that the run may use, in its order of preference."""
    named: tuple[str, ...] = ()
    """The devices that its configuration names; they override the campaign's placement."""


@dataclass(frozen=True)
class QueuedCampaign:
    """The queued runs of one campaign for one backend."""

    campaign_id: UUID
    backend: str
    placement: Placement
    gaps: RunGaps
    run: NextRun
    place: CampaignPlace | None = None
    previous: Mapping[str, ExperimentCycle] = field(default_factory=dict)
    """The campaign's last run on each of the free devices."""

    @property
    def strict(self) -> bool:
        """Whether its runs follow each other in order across all backends."""
        return self.placement == "same_device"


class DeferReason(StrEnum):
    """Why a run waits although a device is free."""

    GAP = "gap"
    COOLING = "cooling"
    ORDER = "order"
    """An earlier run of the campaign is for another worker."""
    PLACE = "place"
    """Its devices are not among the free ones."""
    TURN = "turn"
    """Its devices are reserved for a campaign whose turn it is."""


class Deferred(NamedTuple):
    """A run that waits: the reason, the devices that it waits for, and the longest wait in seconds if it is known."""

    reason: DeferReason
    devices: tuple[str, ...] = ()
    remaining_s: float | None = None


class Choice(NamedTuple):
    """A campaign whose next run the worker may claim, and the run's devices."""

    campaign: QueuedCampaign
    devices: tuple[str, ...]


class Outlook(NamedTuple):
    """The prospects of a worker that got no run."""

    run_waits: bool
    """A run for this worker waits for a gap, a turn or another run."""
    retry_after_s: float | None
    """The shortest remaining gap."""
    cooling: bool
    """A run waits for a device to cool, so the worker should report a new temperature soon."""


NOTHING_WAITS = Outlook(run_waits=False, retry_after_s=None, cooling=False)


class SchedulingPass:
    """One pass of one worker over the queue."""

    def __init__(self, backend: str, free: Sequence[FreeDevice], workers: Collection[OnlineWorker]) -> None:
        self._backend = backend
        self._free = {device.uuid: device for device in free}
        self._workers = tuple(workers)
        self._reserved: set[str] = set()
        self._deferred: list[Deferred] = []

    def choices(self, queue: Sequence[QueuedCampaign]) -> Iterator[Choice]:
        """Yield what the worker may claim, the best first; `queue` is in the order of priority and turn.

        The caller stops at the choice that it claims. One that another worker claims first reserves nothing.
        """
        for campaign, decision in self.decisions(queue):
            if not isinstance(decision, Deferred):
                yield Choice(campaign, decision)
            elif decision.reason is not DeferReason.PLACE:
                self._deferred.append(decision)

    def decisions(self, queue: Sequence[QueuedCampaign]) -> Iterator[tuple[QueuedCampaign, tuple[str, ...] | Deferred]]:
        """Yield for each campaign of this worker's backend the devices of its next run, or why that run waits."""
        first = _first_positions(queue, self._workers)
        for campaign in queue:
            decision = self._decide(campaign, first.get(campaign.campaign_id))
            own_backend = campaign.backend == self._backend
            if own_backend:
                yield campaign, decision
            if isinstance(decision, Deferred):
                self._reserved.update(decision.devices)
            elif not own_backend:
                self._reserved.update(decision)

    def _decide(self, campaign: QueuedCampaign, first_position: int | None) -> tuple[str, ...] | Deferred:
        if campaign.strict and first_position is not None and first_position < campaign.run.position:
            return Deferred(DeferReason.ORDER)
        if campaign.backend == self._backend:
            usable: Collection[str] = self._free.keys()
        else:
            usable = {
                device
                for worker in self._workers
                if worker.backend == campaign.backend and worker.asking
                for device in worker.devices
            }
        return self.devices_for(campaign, campaign.run, usable)

    def devices_for(
        self, campaign: QueuedCampaign, run: NextRun, usable: Collection[str] | None = None
    ) -> tuple[str, ...] | Deferred:
        """Return the devices for a run of this campaign, or why it waits."""
        fitting = [
            self._free[uuid] for uuid in run.fitting if uuid in self._free and (usable is None or uuid in usable)
        ]
        candidates = _candidates(campaign, run, [device for device in fitting if device.uuid not in self._reserved])
        if len(candidates) < run.device_count:
            reserved = len(_candidates(campaign, run, fitting)) >= run.device_count
            return Deferred(DeferReason.TURN if reserved else DeferReason.PLACE)
        gap = {device.uuid: _remaining_gap(campaign, run, device) for device in candidates}
        ready = [device.uuid for device in candidates if not gap[device.uuid].remaining_s]
        if len(ready) >= run.device_count:
            return tuple(ready[: run.device_count])
        soonest = sorted(candidates, key=lambda device: gap[device.uuid].remaining_s)[: run.device_count]
        last = gap[soonest[-1].uuid]
        cooling = any(gap[device.uuid].cooling for device in soonest)
        reason = DeferReason.COOLING if cooling else DeferReason.GAP
        return Deferred(reason, tuple(device.uuid for device in soonest), last.remaining_s)

    @property
    def outlook(self) -> Outlook:
        """The prospects after all choices were tried without success."""
        remaining = [deferred.remaining_s for deferred in self._deferred if deferred.remaining_s is not None]
        return Outlook(
            run_waits=bool(self._deferred),
            retry_after_s=min(remaining, default=None),
            cooling=any(deferred.reason is DeferReason.COOLING for deferred in self._deferred),
        )


class RemainingGap(NamedTuple):
    """The gap that a device still needs before a run."""

    remaining_s: float
    cooling: bool


def remaining_gap(gaps: Sequence[GapConfig], *, idle_s: float | None, temperature_c: float | None) -> RemainingGap:
    """Return the longest remaining gap of a device that has been idle for `idle_s` and is at `temperature_c`."""
    if idle_s is None:
        return RemainingGap(0.0, cooling=False)
    remaining = [(gap.remaining_s(max(0.0, idle_s), temperature_c), gap.temperature_c is not None) for gap in gaps]
    return RemainingGap(
        max((seconds for seconds, _ in remaining), default=0.0),
        cooling=any(cooling for seconds, cooling in remaining if seconds > 0),
    )


def _remaining_gap(campaign: QueuedCampaign, run: NextRun, device: FreeDevice) -> RemainingGap:
    previous = campaign.previous.get(device.uuid)
    gaps = () if previous is None else campaign.gaps.between(previous, run.experiment_cycle)
    return remaining_gap(gaps, idle_s=device.idle_s, temperature_c=device.temperature_c)


def _candidates(campaign: QueuedCampaign, run: NextRun, fitting: Sequence[FreeDevice]) -> Sequence[FreeDevice]:
    """Return the devices from which the run's are chosen under its campaign's placement; too few means none fits."""
    place = campaign.place
    if run.named or campaign.placement == "any":
        return fitting
    if campaign.placement == "same_model":
        models = dict.fromkeys(device.model for device in fitting) if place is None else [(place.kind, place.name)]
        for model in models:
            of_model = [device for device in fitting if device.model == model]
            if len(of_model) >= run.device_count:
                return of_model
        return ()
    if place is None:
        return fitting[: run.device_count]
    by_uuid = {device.uuid: device for device in fitting}
    own = place.devices[: run.device_count]
    if any(uuid not in by_uuid for uuid in own):
        return ()
    # A run with more devices than any earlier one takes further devices in addition to those of the place.
    others = [device for device in fitting if device.uuid not in own]
    return [*(by_uuid[uuid] for uuid in own), *others[: run.device_count - len(own)]]


def _first_positions(queue: Sequence[QueuedCampaign], workers: Collection[OnlineWorker]) -> dict[UUID, int]:
    """Return each campaign's position of the first run that some online worker could take now or later.

    Runs of a backend that no worker serves on the campaign's devices do not block the others.
    """
    first: dict[UUID, int] = {}
    for campaign in queue:
        if any(_could_take(worker, campaign) for worker in workers):
            position = campaign.run.position
            first[campaign.campaign_id] = min(position, first.get(campaign.campaign_id, position))
    return first


def _could_take(worker: OnlineWorker, campaign: QueuedCampaign) -> bool:
    run, place = campaign.run, campaign.place
    if worker.backend != campaign.backend or run.device_count > len(worker.devices):
        return False
    own = run.named or (place.devices[: run.device_count] if place is not None else ())
    return worker.devices.issuperset(own)
