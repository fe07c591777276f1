"""Marks the phases of a rank in its evidence and reports them to the daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from lem_domain.evidence.streams import PhaseName
from lem_worker.process.evidence_rows import Clock, EvidenceRows
from lem_worker.process.protocol import ControlMessage, PhaseEdge


class Phases:
    """Phases of one rank; `current` is the one that began last."""

    def __init__(self, rows: EvidenceRows, send: Callable[[ControlMessage], None], clock: Clock) -> None:
        self.current = PhaseName.LOAD
        self._rows = rows
        self._send = send
        self._clock = clock

    @contextmanager
    def phase(self, name: PhaseName) -> Iterator[None]:
        """Mark the body as a phase, which ends also when the body raises."""
        self.current = name
        self._mark(name, "begin")
        try:
            yield
        finally:
            self._mark(name, "end")

    def _mark(self, name: PhaseName, edge: Literal["begin", "end"]) -> None:
        now = self._clock()
        self._rows.append(phase=name.value, edge=edge, time_ns=now, detail=None)
        self._send(PhaseEdge(phase=name, edge=edge, time_ns=now))
