"""Which queued run a worker gets next, and why it may have to wait: pure functions over what the database holds.

Campaigns come in order of priority, and those of equal priority in order of who was served least recently. Inside a
campaign the order of its runs holds: under `same_device` strictly, otherwise for each worker among those that fit it.
A campaign whose turn it is keeps the devices that it waits for, be it for a gap or for another worker of the same
machine, so that nobody overtakes it twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from lem_domain.config.execution import Placement
from lem_domain.config.gaps import GapConfig, Gaps, Turn


class FreeDevice(NamedTuple):
    """A device that a worker offers and nobody leases."""

    uuid: str
    kind: str
    name: str
    idle_s: float | None
    """Since the end of the last run on it, of whatever campaign; None when there was none."""
    temperature_c: float | None = None

    @property
    def model(self) -> tuple[str, str]:
        """What `same_model` compares."""
        return self.kind, self.name


class Neighbour(NamedTuple):
    """A worker that could take runs: of the asking one itself, and of others on the same machine."""

    backend: str
    devices: frozenset[str]
    asking: bool
    """It has asked for work just now; one that is only online does other things."""


class Place(NamedTuple):
    """Where a campaign's runs are, since its first one."""

    devices: tuple[str, ...]
    kind: str
    name: str


class Head(NamedTuple):
    """The first queued run of a campaign for one backend."""

    position: int
    turn: Turn
    device_count: int
    fitting: tuple[str, ...]
    """Those of the free devices that the run may have, in the order it would take them."""
    named: tuple[str, ...] = ()
    """The devices that it names itself, which then counts instead of its campaign's placement."""


@dataclass(frozen=True)
class Waiting:
    """What one campaign has queued for one backend."""

    campaign_id: UUID
    backend: str
    placement: Placement
    gaps: Gaps
    head: Head
    place: Place | None = None
    previous: Mapping[str, Turn] = field(default_factory=dict)
    """The campaign's last run on each of the free devices."""

    @property
    def strict(self) -> bool:
        """Whether its runs come one after another, whatever backend they are of."""
        return self.placement == "same_device"


class Hold(StrEnum):
    """Why a run waits though a device is free."""

    GAP = "gap"
    COOLING = "cooling"
    ORDER = "order"
    """A run that comes before it is for another worker."""
    PLACE = "place"
    """Its devices are not among the free ones."""
    TURN = "turn"
    """They are kept for a campaign whose turn it is."""


class Held(NamedTuple):
    """A run that waits: why, for which devices, and how long at most where that is known."""

    hold: Hold
    devices: tuple[str, ...] = ()
    remaining_s: float | None = None


class Choice(NamedTuple):
    """A campaign whose next run the worker may take, and the run's devices."""

    waiting: Waiting
    devices: tuple[str, ...]


class Outlook(NamedTuple):
    """What a worker that got nothing may expect."""

    something_waits: bool
    """A run of its own waits for a gap, a turn or another run."""
    again_in_s: float | None
    """By then a gap is over."""
    cooling: bool
    """A device is being waited for to cool, so its temperature should be told again soon."""


NOTHING_WAITS = Outlook(something_waits=False, again_in_s=None, cooling=False)


