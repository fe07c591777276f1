"""Warm-up: sends requests on the path of measured ones until latency and power are steady, or to a cap.

The cap on requests alone would end the warm-up of a fast model before its power has a trend. Where power counts, the
cap therefore applies only after the time of `POWER_CAP_TRENDS` trends.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lem_domain.config.measurement import WarmupConfig

POWER_CAP_TRENDS = 3
"""In multiples of the time that a trend is taken over; the first of them passes before there is a trend."""


class PowerTrend(NamedTuple):
    """The trend of the leased devices' power, or the host's, as the sampler reports it."""

    known: bool
    """Whether any source measures power."""
    slope: float | None
    """Change over the last `trend_s` as a fraction of the mean; None before the first, and where it is unknown."""
    trend_s: float


NO_TREND = PowerTrend(known=False, slope=None, trend_s=0.0)


@dataclass(frozen=True, slots=True)
class WarmupAssessment:
    """The state of a warm-up; `cv` is None before there are enough latencies, `power_slope` before there is a trend."""

    finished: bool
    converged: bool
    batches: int
    cv: float | None
    power_slope: float | None = None


def coefficient_of_variation(values: Sequence[float]) -> float:
    """Sample standard deviation over mean; 0 for values that are all 0."""
    mean = statistics.fmean(values)
    return statistics.stdev(values) / mean if mean else 0.0


def assess(
    latencies: Sequence[float], config: WarmupConfig, power: PowerTrend = NO_TREND, seconds: float = 0.0
) -> WarmupAssessment:
    """Judge a warm-up after `seconds`.

    It has converged when the last `window_size` latencies vary less than the threshold and power has no trend. It is
    finished when it has converged or has reached the cap.
    """
    count = len(latencies)
    cv = coefficient_of_variation(latencies[-config.window_size :]) if count >= config.window_size else None
    steady = count >= config.min_requests and cv is not None and cv < config.cv_threshold
    settled = _settled(power, config)
    capped = count >= config.max_requests and (settled or seconds >= POWER_CAP_TRENDS * power.trend_s)
    return WarmupAssessment((steady and settled) or capped, steady and settled, count, cv, power.slope)


def warm_up(
    send: Callable[[], float],
    config: WarmupConfig,
    power: Callable[[], PowerTrend] = lambda: NO_TREND,
    clock: Callable[[], float] = time.monotonic,
) -> WarmupAssessment:
    """Call `send`, which returns the latency of one batch, until `assess` reports the end."""
    latencies: list[float] = []
    began = clock()
    while True:
        latencies.append(send())
        assessment = assess(latencies, config, power(), clock() - began)
        if assessment.finished:
            return assessment


def _settled(power: PowerTrend, config: WarmupConfig) -> bool:
    if config.power_slope is None or not power.known:
        return True
    return power.slope is not None and abs(power.slope) < config.power_slope
