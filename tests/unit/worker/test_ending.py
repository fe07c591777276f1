"""How an attempt can end, and what that says of the machine."""

from __future__ import annotations

from lem_worker.daemon.ending import cancelled, handed_back, out_of_touch, paused


def test_what_comes_from_outside_says_nothing_of_the_machine() -> None:
    """An outage of the server would otherwise open the circuit breaker of every healthy worker."""
    assert not any(why.speaks_of_machine for why in (out_of_touch(), cancelled(), handed_back(), paused()))
