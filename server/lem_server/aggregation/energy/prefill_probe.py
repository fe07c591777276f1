"""Prefill energy by a probe, and decode as the difference, for windows in which phases overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import PositiveInt

from lem_domain.results.energy import PhaseEnergy, PhaseSplit, PrefillProbe
from lem_domain.results.figures import EnergyFigure, Figure
from lem_domain.results.run import WorkResult
from lem_server.aggregation.energy.meters import Meter, not_sampled, sum_or_none, total_energy
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import Recorded


class ProbeWindow(Recorded):
    """From the release of the probe's first request to its last token, over all ranks."""

    begin_ns: int
    end_ns: int
    requests: PositiveInt
    prompt_tokens: PositiveInt

    @property
    def duration_s(self) -> float:
        """The length."""
        return (self.end_ns - self.begin_ns) / 1e9


def read_probe(ranks: Sequence[str], summaries: Summaries) -> ProbeWindow | None:
    """Read `prefill_probe` from the ranks' completion markers; None if one of them has no usable record."""
    recorded = [ProbeWindow.of(summaries.get(rank, {}).get("prefill_probe")) for rank in ranks]
    windows = [window for window in recorded if window is not None and window.end_ns > window.begin_ns]
    if not windows or len(windows) != len(recorded):
        return None
    return ProbeWindow(
        begin_ns=min(window.begin_ns for window in windows),
        end_ns=max(window.end_ns for window in windows),
        requests=sum(window.requests for window in windows),
        prompt_tokens=sum(window.prompt_tokens for window in windows),
    )


def probe_result(
    window: ProbeWindow | None,
    total: EnergyFigure,
    work: WorkResult,
    meters: Mapping[str, Meter],
    parts: Sequence[str],
) -> PrefillProbe | None:
    """E_prefill = E_probe × prompt tokens of the window / of the probe; E_decode = E - E_prefill.

    Errors may have any sign, so the bound of a difference is the sum of the bounds. The probe sends its prompts all at
    once; the power of a device that was idle between arrivals of the window is in decode.
    """
    if window is None:
        return None
    energies = {part: meters[part].energy(window) if part in meters else not_sampled() for part in parts}
    energy = total_energy(energies, "nothing measured energy during the probe")
    prefill = _scaled(energy, work.prompt_tokens / window.prompt_tokens)
    return PrefillProbe(
        duration_s=window.duration_s,
        requests=window.requests,
        prompt_tokens=window.prompt_tokens,
        energy=energy,
        prefill=prefill,
        decode=_difference(total, prefill),
    )


def with_probe(split: PhaseSplit, probe: PrefillProbe | None) -> PhaseSplit:
    """Return the split by lockstep batches if it has a figure for prefill, else the probe's."""
    if probe is None or split.prefill.energy.joules is not None:
        return split
    time_s = Figure(value=None, unit="s", reason="a probe divides energy, not time")
    return PhaseSplit(
        method="probe",
        batches=0,
        prefill=PhaseEnergy(energy=probe.prefill, time_s=time_s),
        decode=PhaseEnergy(energy=probe.decode, time_s=time_s),
    )


def _scaled(energy: EnergyFigure, factor: float) -> EnergyFigure:
    if energy.joules is None:
        return energy
    if energy.bound_parts is not None:
        # A meter's bound of the probe says nothing of how the window's prefill differs from it.
        return EnergyFigure(
            joules=energy.joules * factor,
            method=energy.method,
            source=energy.source,
            bound_reason=f"the probe is true within ± {energy.bound_j:.3g} J, but its batches may have other sizes "
            "than those of the window, and what that changes is not known",
        )
    bounds = {
        name: None if bound is None else bound * factor
        for name, bound in (("bound_j", energy.bound_j), ("sensor_bound_j", energy.sensor_bound_j))
    }
    return energy.model_copy(update={"joules": energy.joules * factor, **bounds})


def _difference(total: EnergyFigure, prefill: EnergyFigure) -> EnergyFigure:
    if total.joules is None or prefill.joules is None:
        return EnergyFigure(joules=None, source=total.source, reason=total.reason or prefill.reason)
    left = total.joules - prefill.joules
    if left < 0:
        return EnergyFigure(
            joules=None,
            source=total.source,
            reason=f"prefill alone took {prefill.joules:.3g} J in the probe and the whole window {total.joules:.3g} J, "
            "so nothing is left for decode; longer windows or more output tokens are needed",
        )
    return EnergyFigure(
        joules=left,
        method=total.method,
        source=total.source,
        bound_reason=prefill.bound_reason,
        bound_j=sum_or_none([total.bound_j, prefill.bound_j]),
        sensor_bound_j=sum_or_none([total.sensor_bound_j, prefill.sensor_bound_j]),
    )
