"""Stated bounds hold: of a large sample of random traces with known truth, at least 95 % lie within theirs.

Power is a random mixture of levels, ramps, a sawtooth, bursts and noise; the sensor shows it at its own updates, wrong
by up to its class, and the counter adds up, in whole counts, what that sensor sees; the sampler looks at it at jittered
times. The sample is seeded, so that the share is the same in every run. Hypothesis draws traces of its own for the
bounds that hold always.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories.evidence import EPOCH_NS
from lem_domain.results.run import WindowResult
from lem_server.aggregation.energy.baselines import baseline_results, net_energy
from lem_server.aggregation.energy.meters import Meter
from lem_server.aggregation.energy.sampler_record import BaselineSpan, SamplerRecord
from lem_server.aggregation.energy.traces import EnergyEstimate, Span, counter_energy, integrated_energy, make_trace
from lem_server.aggregation.evidence_reader import NULL

FloatArray = npt.NDArray[np.float64]

CASES = 400
WANTED = 0.95
STEP_S = 0.001
LENGTH_S = 40.0
GPU_CLASS_W = 5.0


@dataclass(frozen=True)
class World:
    """True power in steps of a millisecond, and how a sensor and a sampler see it."""

    watts: FloatArray
    update_s: float
    phase_s: float
    quantum_j: float
    offset_w: float
    times: FloatArray

    def truth(self, begin: float, end: float) -> float:
        """Energy in J."""
        return float(np.diff(self.until(np.array([begin, end])))[0])

    def until(self, at: FloatArray) -> FloatArray:
        """Cumulative energy."""
        sums = np.concatenate(([0.0], np.cumsum(self.watts) * STEP_S))
        found: FloatArray = np.interp(at, np.arange(len(sums)) * STEP_S, sums)
        return found

    def meter(self, *, counter: bool, power: bool) -> Meter:
        """What the samples hold."""
        updated = np.maximum(np.floor((self.times - self.phase_s) / self.update_s) * self.update_s + self.phase_s, 0)
        nulls = np.full(len(self.times), NULL, dtype=np.int64)
        shown = self.watts[np.minimum((updated / STEP_S).astype(int), len(self.watts) - 1)] + self.offset_w
        trace = make_trace(
            EPOCH_NS + (self.times * 1e9).round().astype(np.int64),
            np.floor((self.until(updated) + self.offset_w * updated) / self.quantum_j).astype(np.int64)
            if counter
            else nulls,
            np.maximum(shown * 1e3, 0).round().astype(np.int64) if power else nulls,
        )
        return Meter("GPU-0", trace, self.quantum_j, sensor_w=GPU_CLASS_W)


def world(random: np.random.Generator, *, resting_until: float = 0.0, working_until: float = LENGTH_S) -> World:
    """One random world; before `resting_until` and after `working_until` power is level but for noise."""
    t = np.arange(round(LENGTH_S / STEP_S)) * STEP_S
    edges = np.sort(random.uniform(0, LENGTH_S, random.integers(1, 60)))
    watts = random.uniform(60, 500, len(edges) + 1)[np.searchsorted(edges, t)]
    watts += random.choice([0.0, 1.0]) * random.uniform(0, 5) * t
    watts += random.choice([0.0, 1.0]) * random.uniform(0, 150) * (t / random.uniform(0.5, 5) % 1)
    for begin in random.uniform(0, LENGTH_S, random.integers(0, 40)):
        watts[(t >= begin) & (t < begin + random.uniform(0.005, 0.6))] += random.uniform(50, 400)
    watts[(t < resting_until) | (t >= working_until)] = random.uniform(20, 90)
    watts += np.repeat(random.normal(0, random.uniform(0, 6), len(t) // 10), 10)
    interval = random.choice([0.01, 0.02, 0.05, 0.1])
    times = np.arange(0, LENGTH_S - interval, interval) + random.uniform(
        0, 0.5 * interval, round(LENGTH_S / interval) - 1
    )
    update = float(random.choice([0.001, 0.02, 0.05, 0.1]))
    return World(
        watts=np.maximum(watts, 5),
        update_s=update,
        phase_s=float(random.uniform(0, update)),
        quantum_j=float(random.choice([1e-6, 1e-3])),
        offset_w=float(random.uniform(-GPU_CLASS_W, GPU_CLASS_W)),
        times=times,
    )


def window(begin: float, end: float) -> WindowResult:
    begin_ns, end_ns = (EPOCH_NS + round(at * 1e9) for at in (begin, end))
    return WindowResult(begin_ns=begin_ns, end_ns=end_ns, duration_s=(end_ns - begin_ns) / 1e9, processes=1, overlap=1)


def share_within(cases: list[tuple[float | None, float | None, float]]) -> float:
    """Of (figure, bound, truth): how many lie within; a figure without a bound does not."""
    return float(
        np.mean(
            [
                figure is not None and bound is not None and abs(figure - truth) <= bound
                for figure, bound, truth in cases
            ]
        )
    )


@pytest.mark.parametrize("seconds", [2.0, 10.0, 30.0])
@pytest.mark.parametrize("how", ["counter", "integral"])
def test_energy_lies_within_its_bound(how: str, seconds: float) -> None:
    random = np.random.default_rng(20_260 + round(seconds))
    cases: list[tuple[float | None, float | None, float]] = []
    widths: list[float] = []
    for _ in range(CASES):
        one = world(random)
        begin = float(random.uniform(1, LENGTH_S - seconds - 2))
        meter = one.meter(counter=how == "counter", power=how == "integral")
        measure: Callable[[], EnergyEstimate] = {
            "counter": lambda meter=meter, begin=begin: meter.counted(window(begin, begin + seconds)),  # type: ignore[misc]
            "integral": lambda meter=meter, begin=begin: meter.integrated(window(begin, begin + seconds)),  # type: ignore[misc]
        }[how]
        reading, truth = measure(), one.truth(begin, begin + seconds)
        cases.append((reading.joules, reading.bound_j, truth))
        widths.append((reading.bound_j or 0) / truth)
    assert share_within(cases) >= WANTED
    # A bound that is as wide as the figure would be true and useless.
    assert np.median(widths) < {"counter": 0.6 / seconds + 0.02, "integral": 0.35}[how]


def at_rest(random: np.random.Generator) -> tuple[World, SamplerRecord]:
    """At rest for the first 14 s, at work until 30 s, at rest again; ready baselines at both ends."""
    one = world(random, resting_until=14.0, working_until=30.0)
    spans = {
        "ready": (1.0, 1.0 + float(random.uniform(8, 12))),
        "ready_after": (31.0, 31.0 + float(random.uniform(5, 8))),
    }
    record = SamplerRecord(
        baselines={
            context: BaselineSpan(Span(EPOCH_NS + round(begin * 1e9), EPOCH_NS + round(end * 1e9)), True)  # type: ignore[misc]
            for context, (begin, end) in spans.items()
        }
    )
    return one, record


@pytest.mark.parametrize("how", ["counter", "integral"])
def test_baselines_and_net_energy_lie_within_their_bounds(how: str) -> None:
    random = np.random.default_rng(777)
    powers: list[tuple[float | None, float | None, float]] = []
    nets: list[tuple[float | None, float | None, float]] = []
    for _ in range(CASES):
        one, record = at_rest(random)
        meters = {"GPU-0": one.meter(counter=how == "counter", power=how == "integral")}
        begin, end = (float(at) for at in (random.uniform(14, 16), random.uniform(26, 30)))
        found = baseline_results(record, meters, ("GPU-0",))
        span = record.baselines["ready"].span
        seconds = ((span.begin_ns - EPOCH_NS) / 1e9, (span.end_ns - EPOCH_NS) / 1e9)
        powers.append((found[0].mean_power_w.value, found[0].bound_w, one.truth(*seconds) / span.duration_s))
        net = net_energy(meters["GPU-0"].energy(window(begin, end)), found, record, window(begin, end), enabled=True)
        # Noise has no mean of its own: the power at rest is what the level is.
        resting = one.truth(0, 14) / 14
        nets.append((net.joules, net.bound_j, one.truth(begin, end) - resting * (end - begin)))
    assert share_within(powers) >= WANTED
    assert share_within(nets) >= WANTED


@given(st.integers(0, 2**32 - 1), st.floats(1, 10), st.floats(11, 38))
@settings(max_examples=100)
def test_the_counter_s_bound_holds_always(seed: int, begin: float, end: float) -> None:
    one = world(np.random.default_rng(seed))
    trace = one.meter(counter=True, power=False).trace
    reading = counter_energy(trace, one.quantum_j, window(begin, end), GPU_CLASS_W)
    assert reading.joules is not None and reading.bound_j is not None
    assert abs(reading.joules - one.truth(begin, end)) <= reading.bound_j + 1e-6


@given(st.floats(-GPU_CLASS_W, GPU_CLASS_W), st.floats(20, 500), st.floats(0.01, 0.3), st.floats(0.5, 20))
@settings(max_examples=100)
def test_a_sensor_that_is_off_by_less_than_its_class_stays_within_the_integral_s_bound(
    offset: float, watts: float, interval: float, seconds: float
) -> None:
    times = np.arange(0, 25, interval)
    power = np.full(len(times), round((watts + offset) * 1e3), dtype=np.int64)
    trace = make_trace(EPOCH_NS + (times * 1e9).round().astype(np.int64), np.full(len(times), NULL), power)
    reading = integrated_energy(trace, GPU_CLASS_W + 0.001, window(1, 1 + seconds))
    assert reading.joules is not None and reading.bound_j is not None
    assert abs(reading.joules - watts * seconds) <= reading.bound_j
    assert math.isclose(reading.bound_j, (GPU_CLASS_W + 0.001) * seconds, rel_tol=1e-9)
