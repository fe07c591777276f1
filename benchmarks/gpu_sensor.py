"""What a GPU's sensor is: periods, averaging windows and scopes of its readings, and the limits that they must keep.

The load is switched on and off while NVML is polled every millisecond. A reading that is the mean over a window before
its update shows a step of power as clip((time of the update - step - lag) / window, 0, 1) of the way from the old power
to the new one. Steps come at varying phases of the update period, so that windows shorter than the period are met as
well; window and lag are those of the least squares over all updates that were seen. (Yang, Adamek and Armour,
arXiv:2312.02741, fit the window to the readings of a square wave; this is the same with single steps.) The lag is what
the chip needs to change its power.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import pynvml

import gpu_watch as watch  # type: ignore[import-not-found]  # in this folder
from lem_domain.gpu_sensors import sensor_times

BUSY_S = 8.0
SHORT_STEPS, SHORT_HOLD_S = 24, (0.35, 0.55)
"""For readings of one update period or less; several periods pass until power is level again."""
LONG_STEPS, LONG_HOLD_S = 6, (2.4, 2.9)
"""For the mean over one second."""
ABOVE_LIMIT = 1.5
"""Of the enforced limit, as in the aggregation."""
_LATE_S = 0.05
"""An update between polls that are farther apart, as on a busy machine, may be several."""
_LEVEL_SHARE = 0.3
"""Of the time between two steps, at its end: its readings show the level."""
_LEAST_STEP = 0.1
"""A step must change power by so much of it."""
_FEWEST_UPDATES = 4
_AS_GOOD = 0.01
_LARGEST_ERROR = 0.15
"""Root mean square of what a fit misses, in parts of a step."""
SCOPES = {"gpu": 0, "module": 1, "memory": 2}
"""NVML_POWER_SCOPE_GPU, …_MODULE, …_MEMORY."""


class Step(NamedTuple):
    """A change of the load, in seconds of CLOCK_MONOTONIC."""

    at: float
    is_up: bool


class Load(Protocol):
    """Work for the GPU that can be switched on and off."""

    def busy(self, seconds: float) -> None:
        """Work for some time."""

    def steps(self, holds_s: Sequence[float]) -> list[Step]:
        """Work and rest in turn, for these times, beginning with work; return when it changed."""


class TorchLoad:
    """Products of large matrices on the GPU that CUDA_VISIBLE_DEVICES names."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._matrix = torch.randn((4096, 4096), device="cuda", dtype=torch.float16)
        self.busy(0.5)  # the first products choose their kernels

    def busy(self, seconds: float) -> None:
        """Work for some time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._torch.matmul(self._matrix, self._matrix)
            self._torch.cuda.synchronize()

    def steps(self, holds_s: Sequence[float]) -> list[Step]:
        """Work and rest in turn, for these times, beginning with work; return when it changed."""
        found = []
        for number, hold_s in enumerate(holds_s):
            found.append(Step(time.monotonic(), number % 2 == 0))
            if found[-1].is_up:
                self.busy(hold_s)
            else:
                time.sleep(hold_s)
        return found


class Update(NamedTuple):
    """A reading that differs from the one before, and the times between which it was updated."""

    after: float
    before: float
    value: float


def describe(uuid: str, name: str, load: Load) -> dict[str, object]:
    """Measure the sensor of a GPU with NVML: half a minute under changing load."""
    holds = random.Random(uuid)
    polled = watch.NvmlPoll()
    with polled.of(uuid):
        load.busy(BUSY_S)
        busy_end = time.monotonic()
        short = load.steps([holds.uniform(*SHORT_HOLD_S) for _ in range(SHORT_STEPS)])
        short_end = time.monotonic()
        long = load.steps([holds.uniform(*LONG_HOLD_S) for _ in range(LONG_STEPS)])
        end = time.monotonic()
    readings = {"instant": polled.power_w, "average": polled.average_w}
    found: dict[str, object] = {"error": polled.error, "polls": len(polled.energy_j)}
    for reading, series in readings.items():
        short_fit = window_fit(watch.within(series, short[0].at - 1, short_end), short, short_end)
        long_fit = window_fit(watch.within(series, long[0].at - 1, end), long, end)
        # Where the window is longer than the short steps, readings do not reach a level between them.
        reached = 0.9 * (long_fit.step_w or 0.0)
        fit = short_fit if short_fit.step_w is not None and short_fit.step_w > reached else long_fit
        found[reading] = {
            "period_ms": watch.update_period_ms([one for one in series if one.at <= busy_end]),
            **fit._asdict(),
            "assumed": {
                "period_ms": 1e3 * (times := sensor_times(name, reading)).period_s,  # type: ignore[arg-type]
                "window_ms": 1e3 * times.averaged_s,
                "source": times.source,
            },
        }
    busy_j = [one for one in polled.energy_j if one.at <= busy_end]
    found["counter"] = {"period_ms": watch.update_period_ms(busy_j)}
    found["scopes"] = scopes(uuid)
    found["limits"] = limits(uuid, polled)
    return found


class WindowFit(NamedTuple):
    """The averaging window of a reading by its answers to steps; null with a reason without a good fit."""

    window_ms: float | None = None
    range_ms: tuple[float, float] | None = None
    """The windows that explain the answers hardly worse: what the times between polls leave open."""
    lag_ms: float | None = None
    fit_error: float | None = None
    """Root mean square of what the fit misses, in parts of a step."""
    step_w: float | None = None
    """Median change of the reading's level from step to step."""
    updates: int = 0
    reason: str | None = None


