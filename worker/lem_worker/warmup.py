"""Warm-up: requests through the same path as the measured ones, until their latency is steady or the cap is reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lem_domain.config.experiment import WarmupConfig


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the latencies so far say; `cv` is null before there are enough of them."""

    finished: bool
    converged: bool
    requests: int
    cv: float | None


def coefficient_of_variation(values: Sequence[float]) -> float:
    """Sample standard deviation over mean; 0 for values that are all 0."""
    mean = statistics.fmean(values)
    return statistics.stdev(values) / mean if mean else 0.0


def assess(latencies: Sequence[float], config: WarmupConfig) -> Assessment:
    """Converged when the last `window_size` latencies vary less than the threshold; finished then, or at the cap."""
    count = len(latencies)
    cv = coefficient_of_variation(latencies[-config.window_size :]) if count >= config.window_size else None
    converged = count >= config.min_requests and cv is not None and cv < config.cv_threshold
    return Assessment(converged or count >= config.max_requests, converged, count, cv)


def warm_up(send: Callable[[], float], config: WarmupConfig) -> Assessment:
    """Call `send`, which answers with the latency of one batch, until `assess` says that it is enough."""
    latencies: list[float] = []
    while True:
        latencies.append(send())
        assessment = assess(latencies, config)
        if assessment.finished:
            return assessment
