"""Configuration of a campaign's runs: repetitions, order, gaps, placement and retries."""

from __future__ import annotations

from typing import Literal

from lem_domain.config.gaps import GapConfig, RunGaps
from lem_domain.config.model_base import ConfigModel, key
from lem_domain.config.ordering import Order

Placement = Literal["same_device", "same_model", "any"]


class ExecutionConfig(ConfigModel):
    """Repetitions, order, gaps, placement and retries of a campaign's runs."""

    cycles: int = key(1, "Number of runs of each experiment.", ge=1, le=10_000, unit="runs")
    order: Order = key(
        "interleaved",
        "interleaved: A B C, A B C (drift spreads over all); shuffled: a new permutation in each cycle; "
        "grouped: A A, B B, C C (fewest reloads); latin_square: over as many cycles as experiments, each has each "
        "position once, and follows each other one equally often.",
    )
    seed: int = key(0, "Seed of `shuffled` and `latin_square`; equal seeds give equal orders.", ge=0, le=2**63 - 1)
    config_gap: GapConfig | None = key(
        None,
        "Gap before a run of a different experiment than the previous run on the device, and before a new "
        "attempt. Counted from the end of the previous run on the device; other devices and campaigns are not delayed.",
    )
    cycle_gap: GapConfig | None = key(
        None,
        "Gap before a run of a different cycle than the previous run on the device. If both gaps "
        "apply, the longer one is used.",
    )
    placement: Placement = key(
        "same_device",
        "same_device: all runs on the device (or devices) of the first, one after another in their order; "
        "same_model: on any device of the same kind and name as the first; any: on any. Simulated devices are "
        "considered separately. A run that names its devices gets those.",
    )
    retries: int = key(
        0, "New attempts after a failure; infrastructure losses have a separate budget.", ge=0, le=100, unit="attempts"
    )
    fail_fast: bool = key(
        False, "End the campaign when a run fails for good: queued runs are cancelled, live runs finish."
    )

    @property
    def gaps(self) -> RunGaps:
        """Both gaps, for scheduling."""
        return RunGaps(self.config_gap, self.cycle_gap)