def window_fit(readings: Sequence[watch.EnergyEstimate], steps: Sequence[Step], end: float) -> WindowFit:
    """Fit window and lag to the updates after each step of the load, each between its polls."""
    changes_w: list[float] = []
    points = np.array(list(_answers(readings, [*steps, Step(end, not steps[-1].is_up)], changes_w)))
    step_w = float(np.median(changes_w)) if changes_w else None
    if len(points) < _FEWEST_UPDATES:
        reason = "too few updates were seen after steps of the power"
        return WindowFit(step_w=step_w, updates=len(points), reason=reason)
    first_s, last_s, parts = points.T
    windows_s = np.geomspace(0.002, 2.0, 347)  # 2 % apart
    lags_s = np.arange(0, 0.1, 0.002)
    scale, shift = windows_s[:, None, None], lags_s[None, :, None]
    least, most = (np.clip((delays_s - shift) / scale, 0, 1) for delays_s in (first_s, last_s))
    errors = np.sqrt(np.mean(np.maximum(0, np.maximum(least - parts, parts - most)) ** 2, axis=2))
    by_window = errors.min(axis=1)
    error = float(by_window.min())
    if error > _LARGEST_ERROR:
        reason = "no window explains the answers to steps of the power"
        return WindowFit(fit_error=error, step_w=step_w, updates=len(points), reason=reason)
    good = np.flatnonzero(by_window <= error + _AS_GOOD)
    middle = int(good[len(good) // 2])
    return WindowFit(
        window_ms=1e3 * float(windows_s[middle]),
        range_ms=(1e3 * float(windows_s[good[0]]), 1e3 * float(windows_s[good[-1]])),
        lag_ms=1e3 * float(lags_s[errors[middle].argmin()]),
        fit_error=error,
        step_w=step_w,
        updates=len(points),
    )


def _answers(
    readings: Sequence[watch.EnergyEstimate], steps: Sequence[Step], changes_w: list[float]
) -> Iterator[tuple[float, float, float]]:
    """Yield least delay, most delay and part of the way of each update after a step, until the new level is reached."""
    found = list(updates(readings))
    for number, (step, following) in enumerate(pairwise(steps)):
        before_from = steps[number - 1].at if number else step.at - 0.5
        old, new = (_level(readings, begin, end) for begin, end in ((before_from, step.at), (step.at, following.at)))
        if old is None or new is None or abs(new - old) < _LEAST_STEP * max(old, new):
            continue
        changes_w.append(abs(new - old))
        for update in found:
            if step.at < update.before and update.after < following.at:
                part = (update.value - old) / (new - old)
                yield update.after - step.at, update.before - step.at, part
                if part > 0.98:
                    break


def _level(readings: Sequence[watch.EnergyEstimate], begin: float, end: float) -> float | None:
    values = [one.value for one in watch.within(readings, end - _LEVEL_SHARE * (end - begin), end)]
    return float(np.median(values)) if values else None


def updates(readings: Sequence[watch.EnergyEstimate]) -> Iterator[Update]:
    """Yield the readings that differ from the one before, except where polls are too far apart.

    A poll has the time before it was made, so that it was answered before the next one.
    """
    for before, changed, after in zip(readings, readings[1:], readings[2:], strict=False):
        if changed.value != before.value and after.at - before.at <= _LATE_S:
            yield Update(before.at, after.at, changed.value)


def scopes(uuid: str) -> dict[str, object]:
    """Power by scope as the driver gives it, and the scope whose power the energy counter has; null where refused."""
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        counted_w = _counted_w(handle)
        found: dict[str, float | None] = {}
        for scope, number in SCOPES.items():
            fields = ((pynvml.NVML_FI_DEV_POWER_INSTANT, number), (pynvml.NVML_FI_DEV_POWER_AVERAGE, number))
            answers = [_field_w(handle, field) for field in fields]
            found[scope] = next((watts for watts in answers if watts is not None), None)
        near: str | None = None
        known = {scope: watts for scope, watts in found.items() if watts is not None and scope != "memory"}
        if counted_w is not None and known:
            near = min(known, key=lambda scope: abs(known[scope] - counted_w))
        return {"power_w": found, "counted_w": counted_w, "counter": near}
    finally:
        pynvml.nvmlShutdown()


def _field_w(handle: Any, field: tuple[int, int]) -> float | None:
    with suppress(pynvml.NVMLError):
        [answer] = pynvml.nvmlDeviceGetFieldValues(handle, [field])
        if answer.nvmlReturn == pynvml.NVML_SUCCESS:
            return float(answer.value.uiVal) / 1e3
    return None


def _counted_w(handle: Any, seconds: float = 2.0) -> float | None:
    with suppress(pynvml.NVMLError):
        begin_s, begin_mj = time.monotonic(), pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        time.sleep(seconds)
        end_mj, end_s = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.monotonic()
        return float((end_mj - begin_mj) / 1e3 / (end_s - begin_s))
    return None


def limits(uuid: str, polled: watch.NvmlPoll) -> dict[str, object]:
    """The power limits in W, null where not offered, and how many of the polled readings can't be under them."""
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        calls: Mapping[str, Callable[[], Any]] = {
            "enforced_w": lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle),
            "default_w": lambda: pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle),
            "least_w": lambda: pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)[0],
            "most_w": lambda: pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)[1],
        }
        known: dict[str, float | None] = dict.fromkeys(calls)
        for name, call in calls.items():
            with suppress(pynvml.NVMLError):
                known[name] = float(call()) / 1e3
    finally:
        pynvml.nvmlShutdown()
    watts = [one.value for one in polled.power_w or polled.average_w]
    most_w = ABOVE_LIMIT * (known["enforced_w"] or float("inf"))
    steps = [(after.value - before.value, after.at - before.at) for before, after in pairwise(polled.energy_j)]
    return {
        **known,
        "highest_reading_w": max(watts, default=None),
        "lowest_reading_w": min(watts, default=None),
        "readings": len(watts),
        "readings_not_positive": sum(value <= 0 for value in watts),
        "readings_above": sum(value > most_w for value in watts),
        "counter_steps_back": sum(joules < 0 for joules, _ in steps),
        # An update may have the energy of a whole period, which is longer than the time between two polls.
        "counter_leaps": sum(joules > most_w * max(passed_s, 1.0) for joules, passed_s in steps),
    }
