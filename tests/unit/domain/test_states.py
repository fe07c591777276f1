"""The edges of a run's states."""

from __future__ import annotations

from lem_domain.states import EDGES, ENDED_STATES, LIVE_STATES, ActorKind, Edge, RunState


def test_every_live_state_can_be_interrupted_and_cancelled() -> None:
    for state in LIVE_STATES:
        for target in (RunState.INTERRUPTED, RunState.CANCELLED):
            assert {edge.actor for edge in EDGES if edge[:2] == (state, target)} == {ActorKind.WORKER, ActorKind.SERVER}


def test_aggregated_and_cancelled_are_final() -> None:
    assert not [edge for edge in EDGES if edge.source in (RunState.AGGREGATED, RunState.CANCELLED)]


def test_every_state_is_reachable_from_queued() -> None:
    reached, frontier = {RunState.QUEUED}, {RunState.QUEUED}
    while frontier:
        frontier = {edge.target for edge in EDGES if edge.source in frontier} - reached
        reached |= frontier
    assert reached == set(RunState)


def test_only_a_worker_completes_and_only_the_server_aggregates() -> None:
    assert Edge(RunState.RUNNING, RunState.COMPLETED, ActorKind.WORKER) in EDGES
    assert Edge(RunState.RUNNING, RunState.COMPLETED, ActorKind.USER) not in EDGES
    assert {edge.actor for edge in EDGES if edge.target is RunState.AGGREGATED} == {ActorKind.SERVER}


def test_live_and_ended_states_leave_only_queued() -> None:
    assert set(RunState) - LIVE_STATES - ENDED_STATES == {RunState.QUEUED}
