"""Warm-up: requests through the same path as the measured ones, until latency and power are steady or a cap is reached.

The cap on requests alone would end the warm-up of a quick model long before anything can be said of its power, so where
power is looked at the cap holds only once that had `POWER_CAP_STRETCHES`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lem_domain.config.measurement import WarmupConfig

POWER_CAP_STRETCHES = 3
"""So many times the stretch that a trend is taken over: the first is over before there is one."""


class PowerTrend(NamedTuple):
    """What the sampler says of the leased devices' power, or the host's."""

    known: bool = False
    """Some source tells power at all."""
    slope: float | None = None
    """Change over the last stretch as a fraction of the mean; None before it is over, and once nobody tells it."""
    stretch_s: float = 5.0


NOBODY_TELLS = PowerTrend()


@dataclass(frozen=True, slots=True)
class Assessment:
    """What was seen so far; `cv` is null before there are enough latencies, `power_slope` before there is a trend."""

    finished: bool
    converged: bool
    requests: int
    cv: float | None
    power_slope: float | None = None


def coefficient_of_variation(values: Sequence[float]) -> float:
    """Sample standard deviation over mean; 0 for values that are all 0."""
    mean = statistics.fmean(values)
    return statistics.stdev(values) / mean if mean else 0.0


def assess(
    latencies: Sequence[float], config: WarmupConfig, power: PowerTrend = NOBODY_TELLS, seconds: float = 0.0
) -> Assessment:
    """Converged when the last `window_size` latencies vary less than the threshold and power has no trend; finished
    then, or at the cap."""
    count = len(latencies)
    cv = coefficient_of_variation(latencies[-config.window_size :]) if count >= config.window_size else None
    steady = count >= config.min_requests and cv is not None and cv < config.cv_threshold
    settled = _settled(power, config)
    capped = count >= config.max_requests and (settled or seconds >= POWER_CAP_STRETCHES * power.stretch_s)
    return Assessment((steady and settled) or capped, steady and settled, count, cv, power.slope)


def warm_up(
    send: Callable[[], float],
    config: WarmupConfig,
    power: Callable[[], PowerTrend] = lambda: NOBODY_TELLS,
    clock: Callable[[], float] = time.monotonic,
) -> Assessment:
    """Call `send`, which answers with the latency of one batch, until `assess` says that it is enough."""
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
