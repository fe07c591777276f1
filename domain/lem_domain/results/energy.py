"""The energy part of a result: per device and part of the host, in all, net of the baseline, and by phase."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lem_domain.results.figures import EnergyFigure, Figure, ResultModel

BaselineContext = Literal["idle", "ready", "ready_after"]
"""Before the engine is there; with it loaded and waiting, before the window; and the same after the window."""


class DeviceEnergy(ResultModel):
    """The energy of one leased device."""

    uuid: str
    energy: EnergyFigure
    integrated: EnergyFigure | None = Field(
        default=None, description="The integral of instant power, beside a figure that is the counter's."
    )
    mean_power_w: Figure
    peak_power_w: Figure
    samples: int = Field(ge=0, description="Power samples inside the window.")
    counter_period_ms: Figure = Field(description="Mean time between two updates of the counter, as observed.")
    sampling_period_ms: Figure = Field(description="Median time between two samples.")


class HostEnergy(ResultModel):
    """The energy of one part of the host (package, dram)."""

    domain: str
    energy: EnergyFigure
    mean_power_w: Figure
    samples: int = Field(ge=0, description="Samples inside the window.")
    counter_period_ms: Figure = Field(description="Mean time between two updates of the counter, as observed.")
    sampling_period_ms: Figure = Field(description="Median time between two samples.")


class PartPower(ResultModel):
    """Mean power of one part during a baseline."""

    part: str = Field(description="Device UUID or host domain.")
    mean_power_w: float
    bound_w: float | None = Field(default=None, ge=0, description="Null where none is stated.")


class Baseline(ResultModel):
    """Power without requests."""

    context: BaselineContext
    duration_s: float | None = Field(description="Null for one that was measured by an earlier attempt.")
    parts: tuple[PartPower, ...]
    mean_power_w: Figure = Field(description="Of all parts that the job's energy includes.")
    bound_w: float | None = Field(default=None, ge=0, description="Sum of the parts' bounds.")
    sensor_bound_w: float | None = Field(
        default=None, ge=0, description="What of it is the accuracy of the sensors, null where one's is not stated."
    )
    standard_error_w: float | None = Field(
        default=None, ge=0, description="Of the mean, from means over successive seconds; null below three of them."
    )
    stationary: bool | None = Field(
        default=None, description="Whether the worker saw the standard error below 1 % of the mean before its limit."
    )
    age_s: float | None = Field(default=None, description="Set where it was measured by an earlier attempt.")
    taken_by: str | None = Field(default=None, description="That attempt.")


class PhaseEnergy(ResultModel):
    """Prefill or decode inside the window, summed over the batches."""

    energy: EnergyFigure
    time_s: Figure


class PhaseSplit(ResultModel):
    """The window by phase: for batches that run in lockstep, or by a probe of prefill alone."""

    method: Literal["lockstep", "probe"] = "lockstep"
    batches: int = Field(ge=0)
    prefill: PhaseEnergy = Field(description="From a batch's release to its first token.")
    decode: PhaseEnergy = Field(description="From a batch's first token to its last.")


class PrefillProbe(ResultModel):
    """The window of the probe: the prompts of the window again, for one output token each."""

    duration_s: float = Field(gt=0)
    requests: int = Field(ge=1)
    prompt_tokens: int = Field(ge=1)
    energy: EnergyFigure = Field(description="Of the same parts as the job's.")
    prefill: EnergyFigure = Field(description="`energy` × prompt tokens of the window / those of the probe.")
    decode: EnergyFigure = Field(description="The job's energy minus `prefill`; its bound is the sum of both bounds.")


class EnergyResult(ResultModel):
    """Energy over the measured window, per part and in all; figures of different parts stay apart."""

    devices: tuple[DeviceEnergy, ...]
    host: tuple[HostEnergy, ...]
    total: EnergyFigure = Field(description="The job's energy: the sum over what `includes` lists.")
    includes: tuple[str, ...] = Field(
        description="What is in `total`: device UUIDs where accelerators were leased, else the host's domains."
    )
    mean_power_w: Figure
    peak_power_w: Figure = Field(
        description="The highest power of all parts of `includes` together, each interpolated between its samples.",
    )
    measured_total: EnergyFigure = Field(
        description="Accelerators and host together, of what was measured: a model's figures are not in it.",
    )
    measured_includes: tuple[str, ...] = Field(default=(), description="What is in `measured_total`.")
    gpu: EnergyFigure = Field(description="Sum over the leased accelerators.")
    cpu: EnergyFigure = Field(description="Sum over the host's CPU packages.")
    dram: EnergyFigure = Field(description="Sum over the host's memory.")
    net: EnergyFigure = Field(
        description="`total` minus the power of the `ready` baseline over the window; negative where that is more.",
    )
    baselines: tuple[Baseline, ...] = ()
    phases: PhaseSplit
    probe: PrefillProbe | None = Field(default=None, description="Null unless prefill_probe is on.")
