"""How often decisions err, over simulated campaigns with known truth, through the functions that the server runs.

    python benchmarks/decisions.py [--repetitions 1000]

Every cycle of a simulated campaign has a drift that both experiments share, and noise per experiment and metric;
energies are read by a sensor with a gain and an offset. Exits with 1 if a share is outside of its limits by more than
chance explains (99.9 % binomial bounds).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from lem_domain.results.metrics import METRICS, Metric
from lem_domain.wire.decisions import ComparisonWord, GateOutcome, MetricComparison
from lem_server.decisions.comparison import OpenComparison, compare_metric, words
from lem_server.decisions.facts import CycleFacts, EnergyReading, ExperimentFacts
from lem_server.decisions.gate import GatedMetric, decide
from lem_server.decisions.intervals import mean_estimate
from lem_server.decisions.until import LEAST_CYCLES, look

NAMED = {metric.name: metric for metric in METRICS}
ENERGY = NAMED["efficiency.energy_per_output_token_j"]
FIVE = (
    ENERGY,
    *(NAMED[f"speed.{name}"] for name in ("output_rate_tok_s", "ttft_ms.mean", "itl_ms.mean", "e2e_ms.mean")),
)
SHOWN = (ComparisonWord.BETTER, ComparisonWord.WORSE)
CV = 0.01
SECONDS = 60.0
CHANCE = 0.001
Trial = Callable[[np.random.Generator], bool]


class Row(NamedTuple):
    """One line of the table: a share of simulated campaigns and its limits."""

    what: str
    hits: int
    of: int
    least: float
    most: float

    @property
    def is_met(self) -> bool:
        """Whether the share is within its limits, or outside by no more than chance."""
        low, high = stats.binomtest(self.hits, self.of).proportion_ci(1 - CHANCE)
        return bool(high >= self.least and low <= self.most)

    def line(self) -> str:
        """The line of the table in Markdown."""
        limits = f"{self.least:.0%} to {self.most:.0%}" if self.least else f"at most {self.most:.0%}"
        if self.most == 1:
            limits = f"at least {self.least:.0%}" if self.least else "–"
        return f"| {self.what} | {self.hits / self.of:.1%} | {limits} |"


class Sensor(NamedTuple):
    """Errors of the sensor that reads both experiments, and what the result states of them."""

    gain: float = 1.0
    offset_w: float = 0.0
    stated_gain: float = 0.13
    stated_offset_w: float = 5.0


def experiment(
    random: np.random.Generator,
    drift: np.ndarray,
    factors: Sequence[float],
    watts: float,
    sensor: Sensor | None,
    skew: bool,
) -> ExperimentFacts:
    """Simulate one experiment; `factors` multiply the metrics, `watts` is the mean power of its energy."""
    cycles = []
    for index, common in enumerate(drift):
        noise = random.normal(0, CV, len(FIVE))
        if skew:  # the same variance from an exponential tail: cycles that something disturbed
            noise = (random.exponential(1, len(FIVE)) - 1) * CV
        values = {one.name: 100 * f * math.exp(common + e) for one, f, e in zip(FIVE, factors, noise, strict=True)}
        energies = {}
        if sensor is not None:
            joules = watts * SECONDS * values[ENERGY.name] / (100 * factors[0])
            read = joules * sensor.gain + sensor.offset_w * SECONDS
            values[ENERGY.name] *= read / joules
            energies[ENERGY.name] = EnergyReading(
                read, SECONDS, 1, sensor.stated_gain, sensor.stated_offset_w, 0.001 * read, 0.0
            )
        cycles.append(CycleFacts(f"run_{index}", index, "valid", values, {}, energies, ("GPU-1",), ("GPU-1",)))
    return ExperimentFacts("exp_1", "cmp_1", "simulated", f"{int(random.integers(2**60)):064x}", {}, {}, tuple(cycles))


def pair(
    random: np.random.Generator,
    n: int,
    factors: Sequence[float] = (1.0,) * 5,
    *,
    watts: float = 300.0,
    sensor: Sensor | None = None,
    skew: bool = False,
    pairs: bool = True,
    metrics: Sequence[Metric] = FIVE,
    margin: float | None = None,
) -> list[OpenComparison]:
    """Simulate a reference and a candidate, and compare them."""
    drift = random.normal(0, CV, n)
    other = drift if pairs else random.normal(0, CV, n)
    reference = experiment(random, drift, (1.0,) * 5, 300.0, sensor, skew)
    candidate = experiment(random, other, factors, watts, sensor, skew)
    return [
        compare_metric(metric, reference, candidate, pairs=pairs, same_sensor=True, margin=margin) for metric in metrics
    ]


def share(what: str, trial: Trial, of: int, least: float, most: float) -> Row:
    """Run a trial repeatedly, with a seed that depends on what is simulated alone."""
    seeds = np.random.SeedSequence([ord(letter) for letter in what]).spawn(of)
    return Row(what, sum(trial(np.random.default_rng(seed)) for seed in seeds), of, least, most)


def wrong_word(found: Sequence[MetricComparison]) -> bool:
    """Whether any metric of equal experiments is called better or worse."""
    return any(one.word in SHOWN for one in found)


def covers(one: OpenComparison, truth: float) -> bool:
    """Whether the statistical interval holds the true ratio."""
    interval = one.found.statistical
    return interval is not None and interval.low <= truth <= interval.high


def stopped(random: np.random.Generator, cv: float, half_width: float, most: int) -> bool:
    """Whether the interval holds the true mean when cycles end as `execution.until` has it."""
    values = random.normal(1, cv, most).tolist()
    for n in range(LEAST_CYCLES, most + 1):
        found = look(values[:n], half_width)
        if found.precise or n == most:
            return found.interval is not None and found.interval.low <= 1 <= found.interval.high
    return False


def gated(random: np.random.Generator, factor: float, wrong: GateOutcome, count: int = 1) -> bool:
    """Whether a gate of 3 % over `count` metrics has the outcome `wrong` at a true factor."""
    factors = [1 / factor if metric.better == "higher" else factor for metric in FIVE]
    opened = pair(random, 5, factors, metrics=FIVE[:count])
    return decide([GatedMetric(one, 0.03) for one in opened])[0] is wrong


def any_word(n: int, *, pairs: bool = True, skew: bool = False) -> Trial:
    """Whether equal experiments get any word, in 5 metrics."""
    return lambda random: wrong_word(words(pair(random, n, pairs=pairs, skew=skew)))


def through_sensor(watts: float) -> Trial:
    """The same, of energies that one sensor with an unknown gain and offset has read."""

    def trial(random: np.random.Generator) -> bool:
        sensor = Sensor(random.uniform(0.91, 1.13), random.uniform(-5, 5))
        return wrong_word(words(pair(random, 5, watts=watts, sensor=sensor)))

    return trial


def ratio_covers(n: int, *, pairs: bool) -> Trial:
    """Whether the interval holds a true ratio of 1.03."""
    return lambda random: covers(pair(random, n, (1.03,) * 5, pairs=pairs, metrics=FIVE[:1])[0], 1.03)


def mean_covers(n: int) -> Trial:
    """Whether the interval of one experiment holds its true mean."""

    def trial(random: np.random.Generator) -> bool:
        found = mean_estimate(random.normal(1, CV, n).tolist(), f"{int(random.integers(2**60)):064x}").interval
        return found is not None and found.low <= 1 <= found.high

    return trial


def plain_bootstrap(n: int) -> Trial:
    """The same of a BCa interval whose tails are not widened."""

    def trial(random: np.random.Generator) -> bool:
        values = (random.normal(1, CV, n),)
        found = stats.bootstrap(values, np.mean, n_resamples=2000, method="BCa", rng=random).confidence_interval
        return bool(found.low <= 1 <= found.high)

    return trial


def called_worse(n: int, factors: Sequence[float], metrics: Sequence[Metric] = FIVE) -> Trial:
    """Whether the first metric is called worse."""
    return lambda random: words(pair(random, n, factors, metrics=metrics))[0].word is ComparisonWord.WORSE


def called_equivalent(n: int, factor: float, metrics: Sequence[Metric] = FIVE) -> Trial:
    """Whether any metric is called equivalent within 2 %."""
    return lambda random: any(
        one.word is ComparisonWord.EQUIVALENT
        for one in words(pair(random, n, (factor,) * 5, margin=0.02, metrics=metrics))
    )


def estimate_above_limit(random: np.random.Generator) -> bool:
    """Whether a difference is shown whose estimate is above 3 %, at a true 3 %."""
    (one,) = words(pair(random, 5, (1.03,) * 5, metrics=FIVE[:1]))
    return one.word is ComparisonWord.WORSE and (one.estimate or 0) > 1.03


def gate_is(outcome: GateOutcome, factor: float, count: int = 1) -> Trial:
    """Whether a gate of 3 % has an outcome."""
    return lambda random: gated(random, factor, outcome, count)


def stop_covers(cv: float) -> Trial:
    """Whether the interval at the stop holds the true mean."""
    return lambda random: stopped(random, cv, 0.02, 20)


def rows(of: int) -> Iterator[Row]:
    """Yield every line of the table."""
    for n in (3, 5, 10):
        yield share(f"equal, 5 metrics, {n} pairs: any better or worse", any_word(n), of, 0, 0.05)
        yield share(f"the same, {n} unpaired cycles", any_word(n, pairs=False), of, 0, 0.05)
    yield share("equal, 5 metrics, 5 pairs, exponential noise: any", any_word(5, skew=True), of, 0, 0.05)
    for watts in (300.0, 100.0):
        what = f"equal, gain 0.91 to 1.13, offset ± 5 W, 300 and {watts:.0f} W, 5 pairs: any"
        yield share(what, through_sensor(watts), of, 0, 0.05)
    for n in (3, 5, 10):
        yield share(f"interval of a ratio, {n} pairs: covers", ratio_covers(n, pairs=True), of, 0.93, 0.97)
        yield share(f"the same, {n} unpaired cycles", ratio_covers(n, pairs=False), of, 0.93, 0.97)
    for n in (3, 5, 10, 20):
        yield share(f"interval of a mean, {n} cycles: covers", mean_covers(n), of, 0.93, 0.97)
    yield share("for comparison: a plain BCa bootstrap, 10 cycles", plain_bootstrap(10), of, 0, 1)
    one = FIVE[:1]
    yield share("3 % worse, 5 pairs, one metric: called worse", called_worse(5, (1.03,) * 5, one), of, 0.8, 1)
    single = (1.03, 1.0, 1.0, 1.0, 1.0)
    yield share("3 % worse in one of 5 metrics, 5 pairs: called worse", called_worse(5, single), of, 0, 1)
    yield share("the same, 7 pairs", called_worse(7, single), of, 0.8, 1)
    yield share("2 % apart, margin 2 %, 5 metrics, 10 pairs: any equivalent", called_equivalent(10, 1.02), of, 0, 0.05)
    yield share("equal, margin 2 %, 10 pairs, one metric: equivalent", called_equivalent(10, 1.0, one), of, 0.8, 1)
    for count in (1, 5):
        what = f"gate at its limit of 3 %, 5 pairs, {count} of 5 metrics"
        yield share(f"{what}: passed", gate_is(GateOutcome.PASSED, 1.03, count), of, 0, 0.05)
        yield share(f"{what}: regressed", gate_is(GateOutcome.REGRESSED, 1.03, count), of, 0, 0.05)
    yield share("for comparison: a difference shown with its estimate above 3 %", estimate_above_limit, of, 0, 1)
    yield share("gate of 3 %, equal, 5 pairs, one metric: passed", gate_is(GateOutcome.PASSED, 1.0), of, 0.8, 1)
    for cv in (0.01, 0.02, 0.035, 0.06):
        yield share(f"cycles until ± 2 %, 5 to 20, CV {cv:.1%}: covers at the stop", stop_covers(cv), of, 0.93, 1)


def main() -> int:
    """Print the table; return 1 if a share is outside of its limits."""
    parser = argparse.ArgumentParser(description="How often decisions err, over simulated campaigns.")
    parser.add_argument("--repetitions", type=int, default=1000)
    began, found = time.process_time(), []
    print("| simulated | share | required |\n|---|---|---|")
    for row in rows(parser.parse_args().repetitions):
        found.append(row)
        print(row.line() + ("" if row.is_met else " **not met**"), flush=True)
    print(f"\n{time.process_time() - began:.0f} s of processor time", file=sys.stderr)
    return 0 if all(row.is_met for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
