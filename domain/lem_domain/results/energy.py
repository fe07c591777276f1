"""The energy part of a result: per device and host domain, in total, net of the baseline, and by phase."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from lem_domain.config.calibration import DeviceCalibration
from lem_domain.results.figures import EnergyFigure, Figure, ResultModel, is_absent

BaselineContext = Literal["idle", "ready", "ready_after"]
"""`idle`: before the engine starts; `ready`: engine loaded, no requests, before the window; `ready_after`: after it."""


NOT_DIVIDED = "method m1 does not look for constants of a model; aggregate the run by m2"
"""Reason of the figures without a model's constant where they are absent."""


class RefusalKind(StrEnum):
    """Why readings are in no figure (method `m2`). They stay in the evidence."""

    POWER_NOT_POSITIVE = "power_not_positive"
    POWER_ABOVE_LIMIT = "power_above_limit"
    POWER_FROZEN = "power_frozen"
    COUNTER_OUT_OF_RANGE = "counter_out_of_range"
    COUNTER_LEAP = "counter_leap"
    COUNTER_RESET = "counter_reset"
    COUNTER_STALLED = "counter_stalled"
    COUNTER_UNIT = "counter_unit"


class RefusedReadings(ResultModel):
    """Readings of one kind around the window that are in no figure."""

    kind: RefusalKind
    occurrences: int = Field(ge=1, description="Stretches without a usable reading in between.")
    readings: int = Field(ge=0, description="Readings in them; a step of a counter is between two.")
    longest_s: float = Field(ge=0, description="Length of the longest.")


class DeviceEnergy(ResultModel):
    """The energy of one leased device."""

    uuid: str
    energy: EnergyFigure
    integrated: EnergyFigure | None = Field(
        default=None, description="The integral of instant power, if the figure is the counter's."
    )
    refused: tuple[RefusedReadings, ...] = Field(
        default=(), exclude_if=is_absent, description="What is not in the figure because it can't be; absent if empty."
    )
    counter_reason: str | None = Field(
        default=None,
        exclude_if=is_absent,
        description="Why the figure is not the counter's, although the device has one; absent under `m1`.",
    )
    calibration: DeviceCalibration | None = Field(
        default=None, exclude_if=is_absent, description="The user's calibration that corrects the readings, if any."
    )
    uncorrected_j: float | None = Field(
        default=None, exclude_if=is_absent, description="The energy as the readings show it, before the calibration."
    )
    mean_power_w: Figure
    peak_power_w: Figure
    samples: int = Field(ge=0, description="Power samples inside the window.")
    counter_period_ms: Figure = Field(description="Mean time between two updates of the counter, as observed.")
    sampling_period_ms: Figure = Field(description="Median time between two samples.")


class HostEnergy(ResultModel):
    """The energy of one host domain (package, dram)."""

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
    bound_w: float | None = Field(default=None, ge=0, description="Null if no bound is stated.")


class Baseline(ResultModel):
    """Power without requests."""

    context: BaselineContext
    duration_s: float | None = Field(description="Null for a baseline of an earlier attempt.")
    parts: tuple[PartPower, ...]
    mean_power_w: Figure = Field(description="Over all parts that the job's energy includes.")
    bound_w: float | None = Field(default=None, ge=0, description="Sum of the parts' bounds.")
    sensor_bound_w: float | None = Field(
        default=None, ge=0, description="The part of it that is the sensors' accuracy; null if one is not stated."
    )
    standard_error_w: float | None = Field(
        default=None, ge=0, description="Of the mean, from means over successive seconds; null below three seconds."
    )
    stationary: bool | None = Field(
        default=None, description="Whether the worker saw a standard error below 1 % of the mean before the time limit."
    )
    age_s: float | None = Field(default=None, description="Set if an earlier attempt measured it.")
    taken_by: str | None = Field(default=None, description="The attempt that measured it.")


class PhaseEnergy(ResultModel):
    """Prefill or decode in the window, summed over the batches."""

    energy: EnergyFigure
    time_s: Figure


class PhaseSplit(ResultModel):
    """The window by phase: from batches in lockstep, or from a probe of prefill alone."""

    method: Literal["lockstep", "probe"] = "lockstep"
    batches: int = Field(ge=0)
    prefill: PhaseEnergy = Field(description="From a batch's release to its first token.")
    decode: PhaseEnergy = Field(description="From a batch's first token to its last.")


class PrefillProbe(ResultModel):
    """The probe's window: the prompts of the measured window again, with one output token each."""

    duration_s: float = Field(gt=0)
    requests: int = Field(ge=1)
    prompt_tokens: int = Field(ge=1)
    energy: EnergyFigure = Field(description="Over the same parts as the job's energy.")
    prefill: EnergyFigure = Field(description="`energy` × prompt tokens of the window / those of the probe.")
    decode: EnergyFigure = Field(description="The job's energy minus `prefill`; its bound is the sum of both bounds.")


def _not_divided() -> EnergyFigure:
    return EnergyFigure(joules=None, reason=NOT_DIVIDED)


def _is_not_divided(found: EnergyFigure) -> bool:
    return found.reason == NOT_DIVIDED


class EnergyResult(ResultModel):
    """Energy over the measured window, per part and in total; figures of different parts are kept apart."""

    devices: tuple[DeviceEnergy, ...]
    host: tuple[HostEnergy, ...]
    total: EnergyFigure = Field(description="The job's energy: the sum over what `includes` lists.")
    includes: tuple[str, ...] = Field(
        description="The parts of `total`: device UUIDs if accelerators were leased, else host domains."
    )
    constant: EnergyFigure = Field(
        default_factory=_not_divided,
        exclude_if=_is_not_divided,
        description="The part of `total` that a model takes as constant, whatever the load; null if there is none, "
        "absent under `m1`.",
    )
    constant_includes: tuple[str, ...] = Field(
        default=(), exclude_if=is_absent, description="The parts of `constant`; absent if there is none."
    )
    without_constant: EnergyFigure = Field(
        default_factory=_not_divided,
        exclude_if=_is_not_divided,
        description="`total` − `constant`; null if no part is constant, absent under `m1`.",
    )
    mean_power_w: Figure
    peak_power_w: Figure = Field(
        description="The highest power of all parts of `includes` together, interpolated between their samples.",
    )
    measured_total: EnergyFigure = Field(
        description="Accelerators and host together, measured figures only (none of a model).",
    )
    measured_includes: tuple[str, ...] = Field(default=(), description="The parts of `measured_total`.")
    gpu: EnergyFigure = Field(description="Sum over the leased accelerators.")
    cpu: EnergyFigure = Field(description="Sum over the host's CPU packages.")
    dram: EnergyFigure = Field(description="Sum over the host's memory.")
    net: EnergyFigure = Field(
        description="`total` minus the power of the `ready` baseline over the window; may be negative.",
    )
    baselines: tuple[Baseline, ...] = ()
    phases: PhaseSplit
    probe: PrefillProbe | None = Field(default=None, description="Null unless prefill_probe is on.")
