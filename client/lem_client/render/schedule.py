"""Text for a campaign's order, gaps, placement and least duration."""

from __future__ import annotations

from collections.abc import Iterator

from lem_client.render.numbers import duration
from lem_domain.config.execution import ExecutionConfig
from lem_domain.wire.campaigns import CampaignPlan

_PLACEMENTS = {
    "same_device": "all on the device of the first run",
    "same_model": "on devices of the same model as the first run's",
    "any": "on any device",
}


def execution_summary(execution: ExecutionConfig) -> str:
    """`shuffled (seed 7); gaps: 60 s between experiments; all on the device of the first run`."""
    return "; ".join(_parts(execution))


def least_duration_text(plan: CampaignPlan) -> str:
    """`12 min 00 s of measuring, 2 min 00 s of it gaps`."""
    gaps = f", {duration(plan.minimum_gap_s)} of it gaps" if plan.minimum_gap_s else ""
    shared = "" if plan.execution.placement == "same_device" else " (on one device; several divide it)"
    return f"{duration(plan.minimum_duration_s)} of measuring{gaps}{shared}"


def _parts(execution: ExecutionConfig) -> Iterator[str]:
    seeded = execution.order in ("shuffled", "latin_square")
    yield f"{execution.order} (seed {execution.seed})" if seeded else execution.order
    gaps = [
        f"{gap.describe()} between {what}"
        for gap, what in ((execution.config_gap, "experiments"), (execution.cycle_gap, "cycles"))
        if gap is not None
    ]
    if gaps:
        yield f"gaps: {', '.join(gaps)}"
    yield _PLACEMENTS[execution.placement]
    if execution.fail_fast:
        yield "ends with the first run that fails"
