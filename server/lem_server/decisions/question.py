"""What a subprocess is to decide. Without scipy, because the server itself imports it."""

from __future__ import annotations

from typing import NamedTuple

from lem_domain.results.metrics import Metric
from lem_domain.wire.decisions import ComparabilityFinding
from lem_server.decisions.matching import Matched


class Question(NamedTuple):
    """What is to be compared, and how."""

    matched: Matched
    metrics: tuple[Metric, ...]
    intended: tuple[str, ...] = ()
    """Keys that differ on purpose, with those that the experiments' campaigns vary."""
    margin: float | None = None
    limits: tuple[float, ...] = ()
    """Of a gate: the allowed regression of each metric."""
    allow_different_work: bool = False
    notes: tuple[ComparabilityFinding, ...] = ()
    """What holds for every pair."""
