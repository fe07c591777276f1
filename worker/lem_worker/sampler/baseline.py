"""What the sampler waits for while nothing works: a baseline's steady power, or devices that have settled."""

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
"""Power is back to idle within this fraction of the ready baseline."""
UNTOLD_S = 2.0
"""What nobody has told for so long, and at two looks on end, is not waited for: a reading that failed once is told
again by then, as the slowest source is read every second, or at the next look where those come more seldom."""
_FEWEST_LOOKS = 2


class Readings(Protocol):
    """What the sampling saw last."""

    def power_w(self) -> float | None:
        """Of what is measured, all parts together; None while one of them does not tell."""

    def hottest_c(self) -> int | None:
        """Of the devices; None while one that told does not."""

    def begin_means(self) -> None:
        """Begin to add up."""

    def means_w(self) -> dict[str, float]:
        """By part, since then."""


class Quiet:
    """One wait at a time; each is a phase in the sampler's evidence."""

    def __init__(
        self,
        baseline: BaselineConfig,
        settle: SettleConfig,
        phases: EvidenceRows,
        readings: Readings,
        history: PowerHistory,
    ) -> None:
        self._baseline = baseline
        self._settle = settle
        self._phases = phases
        self._readings = readings
        self._history = history
        self._waiting: TakeBaseline | Settle | None = None
        self._began_ns = 0
        self._told_ns = 0
        self._untold_looks = 0
        self._ready_w: float | None = None

    def begin(self, what: TakeBaseline | Settle, now_ns: int) -> None:
        """Begin to wait."""
        self._waiting, self._began_ns = what, now_ns
        self._told_ns, self._untold_looks = now_ns, 0
        self._readings.begin_means()
        self._mark(what, "begin", now_ns, {"context": what.context} if isinstance(what, TakeBaseline) else {})

    def look(self, now_ns: int) -> ControlMessage | None:
        """The answer, once the wait is over."""
        if self._is_told():
            self._told_ns, self._untold_looks = now_ns, 0
        else:
            self._untold_looks += 1
        match self._waiting:
            case TakeBaseline() as baseline:
                return self._look_at_baseline(baseline, now_ns)
            case Settle() as settle:
                return self._look_at_settling(settle, now_ns)
        return None

    def end(self, now_ns: int) -> None:
        """Nobody waits any more; an open phase is closed as it is."""
        if isinstance(self._waiting, TakeBaseline):
            self._close_baseline(self._waiting, now_ns, stationary=False)
        elif isinstance(self._waiting, Settle):
            self._close_settling(self._waiting, now_ns, settled=False)

    def _look_at_baseline(self, baseline: TakeBaseline, now_ns: int) -> ControlMessage | None:
        seconds = (now_ns - self._began_ns) / 1e9
        if seconds < self._baseline.min_s:
            return None
        error = self._error()
        stationary = error is not None and error < MOST_RELATIVE_ERROR
        if not stationary and seconds < self._baseline.max_s and not self._is_untold(now_ns):
            return None
        return self._close_baseline(baseline, now_ns, stationary=stationary)

    def _close_baseline(self, baseline: TakeBaseline, now_ns: int, *, stationary: bool) -> BaselineTaken:
        error = self._error()
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

    def _look_at_settling(self, settle: Settle, now_ns: int) -> ControlMessage | None:
        settled = self._unsettled() is None
        if settled or self._is_untold(now_ns) or (now_ns - self._began_ns) / 1e9 >= self._settle.max_s:
            return self._close_settling(settle, now_ns, settled=settled)
        return None

    def _close_settling(self, settle: Settle, now_ns: int, *, settled: bool) -> Settled:
        reason = None if settled else self._unsettled() or "the wait was broken off"
        self._mark(settle, "end", now_ns, {"settled": settled, "reason": reason})
        return Settled(settled=settled)

    def _unsettled(self) -> str | None:
        """What does not hold yet."""
        hottest, limit_c = self._readings.hottest_c(), self._settle.temperature_c
        if limit_c is not None:
            if hottest is None:
                return "no source tells a temperature"
            if hottest > limit_c:
                return f"a device has {hottest} °C and settle.temperature_c is {limit_c}"
        if self._settle.idle_power:
            goal_w = self._ready_w or self._history.lowest_w()
            power_w = self._readings.power_w()
            if goal_w is None or power_w is None:
                return "no source tells a power"
            if power_w > goal_w * (1 + IDLE_TOLERANCE):
                return f"power is {power_w:.1f} W and was {goal_w:.1f} W without work"
        return None

    def _error(self) -> float | None:
        """What the power told before it ceased says nothing of the power now."""
        return None if self._readings.power_w() is None else self._history.relative_error(self._began_ns)

    def _is_told(self) -> bool:
        """Somebody tells what the wait is for."""
        of_power = isinstance(self._waiting, TakeBaseline) or self._settle.idle_power
        of_temperature = isinstance(self._waiting, Settle) and self._settle.temperature_c is not None
        return not (of_power and self._readings.power_w() is None) and not (
            of_temperature and self._readings.hottest_c() is None
        )

    def _is_untold(self, now_ns: int) -> bool:
        return self._untold_looks >= _FEWEST_LOOKS and (now_ns - self._told_ns) / 1e9 >= UNTOLD_S

    def _mark(
        self, what: TakeBaseline | Settle, edge: Literal["begin", "end"], now_ns: int, detail: dict[str, JsonValue]
    ) -> None:
        phase = PhaseName.BASELINE if isinstance(what, TakeBaseline) else PhaseName.SETTLE
        self._phases.append(phase=phase.value, edge=edge, time_ns=now_ns, detail=json.dumps(detail) if detail else None)
        if edge == "end":
            self._waiting = None
