"""How long leases last and how often a worker beats."""

from __future__ import annotations

from typing import NamedTuple


class LeaseTerms(NamedTuple):
    """The terms of every lease, from the server's settings."""

    ttl_s: float
    grace_s: float
    beat_interval_s: float
