"""Energy per unit of work: every ratio is computed from sums."""

from __future__ import annotations

from lem_domain.results.energy import EnergyResult
from lem_domain.results.figures import Distribution, Figure
from lem_domain.results.run import EfficiencyResult, WorkResult


def efficiency_result(energy: EnergyResult, work: WorkResult, e2e_ms: Distribution) -> EfficiencyResult:
    """Return the ratios of docs/measurement.md (Tokens and time); null with the reason of the missing term."""
    total, prefill, finished = energy.total, energy.phases.prefill.energy, work.requests - work.failed_requests
    per_request = total.per(finished, "J", "no request finished")
    each_j, mean_ms = per_request.value, e2e_ms.mean
    product = each_j * mean_ms / 1e3 if each_j is not None and mean_ms is not None else None
    tokens_per_j = work.generated_tokens / total.joules if total.joules is not None and total.joules > 0 else None
    return EfficiencyResult(
        energy_per_output_token_j=total.per(work.generated_tokens, "J", "no token was generated"),
        energy_per_request_j=per_request,
        output_tokens_per_j=Figure.of(tokens_per_j, "1/J", total.reason or "the energy is not above zero"),
        energy_delay_product_js=Figure.of(product, "J·s", per_request.reason or e2e_ms.reason),
        energy_per_prompt_token_j=prefill.per(work.prompt_tokens, "J", "there was no prompt token"),
        net_energy_per_output_token_j=energy.net.per(work.generated_tokens, "J", "no token was generated"),
        energy_per_output_token_without_constant_j=energy.without_constant.per(
            work.generated_tokens, "J", "no token was generated"
        ),
    )
