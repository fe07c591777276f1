"""Findings of a result, and the verdict that follows from them."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from lem_domain.results.figures import ResultModel


class Severity(StrEnum):
    """Effect of a finding on the verdict."""

    NOTE = "info"
    WARNING = "warning"
    ERROR = "error"


class FindingCode(StrEnum):
    """The code of a finding; docs/reference/findings.md lists the criterion of each."""

    ENERGY_UNAVAILABLE = "energy_unavailable"
    ENERGY_MODELLED = "energy_modelled"
    SHORT_WINDOW = "short_window"
    WINDOW_CUT = "window_cut"
    FEW_SAMPLES = "few_samples"
    COUNTER_SLOW = "counter_slow"
    SAMPLING_GAPS = "sampling_gaps"
    SAMPLER_OVERLOAD = "sampler_overload"
    SENSOR_DISAGREEMENT = "sensor_disagreement"
    IMPLAUSIBLE_READINGS = "implausible_readings"
    COUNTER_STALLED = "counter_stalled"
    COUNTER_RESET = "counter_reset"
    REPEATED_COUNTER = "repeated_counter"
    PART_TIME_SENSOR = "part_time_sensor"
    CALIBRATION_UNUSED = "calibration_unused"
    BASELINE_DRIFT = "baseline_drift"
    NEGATIVE_NET_ENERGY = "negative_net_energy"
    NOT_STATIONARY = "not_stationary"
    WARMUP_NOT_CONVERGED = "warmup_not_converged"
    COMPILED_IN_WINDOW = "compiled_in_window"
    NOT_SETTLED = "not_settled"
    DRIVER_SLOW = "driver_slow"
    THROTTLED = "throttled"
    LIMIT_CHANGED = "limit_changed"
    CLOCKS_LOCKED = "clocks_locked"
    TEMPERATURE_DRIFT = "temperature_drift"
    FOREIGN_PROCESS = "foreign_process"
    UNIDENTIFIED_PROCESS = "unidentified_process"
    FOREIGN_LOAD = "foreign_load"
    SAMPLING_WAKES_DEVICE = "sampling_wakes_device"
    MIG_PARENT_POWER = "mig_parent_power"
    NOT_AS_REQUESTED = "not_as_requested"
    MISSING_EVIDENCE = "missing_evidence"
    CLOCK_JUMP = "clock_jump"
    CYCLES_DRIFT = "cycles_drift"
    OUTPUT_MISMATCH = "output_mismatch"
    LATE_ARRIVALS = "late_arrivals"
    LOW_OVERLAP = "low_overlap"
    BATCH_NOT_REACHED = "batch_not_reached"
    OUTPUTS_CUT = "outputs_cut"
    FAILED_REQUESTS = "failed_requests"


class Finding(ResultModel):
    """Something that a reader of the result must know."""

    code: FindingCode
    severity: Severity
    message: str = Field(description="The observation with its numbers, then what to do.")
    numbers: dict[str, float] = Field(default_factory=dict)


Verdict = Literal["valid", "questionable", "invalid"]


def verdict_of(findings: tuple[Finding, ...]) -> Verdict:
    """Return `invalid` with any error, `questionable` with any warning, else `valid`."""
    severities = {finding.severity for finding in findings}
    if Severity.ERROR in severities:
        return "invalid"
    return "questionable" if Severity.WARNING in severities else "valid"
