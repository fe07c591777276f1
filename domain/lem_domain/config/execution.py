"""Configuration of a campaign's runs: repetitions, order, gaps, placement and retries."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lem_domain.config.gaps import GapConfig, RunGaps
from lem_domain.config.model_base import ConfigModel, unit
from lem_domain.config.ordering import Order

Placement = Literal["same_device", "same_model", "any"]


class ExecutionConfig(ConfigModel):
    """Repetitions, order, gaps, placement and retries of a campaign's runs."""

    cycles: int = Field(
        default=1, ge=1, le=10_000, description="Number of runs of each experiment.", json_schema_extra=unit("runs")
    )
    order: Order = Field(
        default="interleaved",
        description="interleaved: A B C, A B C (drift spreads over all); shuffled: a new permutation in each cycle; "
        "grouped: A A, B B, C C (fewest reloads); latin_square: over as many cycles as experiments, each has each "
        "position once, and follows each other one equally often.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**63 - 1,
        description="Seed of `shuffled` and `latin_square`; equal seeds give equal orders.",
    )
    config_gap: GapConfig | None = Field(
        default=None,
        description="Gap before a run of a different experiment than the previous run on the device, and before a new "
        "attempt. Counted from the end of the previous run on the device; other devices and campaigns are not delayed.",
    )
    cycle_gap: GapConfig | None = Field(
        default=None,
        description="Gap before a run of a different cycle than the previous run on the device. If both gaps "
        "apply, the longer one is used.",
    )
    placement: Placement = Field(
        default="same_device",
        description="same_device: all runs on the device (or devices) of the first, one after another in their order; "
        "same_model: on any device of the same kind and name as the first; any: on any. Simulated devices are "
        "considered separately. A run that names its devices gets those.",
    )
    retries: int = Field(
        default=0,
        ge=0,
        le=100,
        description="New attempts after a failure; infrastructure losses have a separate budget.",
        json_schema_extra=unit("attempts"),
    )
    fail_fast: bool = Field(
        default=False,
        description="End the campaign when a run fails for good: queued runs are cancelled, live runs finish.",
    )

    @property
    def gaps(self) -> RunGaps:
        """Both gaps, for scheduling."""
        return RunGaps(self.config_gap, self.cycle_gap)
