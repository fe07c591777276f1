"""How an attempt can end, and what that says of the machine."""

from __future__ import annotations

from lem_worker.daemon.attempt_end import cancelled, handed_back, lease_expired, paused


def test_what_comes_from_outside_says_nothing_of_the_machine() -> None:
    """An outage of the server would otherwise open the circuit breaker of every healthy worker."""
    assert not any(why.machine_fault for why in (lease_expired(), cancelled(), handed_back(), paused()))
