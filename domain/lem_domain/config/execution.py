"""How the runs of a campaign are repeated, ordered, spaced and placed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lem_domain.config.gaps import GapConfig, Gaps
from lem_domain.config.model_base import ConfigModel, unit
from lem_domain.config.ordering import Order

Placement = Literal["same_device", "same_model", "any"]


class ExecutionConfig(ConfigModel):
    """How the runs of a campaign are repeated, ordered, spaced and placed."""

    cycles: int = Field(
        default=1, ge=1, le=10_000, description="How often each experiment is run.", json_schema_extra=unit("runs")
    )
    order: Order = Field(
        default="interleaved",
        description="interleaved: A B C, A B C (drift spreads over all); shuffled: a fresh permutation in each cycle; "
        "grouped: A A, B B, C C (fewest reloads); latin_square: over as many cycles as experiments, each has each "
        "place once, and follows each other one equally often.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**63 - 1,
        description="Of `shuffled` and `latin_square`; the same gives the same order.",
    )
    config_gap: GapConfig | None = Field(
        default=None,
        description="Before a run of another experiment than the previous one's on that device, and before a new "
        "attempt. Counted once from the end of the previous run on the device; other devices and campaigns work on.",
    )
    cycle_gap: GapConfig | None = Field(
        default=None,
        description="Before a run of another cycle than the previous one's on that device; of the two the longer.",
    )
    placement: Placement = Field(
        default="same_device",
        description="same_device: all runs on the device (or devices) of the first, one after another in their order; "
        "same_model: on any device of the same kind and name as the first; any: on any. Simulated devices are taken "
        "by themselves. A run that names its devices gets those.",
    )
    retries: int = Field(
        default=0,
        ge=0,
        le=100,
        description="New attempts after a failure; losses of infrastructure have a budget of their own.",
        json_schema_extra=unit("attempts"),
    )
    fail_fast: bool = Field(
        default=False,
        description="A run that failed for good ends the campaign: what is queued is cancelled, what is live finishes.",
    )

    @property
    def gaps(self) -> Gaps:
        """Both gaps."""
        return Gaps(self.config_gap, self.cycle_gap)
