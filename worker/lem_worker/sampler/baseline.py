"""Phases without requests: a baseline until power is stationary, settling until the devices are cool and idle."""

from __future__ import annotations

import json
from typing import Literal, Protocol

from pydantic.types import JsonValue

from lem_domain.config.measurement import BaselineConfig, SettleConfig
from lem_domain.evidence.streams import PhaseName
from lem_worker.process.evidence_rows import EvidenceRows
from lem_worker.process.protocol import BaselineTaken, ControlMessage, Settle, Settled, TakeBaseline
from lem_worker.sampler.stationarity import MOST_RELATIVE_ERROR, PowerHistory

IDLE_TOLERANCE = 0.10
"""Power is idle within this fraction of the ready baseline."""
LOST_READING_S = 2.0
"""A phase stops waiting for a reading that is missing for so long and at two successive checks. A reading that failed
once is back by then: the slowest source is read every second, and with a longer cadence the next check follows it."""
_MIN_CHECKS_WITHOUT_READING = 2


class CurrentReadings(Protocol):
    """The latest readings of the sampler."""

    def power_w(self) -> float | None:
        """Power of all measured parts together; None while one of them is missing."""

    def hottest_c(self) -> int | None:
        """Temperature of the hottest device; None while one that reported a temperature is missing."""

    def begin_means(self) -> None:
        """Start the means of `means_w`."""

    def means_w(self) -> dict[str, float]:
        """Mean power by part since `begin_means`."""


class IdlePhases:
    """Runs one baseline or settling phase at a time and marks it in the sampler's evidence."""

    def __init__(
        self,
        baseline: BaselineConfig,
        settle: SettleConfig,
        phases: EvidenceRows,
        readings: CurrentReadings,
        history: PowerHistory,
    ) -> None:
        self._baseline = baseline
        self._settle = settle
        self._phases = phases
        self._readings = readings
        self._history = history
        self._request: TakeBaseline | Settle | None = None
        self._began_ns = 0
        self._last_complete_ns = 0
        self._incomplete_checks = 0
        self._ready_w: float | None = None

    def begin(self, request: TakeBaseline | Settle, now_ns: int) -> None:
        """Begin the requested phase."""
        self._request, self._began_ns = request, now_ns
        self._last_complete_ns, self._incomplete_checks = now_ns, 0
        self._readings.begin_means()
        detail: dict[str, JsonValue] = {"context": request.context} if isinstance(request, TakeBaseline) else {}
        self._mark(request, "begin", now_ns, detail)

    def check(self, now_ns: int) -> ControlMessage | None:
        """Return the answer to the request when its phase is over; called after every tick."""
        if self._has_needed_readings():
            self._last_complete_ns, self._incomplete_checks = now_ns, 0
        else:
            self._incomplete_checks += 1
        match self._request:
            case TakeBaseline() as baseline:
                return self._check_baseline(baseline, now_ns)
            case Settle() as settle:
                return self._check_settling(settle, now_ns)
        return None

    def close(self, now_ns: int) -> None:
        """End an open phase at the end of sampling, unfinished."""
        if isinstance(self._request, TakeBaseline):
            self._end_baseline(self._request, now_ns, stationary=False)
        elif isinstance(self._request, Settle):
            self._end_settling(self._request, now_ns, settled=False)

    def _check_baseline(self, baseline: TakeBaseline, now_ns: int) -> ControlMessage | None:
        seconds = (now_ns - self._began_ns) / 1e9
        if seconds < self._baseline.min_s:
            return None
        error = self._relative_error()
        stationary = error is not None and error < MOST_RELATIVE_ERROR
        if not stationary and seconds < self._baseline.max_s and not self._readings_are_lost(now_ns):
            return None
        return self._end_baseline(baseline, now_ns, stationary=stationary)

    def _end_baseline(self, baseline: TakeBaseline, now_ns: int, *, stationary: bool) -> BaselineTaken:
        error = self._relative_error()
        power_w = None if self._readings.power_w() is None else self._history.mean_w(self._began_ns)
        if baseline.context == "ready":
            self._ready_w = power_w
        detail: dict[str, JsonValue] = {
            "context": baseline.context,
            "stationary": stationary,
            "standard_error": error,
        }
        self._mark(baseline, "end", now_ns, detail)
        return BaselineTaken(
            context=baseline.context, stationary=stationary, power_w=power_w, parts_w=self._readings.means_w()
        )

    def _check_settling(self, settle: Settle, now_ns: int) -> ControlMessage | None:
        settled = self._why_unsettled() is None
        if settled or self._readings_are_lost(now_ns) or (now_ns - self._began_ns) / 1e9 >= self._settle.max_s:
            return self._end_settling(settle, now_ns, settled=settled)
        return None

    def _end_settling(self, settle: Settle, now_ns: int, *, settled: bool) -> Settled:
        reason = None if settled else self._why_unsettled() or "sampling ended during the phase"
        self._mark(settle, "end", now_ns, {"settled": settled, "reason": reason})
        return Settled(settled=settled)

    def _why_unsettled(self) -> str | None:
        """The first condition that does not hold; None when all do."""
        hottest, limit_c = self._readings.hottest_c(), self._settle.temperature_c
        if limit_c is not None:
            if hottest is None:
                return "no source reports a temperature"
            if hottest > limit_c:
                return f"a device has {hottest} °C and settle.temperature_c is {limit_c}"
        if self._settle.idle_power:
            idle_w = self._ready_w or self._history.lowest_w()
            power_w = self._readings.power_w()
            if idle_w is None or power_w is None:
                return "no source reports power"
            if power_w > idle_w * (1 + IDLE_TOLERANCE):
                return f"power is {power_w:.1f} W and was {idle_w:.1f} W without requests"
        return None

    def _relative_error(self) -> float | None:
        """None while power is missing: a history that has ended does not describe the present power."""
        return None if self._readings.power_w() is None else self._history.relative_error(self._began_ns)

    def _has_needed_readings(self) -> bool:
        needs_power = isinstance(self._request, TakeBaseline) or self._settle.idle_power
        needs_temperature = isinstance(self._request, Settle) and self._settle.temperature_c is not None
        return not (needs_power and self._readings.power_w() is None) and not (
            needs_temperature and self._readings.hottest_c() is None
        )

    def _readings_are_lost(self, now_ns: int) -> bool:
        missing_s = (now_ns - self._last_complete_ns) / 1e9
        return self._incomplete_checks >= _MIN_CHECKS_WITHOUT_READING and missing_s >= LOST_READING_S

    def _mark(
        self, request: TakeBaseline | Settle, edge: Literal["begin", "end"], now_ns: int, detail: dict[str, JsonValue]
    ) -> None:
        phase = PhaseName.BASELINE if isinstance(request, TakeBaseline) else PhaseName.SETTLE
        self._phases.append(phase=phase.value, edge=edge, time_ns=now_ns, detail=json.dumps(detail) if detail else None)
        if edge == "end":
            self._request = None
