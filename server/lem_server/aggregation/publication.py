"""The conditions under which the results of an experiment's cycles can be published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lem_domain.results.run import PublicationCondition
from lem_server.aggregation.findings.cycles import LEAST_CYCLES, Cycle

LEAST_STEADY_S: Final = 60.0
"""MLPerf Power measures for at least 60 s (docs/measurement.md)."""
TEMPERATURE_RANGE_C: Final = 4.0
"""Cycles start within ± 2 °C of each other."""


def publication_conditions(cycles: Sequence[Cycle]) -> tuple[PublicationCondition, ...]:
    """Return every condition of the publication profile, met or not."""
    steady = [cycle.steady_s for cycle in cycles]
    shortest = min((seconds or 0.0 for seconds in steady), default=0.0)
    starts = [cycle.start_temperature_c for cycle in cycles]
    known = [start for start in starts if start is not None]
    spread = max(known) - min(known) if known and len(known) == len(cycles) else None
    baselines = sum(cycle.has_baselines for cycle in cycles)
    clean = sum(not cycle.warnings for cycle in cycles)
    return (
        PublicationCondition(
            name="cycles", met=len(cycles) >= LEAST_CYCLES, detail=f"{len(cycles)} of at least {LEAST_CYCLES}"
        ),
        PublicationCondition(
            name="steady_state",
            met=shortest >= LEAST_STEADY_S,
            detail=f"the shortest is {shortest:.3g} s of at least {LEAST_STEADY_S:g} s",
        ),
        PublicationCondition(
            name="start_temperature",
            met=spread is not None and spread <= TEMPERATURE_RANGE_C,
            detail="not recorded in every cycle"
            if spread is None
            else f"within {spread:.3g} °C, of at most {TEMPERATURE_RANGE_C:g} °C",
        ),
        PublicationCondition(
            name="baselines",
            met=bool(cycles) and baselines == len(cycles),
            detail=f"{baselines} of {len(cycles)} cycles have one before and one after the window",
        ),
        PublicationCondition(
            name="findings",
            met=bool(cycles) and clean == len(cycles),
            detail=f"{clean} of {len(cycles)} cycles have no warning and no error",
        ),
    )
