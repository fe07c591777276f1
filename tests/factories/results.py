"""Results of a campaign as the server answers them."""

from __future__ import annotations

from lem_domain.results.run import CycleSummary
from lem_domain.states import CampaignState, RunState
from lem_domain.wire.campaigns import CampaignResults, ExperimentResults, RunCounts, RunOutcome


def summary(metric: str, unit: str, *values: float, reason: str | None = None) -> CycleSummary:
    """One metric over cycles."""
    mean = sum(values) / len(values) if values else None
    return CycleSummary(
        metric=metric, unit=unit, values=values, mean=mean, sd=0.0 if len(values) > 1 else None, cv=None, reason=reason
    )


def campaign_results(**changes: object) -> CampaignResults:
    """One experiment of four cycles, one of them aggregated; `changes` replace its fields."""
    one = ExperimentResults(
        experiment_id=f"exp_{'1' * 32}",
        display_name="batch_size=1",
        varied={},
        outcomes=(
            RunOutcome(run_id=f"run_{'1' * 32}", cycle=1, state=RunState.AGGREGATED, verdict="questionable"),
            RunOutcome(run_id=f"run_{'2' * 32}", cycle=2, state=RunState.FAILED, reason="out_of_memory"),
            RunOutcome(run_id=f"run_{'3' * 32}", cycle=3, state=RunState.QUEUED, reason="queued"),
            RunOutcome(run_id=f"run_{'4' * 32}", cycle=4, state=RunState.QUEUED, reason="queued"),
        ),
        verdict="questionable",
        energy_method="modelled",
        energy_includes=("package", "dram"),
        findings=("the energy is modelled", "few samples"),
        metrics=(
            summary("efficiency.energy_per_output_token_j", "J", 0.0123),
            summary("speed.output_rate_tok_s", "tok/s", 20.0),
            summary("speed.ttft_ms.mean", "ms", reason="no request has a first token"),
        ),
    ).model_copy(update=changes)
    return CampaignResults(
        campaign_id=f"cmp_{'1' * 32}",
        name="a|b",
        state=CampaignState.COMPLETED,
        runs=RunCounts(aggregated=1, failed=1, queued=2),
        experiments=(one,),
    )