class Round:
    """One look of one worker at the queue."""

    def __init__(self, backend: str, free: Sequence[FreeDevice], neighbours: Collection[Neighbour]) -> None:
        self._backend = backend
        self._free = {device.uuid: device for device in free}
        self._neighbours = tuple(neighbours)
        self._kept: set[str] = set()
        self._held: list[Held] = []

    def choices(self, queue: Sequence[Waiting]) -> Iterator[Choice]:
        """What the worker may take, the best first; `queue` is in order of priority and turn.

        Whoever takes a choice stops here. One that can't be taken, because somebody else is taking it, keeps nothing.
        """
        for waiting, found in self.looks(queue):
            if not isinstance(found, Held):
                yield Choice(waiting, found)
            elif found.hold is not Hold.PLACE:
                self._held.append(found)

    def looks(self, queue: Sequence[Waiting]) -> Iterator[tuple[Waiting, tuple[str, ...] | Held]]:
        """Of each campaign's runs for this worker: the devices that the next one may have, or why it waits."""
        first = _first_positions(queue, self._neighbours)
        for waiting in queue:
            found = self._look_at(waiting, first.get(waiting.campaign_id))
            mine = waiting.backend == self._backend
            if mine:
                yield waiting, found
            if isinstance(found, Held):
                self._kept.update(found.devices)
            elif not mine:
                self._kept.update(found)

    def _look_at(self, waiting: Waiting, first_position: int | None) -> tuple[str, ...] | Held:
        if waiting.strict and first_position is not None and first_position < waiting.head.position:
            return Held(Hold.ORDER)
        if waiting.backend == self._backend:
            usable: Collection[str] = self._free.keys()
        else:
            usable = {
                device
                for neighbour in self._neighbours
                if neighbour.backend == waiting.backend and neighbour.asking
                for device in neighbour.devices
            }
        return self.devices_for(waiting, waiting.head, usable)

    def devices_for(self, waiting: Waiting, run: Head, usable: Collection[str] | None = None) -> tuple[str, ...] | Held:
        """The devices for a run of this campaign, or why it waits."""
        fitting = [
            self._free[uuid] for uuid in run.fitting if uuid in self._free and (usable is None or uuid in usable)
        ]
        pool = _pool(waiting, run, [device for device in fitting if device.uuid not in self._kept])
        if len(pool) < run.device_count:
            kept = len(_pool(waiting, run, fitting)) >= run.device_count
            return Held(Hold.TURN if kept else Hold.PLACE)
        rest = {device.uuid: _rest(waiting, run, device) for device in pool}
        rested = [device.uuid for device in pool if not rest[device.uuid].remaining_s]
        if len(rested) >= run.device_count:
            return tuple(rested[: run.device_count])
        soonest = sorted(pool, key=lambda device: rest[device.uuid].remaining_s)[: run.device_count]
        last = rest[soonest[-1].uuid]
        hold = Hold.COOLING if any(rest[device.uuid].cooling for device in soonest) else Hold.GAP
        return Held(hold, tuple(device.uuid for device in soonest), last.remaining_s)

    @property
    def outlook(self) -> Outlook:
        """What to expect after all choices were gone through without success."""
        remaining = [held.remaining_s for held in self._held if held.remaining_s is not None]
        return Outlook(
            something_waits=bool(self._held),
            again_in_s=min(remaining, default=None),
            cooling=any(held.hold is Hold.COOLING for held in self._held),
        )


class Rest(NamedTuple):
    """What a device still has to rest before a run."""

    remaining_s: float
    cooling: bool


def rest_of(gaps: Sequence[GapConfig], *, idle_s: float | None, temperature_c: float | None) -> Rest:
    """How long, at most, the gaps last for a device that has been idle so long and is so warm."""
    if idle_s is None:
        return Rest(0.0, cooling=False)
    remaining = [(gap.remaining_s(max(0.0, idle_s), temperature_c), gap.temperature_c is not None) for gap in gaps]
    return Rest(
        max((seconds for seconds, _ in remaining), default=0.0),
        cooling=any(cooling for seconds, cooling in remaining if seconds > 0),
    )


def _rest(waiting: Waiting, run: Head, device: FreeDevice) -> Rest:
    previous = waiting.previous.get(device.uuid)
    gaps = () if previous is None else waiting.gaps.between(previous, run.turn)
    return rest_of(gaps, idle_s=device.idle_s, temperature_c=device.temperature_c)


def _pool(waiting: Waiting, run: Head, fitting: Sequence[FreeDevice]) -> Sequence[FreeDevice]:
    """The devices among which the run's are chosen, as its campaign's placement has it."""
    place = waiting.place
    if run.named or waiting.placement == "any":
        return fitting
    if waiting.placement == "same_model":
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
    # A run with more devices than any before it takes others beside those of the place.
    others = [device for device in fitting if device.uuid not in own]
    return [*(by_uuid[uuid] for uuid in own), *others[: run.device_count - len(own)]]


def _first_positions(queue: Sequence[Waiting], neighbours: Collection[Neighbour]) -> dict[UUID, int]:
    """Of each campaign the place of its first run that some worker could take now or later.

    Runs of a backend that nobody serves where the campaign is don't hold up the others.
    """
    first: dict[UUID, int] = {}
    for waiting in queue:
        if any(_could_take(neighbour, waiting) for neighbour in neighbours):
            position = waiting.head.position
            first[waiting.campaign_id] = min(position, first.get(waiting.campaign_id, position))
    return first


def _could_take(neighbour: Neighbour, waiting: Waiting) -> bool:
    head, place = waiting.head, waiting.place
    if neighbour.backend != waiting.backend or head.device_count > len(neighbour.devices):
        return False
    own = head.named or (place.devices[: head.device_count] if place is not None else ())
    return neighbour.devices.issuperset(own)
