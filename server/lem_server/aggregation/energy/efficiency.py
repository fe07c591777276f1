"""Energy per unit of work: every ratio is computed from sums."""

from __future__ import annotations

from lem_domain.results.energy import EnergyResult
from lem_domain.results.figures import Distribution, EnergyFigure, Figure
from lem_domain.results.run import EfficiencyResult, WorkResult


def efficiency_result(energy: EnergyResult, work: WorkResult, e2e_ms: Distribution) -> EfficiencyResult:
    """Return the ratios of docs/measurement.md (Tokens and time); null with the reason of the missing term."""
    total, finished = energy.total, work.requests - work.failed_requests
    per_request = _ratio(total, finished, "no request finished")
    if per_request.value is None or e2e_ms.mean is None:
        product = Figure(value=None, unit="J·s", reason=per_request.reason or e2e_ms.reason)
    else:
        product = Figure(value=per_request.value * e2e_ms.mean / 1e3, unit="J·s")
    if total.joules is not None and total.joules > 0:
        tokens_per_joule = Figure(value=work.generated_tokens / total.joules, unit="1/J")
    else:
        tokens_per_joule = Figure(value=None, unit="1/J", reason=total.reason or "the energy is not above zero")
    return EfficiencyResult(
        energy_per_output_token_j=_ratio(total, work.generated_tokens, "no token was generated"),
        energy_per_request_j=per_request,
        output_tokens_per_j=tokens_per_joule,
        energy_delay_product_js=product,
        energy_per_prompt_token_j=_ratio(energy.phases.prefill.energy, work.prompt_tokens, "there was no prompt token"),
        net_energy_per_output_token_j=_ratio(energy.net, work.generated_tokens, "no token was generated"),
        energy_per_output_token_without_constant_j=_ratio(
            energy.without_constant, work.generated_tokens, "no token was generated"
        ),
    )


def _ratio(energy: EnergyFigure, count: int, none_counted: str) -> Figure:
    if energy.joules is None:
        return Figure(value=None, unit="J", reason=energy.reason)
    if count == 0:
        return Figure(value=None, unit="J", reason=none_counted)
    return Figure(value=energy.joules / count, unit="J")
