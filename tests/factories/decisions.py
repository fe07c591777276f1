"""Experiments with made figures, for tests of decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from lem_domain.ids import IdKind, format_id
from lem_domain.results.findings import Verdict
from lem_domain.results.metrics import METRICS, Metric
from lem_server.decisions.facts import CycleFacts, EnergyReading, ExperimentFacts, WorkFacts

METRIC = {metric.name: metric for metric in METRICS}
ENERGY = METRIC["efficiency.energy_per_output_token_j"]
RATE = METRIC["speed.output_rate_tok_s"]


def reading(joules: float = 3000.0, **parts: Any) -> EnergyReading:
    """An energy of a minute at 50 W, by a sensor without errors unless `parts` has some."""
    exact = {"seconds": 60.0, "power": 1, "gain": 0.0, "offset_w": 0.0, "open_j": 0.0, "apart_j": 0.0}
    return EnergyReading(joules=joules, **{**exact, **parts})


def experiment(
    values: Sequence[float],
    *,
    number: int = 1,
    campaign: int = 1,
    metric: Metric = ENERGY,
    config: dict[str, Any] | None = None,
    varied: dict[str, Any] | None = None,
    energies: Sequence[EnergyReading] | None = None,
    verdicts: Sequence[Verdict] = (),
    **cycle: Any,
) -> ExperimentFacts:
    """An experiment with these values of one metric, one per cycle."""
    cycles = tuple(
        CycleFacts(
            run_id=format_id(IdKind.RUN, UUID(int=number * 100 + index)),
            cycle=index,
            verdict=verdicts[index - 1] if verdicts else "valid",
            values={metric.name: value},
            reasons={},
            energies={metric.name: energies[index - 1]} if energies else {},
            **{"sensors": ("GPU-1",), "devices": ("GPU-1",), "work": WorkFacts(), **cycle},
        )
        for index, value in enumerate(values, start=1)
    )
    return ExperimentFacts(
        experiment_id=format_id(IdKind.EXPERIMENT, UUID(int=number)),
        campaign_id=format_id(IdKind.CAMPAIGN, UUID(int=campaign)),
        display_name=f"experiment {number}",
        config_hash=f"{number:064x}",
        config=config or {},
        varied=varied or {},
        cycles=cycles,
    )
