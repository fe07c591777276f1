"""Findings between the cycles of one experiment: drift of power, with temperature at their start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from lem_domain.results.findings import Finding, FindingCode, Severity
from lem_domain.results.run import RunResult
from lem_server.aggregation.findings.rule import Occurrence, RunFacts, rule
from lem_server.aggregation.linear_trend import LinearTrend, fit_trend

DRIFT: Final = 0.02
LEAST_CYCLES: Final = 5


class Cycle(NamedTuple):
    """What of a cycle's result is compared with the others; None where the result has no figure."""

    mean_power_w: float | None
    start_temperature_c: float | None
    """Mean over the devices."""
    energy_per_output_token_j: float | None
    steady_s: float | None
    """None without figures of the steady state."""
    has_baselines: bool
    warnings: int

    @classmethod
    def of(cls, result: RunResult) -> Cycle:
        """Take the values of a result."""
        starts = [device.temperature_start_c.value for device in result.telemetry.devices]
        known = [start for start in starts if start is not None]
        contexts = {one.context for one in result.energy.baselines if one.mean_power_w.value is not None}
        return cls(
            mean_power_w=result.energy.mean_power_w.value,
            start_temperature_c=sum(known) / len(known) if known else None,
            energy_per_output_token_j=result.efficiency.energy_per_output_token_j.value,
            steady_s=None if result.steady.energy.joules is None else result.steady.duration_s.value,
            has_baselines=contexts >= {"ready", "ready_after"},
            warnings=sum(finding.severity is not Severity.NOTE for finding in result.findings),
        )


@rule(
    FindingCode.CYCLES_DRIFT,
    when=f"over at least {LEAST_CYCLES} cycles of an experiment mean power changes by more than {DRIFT:.0%} from the "
    "first to the last, and by more than the 95 % interval of the line through it",
    remedy="let the devices cool between runs with `execution.config_gap` and `execution.cycle_gap`, or wait for their "
    "temperature with `settle.temperature_c`",
)
def cycles_drift(_facts: RunFacts) -> Iterator[Occurrence]:
    """Power drifted from cycle to cycle. One run alone never shows it; see `drift_between`."""
    return iter(())


def drift_between(cycles: Sequence[Cycle]) -> tuple[Finding, ...]:
    """Return `cycles_drift` if power has a trend over the cycles, in their order."""
    power = _trend(np.arange(len(cycles)), [cycle.mean_power_w for cycle in cycles])
    if power is None or not power.beyond(DRIFT):
        return ()
    numbers = {"cycles": len(cycles), "power_change": power.change, "uncertainty": power.uncertainty}
    found = (
        f"Mean power changed by {power.change:+.1%} ± {power.uncertainty:.1%} over the {len(cycles)} cycles of this "
        "experiment"
    )
    temperatures = [cycle.start_temperature_c for cycle in cycles]
    known = [temperature for temperature in temperatures if temperature is not None]
    if len(known) == len(cycles):
        found += f" (temperature at their start: {known[0]:.0f} °C in the first, {known[-1]:.0f} °C in the last)"
        numbers |= {"first_c": known[0], "last_c": known[-1]}
        energy = _trend(np.array(known), [cycle.energy_per_output_token_j for cycle in cycles])
        if energy is not None:
            per_degree = energy.change / float(np.ptp(known))
            found += f"; their energy per output token differs by {per_degree:+.2%} per °C"
            numbers["energy_change_per_c"] = per_degree
    return (cycles_drift.finding(Occurrence(found, numbers)),)


def _trend(at: np.ndarray[tuple[int], np.dtype[np.generic]], values: Sequence[float | None]) -> LinearTrend | None:
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if len(known) < LEAST_CYCLES or len(known) < len(values) or not np.ptp(at):
        return None
    return fit_trend((at - at.min()) / np.ptp(at), known)
