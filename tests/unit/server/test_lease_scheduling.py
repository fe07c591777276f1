"""Which run a worker gets: turns without starvation, gaps that keep devices, places, and the order across backends."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_domain.config.gaps import ExperimentCycle, GapConfig, RunGaps
from lem_server.leases.scheduling import (
    CampaignPlace,
    DeferReason,
    Deferred,
    FreeDevice,
    NextRun,
    OnlineWorker,
    QueuedCampaign,
    SchedulingPass,
    remaining_gap,
)

A100, CPU = ("gpu", "A100"), ("cpu", "Xeon")
NO_GAPS = RunGaps(None, None)
MINUTE = RunGaps(GapConfig(seconds=60), GapConfig(seconds=60))
RUN_S = 10.0


def device(uuid: str, model: tuple[str, str] = A100, **facts: float) -> FreeDevice:
    return FreeDevice(uuid, *model, facts.get("idle_s"), facts.get("temperature_c"))


def waiting(
    number: int = 1, count: int = 1, fitting: tuple[str, ...] = ("g0", "g1"), **facts: object
) -> QueuedCampaign:
    run = NextRun(0, ExperimentCycle("A", 1), count, fitting)
    known: dict[str, object] = {"backend": "pytorch", "placement": "any", "gaps": NO_GAPS, "run": run, **facts}
    return QueuedCampaign(campaign_id=UUID(int=number), **known)  # type: ignore[arg-type]


def first(look: SchedulingPass, *queue: QueuedCampaign) -> tuple[UUID, tuple[str, ...]] | None:
    return next(((choice.campaign.campaign_id, choice.devices) for choice in look.choices(queue)), None)


ME = OnlineWorker("pytorch", frozenset({"g0", "g1"}), asking=True)


def look_of(*free: FreeDevice, others: tuple[OnlineWorker, ...] = ()) -> SchedulingPass:
    return SchedulingPass("pytorch", free, (ME, *others))


# --- turns ------------------------------------------------------------------------------------------------------------


@dataclass
class Simulated:
    """A campaign in a simulation of one device."""

    number: int
    gap_s: float
    priority: int = 0
    served_at: float = -1.0
    ran: bool = False
    services: list[int] = field(default_factory=list)

    def waits(self) -> QueuedCampaign:
        gap = GapConfig(seconds=self.gap_s) if self.gap_s else None
        previous = {"g0": ExperimentCycle("A", 1)} if self.ran else {}
        return waiting(self.number, fitting=("g0",), gaps=RunGaps(gap, gap), previous=previous)


def served(campaigns: list[Simulated], rounds: int) -> list[int]:
    """Who gets the device, run after run; it stands still only while everybody whose turn it is waits for a gap."""
    now, ended, order = 0.0, None, []
    while len(order) < rounds:
        queue = sorted(campaigns, key=lambda one: (-one.priority, one.served_at, one.number))
        look = look_of(FreeDevice("g0", *A100, None if ended is None else now - ended))
        found = first(look, *(one.waits() for one in queue))
        if found is None:
            again = look.outlook.retry_after_s
            assert again is not None, "nobody gets the device and nobody knows when"
            now += max(again, 0.001)
            continue
        chosen = next(one for one in campaigns if UUID(int=one.number) == found[0])
        chosen.served_at, chosen.ran = now, True
        order.append(chosen.number)
        now += RUN_S
        ended = now
    return order


@given(gaps=st.lists(st.sampled_from([0.0, 1.0, 30.0, 3600.0]), min_size=1, max_size=6))
def test_no_campaign_starves_whatever_gaps_the_others_have(gaps: list[float]) -> None:
    """Between two runs of one campaign each other one of its priority has at most one."""
    campaigns = [Simulated(number, gap) for number, gap in enumerate(gaps, start=1)]
    order = served(campaigns, 5 * len(campaigns))
    assert set(Counter(order).values()) == {5}
    for number in range(1, len(gaps) + 1):
        places = [place for place, one in enumerate(order) if one == number]
        for begin, end in pairwise(places):
            assert set(Counter(order[begin + 1 : end]).values()) <= {1}


def test_a_higher_priority_is_not_kept_waiting_by_lower_ones_in_its_gaps() -> None:
    urgent, other = Simulated(1, 30.0, priority=1), Simulated(2, 0.0)
    assert served([urgent, other], 6) == [1] * 6


def test_who_waits_for_a_gap_keeps_its_device_and_no_other() -> None:
    first_in_turn = waiting(1, fitting=("g0",), gaps=MINUTE, previous={"g0": ExperimentCycle("A", 1)})
    second = waiting(2)
    look = look_of(device("g0", idle_s=10), device("g1", idle_s=10))
    assert first(look, first_in_turn, second) == (UUID(int=2), ("g1",))
    look = look_of(device("g0", idle_s=10))
    assert first(look, first_in_turn, replace(second, run=NextRun(0, ExperimentCycle("A", 1), 1, ("g0",)))) is None
    assert look.outlook == (True, 50.0, False)


def test_a_device_is_kept_for_a_worker_next_to_it_that_asks_and_not_for_one_that_does_other_things() -> None:
    theirs, mine = waiting(1, backend="vllm"), waiting(2)
    for asking, expected in ((True, (UUID(int=2), ("g1",))), (False, (UUID(int=2), ("g0",)))):
        beside = OnlineWorker("vllm", frozenset({"g0"}), asking)
        assert first(look_of(device("g0"), device("g1"), others=(beside,)), theirs, mine) == expected


def test_a_choice_that_someone_else_takes_first_keeps_nothing() -> None:
    look = look_of(device("g0"))
    choices = look.choices([waiting(1), waiting(2)])
    assert [choice.campaign.campaign_id.int for choice in choices] == [1, 2]


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "others", "expected"),
    [
        ("same_device", (OnlineWorker("vllm", frozenset({"g0"}), asking=False),), None),
        ("same_device", (), UUID(int=1)),
        ("any", (OnlineWorker("vllm", frozenset({"g9"}), asking=False),), UUID(int=1)),
    ],
)
def test_under_same_device_a_run_waits_for_those_before_it_that_some_worker_can_take(
    placement: str, others: tuple[OnlineWorker, ...], expected: UUID | None
) -> None:
    earlier = waiting(1, backend="vllm", placement=placement)
    later = waiting(1, placement=placement, run=NextRun(1, ExperimentCycle("B", 1), 1, ("g0",)))
    found = first(look_of(device("g0"), others=others), earlier, later)
    assert (found and found[0]) == expected


def test_a_run_before_it_that_is_placed_where_no_worker_of_its_backend_is_blocks_no_other() -> None:
    place = CampaignPlace(("g0",), *A100)
    earlier = waiting(1, backend="vllm", placement="same_device", place=place)
    later = waiting(1, placement="same_device", place=place, run=NextRun(1, ExperimentCycle("B", 1), 1, ("g0",)))
    elsewhere = OnlineWorker("vllm", frozenset({"g7"}), asking=True)
    assert first(look_of(device("g0"), others=(elsewhere,)), earlier, later) == (UUID(int=1), ("g0",))


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "place", "count", "expected"),
    [
        ("any", None, 2, ("g0", "g1")),
        ("same_device", None, 1, ("g0",)),
        ("same_device", ("g1",), 1, ("g1",)),
        ("same_device", ("g1",), 2, ("g1", "g0")),
        ("same_device", ("g1", "g0"), 1, ("g1",)),
        ("same_device", ("g9",), 1, None),
        ("same_model", None, 1, ("g0",)),
        ("same_model", ("g9",), 1, ("g0",)),
        ("same_model", ("g9",), 2, None),
    ],
)
def test_devices_are_those_of_the_place(
    placement: str, place: tuple[str, ...] | None, count: int, expected: tuple[str, ...] | None
) -> None:
    known = None if place is None else CampaignPlace(place, *A100)
    one = waiting(count=count, placement=placement, place=known)
    free = device("g0"), device("g1", CPU if placement == "same_model" else A100)
    assert look_of(*free).devices_for(one, one.run) == (expected or Deferred(DeferReason.PLACE))


def test_a_run_that_names_its_devices_gets_those_wherever_its_campaign_is() -> None:
    one = waiting(
        placement="same_device",
        place=CampaignPlace(("g1",), *A100),
        run=NextRun(0, ExperimentCycle("A", 1), 1, ("g0",), ("g0",)),
    )
    assert look_of(device("g0"), device("g1")).devices_for(one, one.run) == ("g0",)


def test_of_several_devices_those_are_taken_that_have_rested() -> None:
    one = waiting(gaps=MINUTE, previous={"g0": ExperimentCycle("A", 1)})
    assert look_of(device("g0", idle_s=10), device("g1", idle_s=10)).devices_for(one, one.run) == ("g1",)
    both = waiting(count=2, gaps=MINUTE, previous={"g0": ExperimentCycle("A", 1), "g1": ExperimentCycle("B", 2)})
    held = look_of(device("g0", idle_s=10), device("g1", idle_s=40)).devices_for(both, both.run)
    assert held == Deferred(DeferReason.GAP, ("g1", "g0"), 50.0)


def test_cooling_is_distinguished_from_resting() -> None:
    cooling = GapConfig(temperature_c=45, max_seconds=300)
    assert remaining_gap([cooling], idle_s=10, temperature_c=50) == (290, True)
    assert remaining_gap([cooling], idle_s=10, temperature_c=45) == (0, False)
    assert remaining_gap([cooling, GapConfig(seconds=60)], idle_s=10, temperature_c=45) == (50, False)
    assert remaining_gap([cooling], idle_s=None, temperature_c=90) == (0, False)
