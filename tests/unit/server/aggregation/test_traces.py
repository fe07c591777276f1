"""Counter and integral against analytic truths."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories.evidence import ns
from lem_domain.results.run import WindowResult
from lem_server.aggregation.energy.traces import (
    GAP_FACTOR,
    EnergyEstimate,
    SampleGaps,
    Span,
    Trace,
    counter_energy,
    integrated_energy,
    make_trace,
    range_between,
)
from lem_server.aggregation.evidence_reader import NULL

Curve = Callable[[float], float]


def window(begin: float, end: float) -> WindowResult:
    length = ns(end) - ns(begin)
    return WindowResult(begin_ns=ns(begin), end_ns=ns(end), duration_s=length / 1e9, processes=1, overlap=1)


def trace(times: Sequence[float], watts: Curve | None = None, joules: Curve | None = None) -> Trace:
    nulls = [NULL] * len(times)
    return make_trace(
        np.array([ns(time) for time in times], dtype=np.int64),
        np.array([int(joules(time) * 1e3) for time in times] if joules else nulls, dtype=np.int64),
        np.array([round(watts(time) * 1e3) for time in times] if watts else nulls, dtype=np.int64),
    )


def every(step: float, until: float) -> list[float]:
    return [number * step for number in range(round(until / step) + 1)]


def joules_of(reading: EnergyEstimate) -> tuple[float, float]:
    assert reading.joules is not None, reading.reason
    assert reading.bound_j is not None
    return reading.joules, reading.bound_j


def counter(trace: Trace, begin: float, end: float) -> EnergyEstimate:
    return counter_energy(trace, 1e-3, window(begin, end))


class TestCounter:
    def test_constant_power_with_ends_between_samples(self) -> None:
        energy, bound = joules_of(counter(trace(every(0.05, 12), joules=lambda t: 100 * t), 1.013, 11.037))
        assert energy == pytest.approx(1002.4, abs=0.002)
        # Mean power x observed period at both ends is the least; two more periods may hide between the samples.
        assert 2 * 100 * 0.05 <= bound <= 3 * 100 * 0.05 + 0.002

    def test_ramp(self) -> None:
        energy, bound = joules_of(counter(trace(every(0.05, 12), joules=lambda t: 10 * t * t), 2.0, 10.0))
        assert energy == pytest.approx(10 * (100 - 4), abs=0.002)
        assert bound < 0.03 * energy

    def test_sawtooth(self) -> None:
        def joules(t: float) -> float:
            return 100 * t + 50 * ((t % 2) ** 2 / 2 + (t // 2) * 2)  # 100 to 200 W and back at once, every 2 s

        energy, bound = joules_of(counter(trace(every(0.05, 14), joules=joules), 1.3, 12.7))
        assert energy == pytest.approx(joules(12.7) - joules(1.3), abs=0.05)
        assert bound < 0.03 * energy

    def test_a_gap_around_an_end_widens_the_bound_and_one_inside_hardly_does(self) -> None:
        def joules(t: float) -> float:
            return 100 * t if t < 6 else 600 + 300 * (t - 6)

        bounds = []
        for begin, end in ((20.0, 21.0), (4.0, 7.0), (10.5, 12.5)):
            holed = [time for time in every(0.05, 14) if not begin < time < end]
            energy, bound = joules_of(counter(trace(holed, joules=joules), 1, 11))
            assert abs(energy - (joules(11) - joules(1))) <= bound
            bounds.append(bound)
        whole, inside, around = bounds
        assert inside < 1.5 * whole
        assert around > 5 * whole

    def test_interpolates_linearly_between_the_bracketing_samples(self) -> None:
        energy, _ = joules_of(counter(trace([0, 1, 2, 3, 4, 5], joules=lambda t: 7 * t), 0.25, 3.5))
        assert energy == pytest.approx(7 * 3.25, abs=1e-9)

    def test_the_period_is_that_of_the_updates_not_of_the_samples(self) -> None:
        stepped = trace(every(0.02, 12), joules=lambda t: 200 * (np.floor(t / 0.1 + 1e-9) * 0.1))
        energy, bound = joules_of(counter(stepped, 1.03, 11.08))
        assert abs(energy - 200 * 10.05) <= bound
        assert bound >= 2 * 200 * 0.1 * 0.98

    def test_a_burst_shorter_than_the_sampling_period_is_counted(self) -> None:
        # 50 W, and 1,000 W for 10 ms between two samples.
        burst = trace(every(0.1, 12), joules=lambda t: 50 * t + 950 * min(max(t - 5.02, 0), 0.01))
        energy, bound = joules_of(counter(burst, 1, 11))
        assert abs(energy - (500 + 9.5)) <= min(bound, 0.002)

    def test_a_burst_at_the_window_s_end_stays_within_the_bound(self) -> None:
        def joules(t: float) -> float:
            return 10 * t + 990 * min(max(t - 10.9, 0), 0.2)

        energy, bound = joules_of(counter(trace(every(0.5, 13), joules=joules), 1, 10.95))
        error = abs(energy - (joules(10.95) - joules(1)))
        assert 2 * (energy / 9.95) * 0.5 < error <= bound  # mean power x period alone would not do

    def test_a_burst_that_a_slow_counter_shows_only_after_the_window_stays_within_the_bound(self) -> None:
        def joules(t: float) -> float:
            return 10 * t + 990 * min(max(t - 10.2, 0), 0.7)

        slow = trace(every(0.1, 13), joules=lambda t: joules(np.floor(t + 1e-9)))
        energy, bound = joules_of(counter(slow, 1.05, 10.85))
        assert energy < 100
        assert abs(energy - (joules(10.85) - joules(1.05))) <= bound

    def test_a_reset_inside_gives_no_figure_but_a_reason(self) -> None:
        reset = trace(every(0.1, 12), joules=lambda t: 100 * t if t < 6 else 100 * (t - 6))
        assert counter(reset, 1, 11) == EnergyEstimate(None, None, "the energy counter was reset inside the window")

    @pytest.mark.parametrize("at", [0.45, 11.55])
    def test_a_reset_outside_the_window_does_no_harm(self, at: float) -> None:
        reset = trace(every(0.1, 12), joules=lambda t: 1000 + 100 * t if t < at else 100 * t)
        energy, _ = joules_of(counter(reset, 1, 11))
        assert energy == pytest.approx(1000, abs=0.01)

    def test_samples_must_bracket_the_window(self) -> None:
        samples = trace(every(0.1, 10), joules=lambda t: 100 * t)
        assert counter(samples, -1, 9).reason == "the energy counter has no sample before the window began"
        assert counter(samples, 1, 10.5).reason == "the energy counter has no sample after the window ended"
        assert counter(trace([]), 1, 2).reason == "the energy counter has no samples"

    def test_a_counter_that_never_moves_is_not_zero_joules(self) -> None:
        assert counter(trace(every(0.1, 12), joules=lambda _: 5), 1, 11).joules is None

    @given(
        st.lists(st.floats(0, 1000), min_size=40, max_size=40),
        st.floats(0.5, 4),
        st.floats(6, 9),
        st.sampled_from([0.02, 0.1, 0.3]),
        st.sampled_from([0.03, 0.11, 0.25]),
    )
    def test_the_bound_contains_the_truth_of_any_trace(
        self, watts: list[float], begin: float, end: float, update: float, interval: float
    ) -> None:
        """Power changes every 0.25 s at random; the counter shows the energy at its last update."""
        sums = np.concatenate(([0.0], np.cumsum(np.array(watts) * 0.25)))

        def truth(t: float) -> float:
            return float(np.interp(t, np.arange(41) * 0.25, sums))

        samples = trace(every(interval, 10 - interval), joules=lambda t: truth(np.floor(t / update) * update))
        reading = counter(samples, begin, end)
        if reading.joules is not None:
            energy, bound = joules_of(reading)
            assert abs(energy - (truth(end) - truth(begin))) <= bound + 1e-6

    @given(
        st.lists(st.floats(1, 500), min_size=20, max_size=20), st.floats(1.1, 3), st.floats(3.1, 6), st.floats(6.1, 9)
    )
    def test_the_energies_of_two_halves_add_up_to_the_whole(
        self, watts: list[float], begin: float, middle: float, end: float
    ) -> None:
        sums = np.concatenate(([0.0], np.cumsum(np.array(watts) * 0.5)))
        samples = trace(every(0.1, 10), joules=lambda t: float(np.interp(t, np.arange(21) * 0.5, sums)))
        parts = [joules_of(counter(samples, *ends))[0] for ends in ((begin, middle), (middle, end), (begin, end))]
        assert parts[0] + parts[1] == pytest.approx(parts[2], rel=1e-9)


def integral(trace: Trace, begin: float, end: float, sensor_w: float | None = 5.0) -> EnergyEstimate:
    return integrated_energy(trace, sensor_w, window(begin, end))


class TestPeriods:
    def test_a_counter_s_period_is_the_mean_between_updates(self) -> None:
        slow = trace(every(0.05, 12), joules=lambda t: 100 * (np.floor(t / 0.07 + 1e-9) * 0.07))
        assert slow.counter_period_s(window(1, 11)) == pytest.approx(0.07, rel=0.02)
        assert slow.sampling_period_s(window(1, 11)) == pytest.approx(0.05)

    def test_without_updates_or_samples_there_is_none(self) -> None:
        assert trace(every(0.05, 12), joules=lambda _: 5).counter_period_s(window(1, 11)) is None
        assert trace([2, 3], joules=lambda t: t).counter_period_s(window(1, 11)) is None
        assert trace([2, 3], joules=lambda t: t).sampling_period_s(window(1, 11)) is None

    def test_a_sensor_that_shows_a_power_of_long_ago_has_a_wider_bound(self) -> None:
        def watts(t: float) -> float:
            return 100 + 50 * np.sin(t)

        bounds = []
        for update in (0.02, 0.5):
            seen = trace(every(0.02, 12), watts=lambda t, update=update: watts(np.floor(t / update + 1e-9) * update))  # type: ignore[misc]
            energy, bound = joules_of(integral(seen, 1, 11, sensor_w=0.001))
            assert abs(energy - (1000 + 50 * (np.cos(1) - np.cos(11)))) <= bound
            bounds.append(bound)
        assert bounds[1] > 10 * bounds[0]

    def test_a_mean_over_the_last_second_mixes_in_what_was_before(self) -> None:
        def mean(t: float) -> float:
            return 100 + 200 * min(max(t - 1, 0), 1) - 200 * min(max(t - 11, 0), 1)

        seen = trace(every(0.05, 14), watts=mean)  # 300 W from 1 to 11 s, else 100 W
        reading = integrated_energy(seen, 1.0, window(1, 11), averaged_s=1.0)
        energy, bound = joules_of(reading)
        assert energy == pytest.approx(2900)
        assert 100 <= bound < 260


class TestIntegral:
    def test_constant_power(self) -> None:
        energy, bound = joules_of(integral(trace(every(0.1, 12), watts=lambda _: 100), 1.03, 11.07))
        assert energy == pytest.approx(1004, rel=1e-9)
        assert bound == pytest.approx(5 * 10.04)

    def test_ramp(self) -> None:
        energy, _ = joules_of(integral(trace(every(0.1, 12), watts=lambda t: 20 * t), 1.03, 11.07))
        assert energy == pytest.approx(10 * (11.07**2 - 1.03**2), rel=1e-6)

    def test_sawtooth_sampled_at_its_turns(self) -> None:
        def sawtooth(t: float) -> float:
            return 100 + 100 * abs((t + 1) % 2 - 1)

        energy, bound = joules_of(integral(trace(every(0.25, 12), watts=sawtooth), 1, 11))
        assert energy == pytest.approx(1500, rel=1e-6)
        hidden, late = 100 / 2 * 0.25 * 10, 2 * 25 * 0.25
        assert bound == pytest.approx(50 + hidden + late)

    def test_a_gap_widens_the_bound(self) -> None:
        def step(t: float) -> float:
            return 100 if t < 5.5 else 200

        whole = every(0.1, 12)
        holed = [time for time in whole if not 4 < time < 7]
        truth = 100 * 4.5 + 200 * 5.5
        bounds = []
        for samples in (whole, holed):
            energy, bound = joules_of(integral(trace(samples, watts=step), 1, 11, sensor_w=0))
            assert abs(energy - truth) <= bound + 1e-9
            bounds.append(bound)
        assert bounds[1] > bounds[0]

    @pytest.mark.parametrize("every_s", [0.0637, 0.0913, 0.217])
    def test_bursts_shorter_than_the_sampling_period_stay_within_the_bound(self, every_s: float) -> None:
        """Bursts of 7 ms, not in step with readings every 50 ms: some are seen, and stand for the others."""

        def watts(t: float) -> float:
            return 700 if t % every_s < 0.007 else 70

        times = np.arange(1_000_000, 11_000_000, 50) / 1e6
        truth = float(np.mean([watts(t) for t in times])) * 10
        seen = trace(every(0.05, 12), watts=watts)
        energy, bound = joules_of(integral(seen, 1, 11))
        assert abs(energy - truth) <= bound
        assert bound < 1.3 * truth

    def test_bursts_in_step_with_the_readings_are_beyond_any_bound(self) -> None:
        """The known limit of sampled power (docs/measurement.md): only a counter sees these."""

        def watts(t: float) -> float:
            return 700 if 0.01 <= t % 0.1 < 0.02 else 70

        energy, bound = joules_of(integral(trace(every(0.05, 12), watts=watts), 1, 11))
        assert energy == pytest.approx(700)
        assert abs(energy - 1330) > bound

    def test_no_bound_where_the_sensor_s_accuracy_is_unknown(self) -> None:
        assert integral(trace(every(0.1, 12), watts=lambda _: 100), 1, 11, sensor_w=None).bound_j is None

    def test_samples_must_bracket_the_window(self) -> None:
        reason = "the power reading has no sample before the window began"
        assert integral(trace([2, 3], watts=lambda _: 1), 1, 2.5).reason == reason

    @given(
        st.lists(st.floats(0, 800), min_size=12, max_size=60),
        st.floats(0.1, 4),
        st.floats(5, 9.9),
        st.floats(-5, 5),
        st.lists(st.floats(0, 1), min_size=60, max_size=60),
    )
    def test_the_bound_contains_the_truth_of_power_that_moves_between_its_samples(
        self, watts: list[float], begin: float, end: float, offset: float, shares: list[float]
    ) -> None:
        """Between two samples power stays at the first and jumps once to the second; the sensor is off by up to 5 W."""
        times = np.linspace(0, 10, len(watts))
        jumps = [
            float(left + share * (right - left)) for left, right, share in zip(times, times[1:], shares, strict=False)
        ]

        def truth(until: float) -> float:
            edges = [0.0, *jumps, 10.0]
            place = bisect.bisect_right(edges, until) - 1
            whole = sum(watts[i] * (edges[i + 1] - edges[i]) for i in range(place))
            return whole + watts[min(place, len(watts) - 1)] * (until - edges[place])

        read = dict(zip(times, watts, strict=True))
        samples = trace(list(times), watts=lambda t: read[t] + offset)
        energy, bound = joules_of(integral(samples, begin, end, sensor_w=5.002))  # samples are whole milliwatts
        assert abs(energy - (truth(end) - truth(begin))) <= bound

    @given(
        st.lists(st.integers(0, 500), min_size=30, max_size=30), st.floats(1, 3), st.floats(3.1, 5), st.floats(5.1, 9)
    )
    def test_the_energies_of_two_halves_add_up_to_the_whole(
        self, watts: list[int], begin: float, middle: float, end: float
    ) -> None:
        samples = trace([number / 3 for number in range(30)], watts=lambda t: watts[round(t * 3)])
        parts = [integral(samples, *ends).joules for ends in ((begin, middle), (middle, end), (begin, end))]
        assert parts[0] is not None and parts[1] is not None
        assert parts[0] + parts[1] == pytest.approx(parts[2], rel=1e-6, abs=1e-6)


def test_several_samples_of_one_instant_are_one() -> None:
    twice = trace([0, 1, 1, 2, 3], watts=lambda _: 10)
    assert twice.samples_in(window(0.5, 2.5)) == 2


def test_gaps_are_longer_than_five_usual_intervals() -> None:
    times = [time for time in every(0.1, 12) if not 4.05 < time < 4.95]
    found = trace(times, watts=lambda _: 10).sampling_gaps(window(1, 11))
    assert found is not None
    assert (found.number, round(found.longest_s, 6)) == (1, 1.0)
    assert trace(times, watts=lambda _: 10).sampling_gaps(window(6, 11)) is None


class TestLooks:
    """What the samples around a window show, in whole seconds."""

    TIMES = (0, 1, 2, 3, 4, 5, 6, 7)
    COUNTS = (0, 0, 5, 5, 5, 9, 9, 12)

    @staticmethod
    def of(times: Sequence[float], counts: Sequence[int | None], watts: Sequence[float | None]) -> Trace:
        return Trace(
            np.array([round(time * 1e9) for time in times], dtype=np.int64),
            np.array([NULL if count is None else count for count in counts], dtype=np.int64),
            np.array([NULL if power is None else round(power * 1e3) for power in watts], dtype=np.int64),
        )

    @staticmethod
    def span(begin: float, end: float) -> Span:
        return Span(round(begin * 1e9), round(end * 1e9))

    def test_a_counter_s_period_is_the_time_from_its_first_update_to_its_last_by_their_number(self) -> None:
        seen = self.of(self.TIMES, self.COUNTS, [None] * 8)
        assert seen.counter_period_s(self.span(0.5, 6.5)) == 2.5  # updates at 2, 5 and 7 s
        assert seen.counter_period_s(self.span(1.5, 4.5)) == 3  # at 2 and 5 s
        assert seen.counter_period_s(self.span(2.5, 4.5)) is None  # at 5 s alone
        assert seen.counter_period_s(self.span(2.5, 7.5)) is None  # no sample after it

    def test_the_sampling_period_is_the_median_of_the_samples_around_the_window(self) -> None:
        seen = self.of((0, 1, 3, 7, 20), [None] * 5, [1] * 5)
        assert seen.sampling_period_s(self.span(0.5, 6)) == 2
        assert seen.sampling_period_s(self.span(1.5, 2.5)) == 2
        assert seen.sampling_period_s(self.span(3, 3)) is None
        assert seen.sampling_period_s(self.span(3, 21)) is None

    def test_samples_are_counted_with_the_ends_if_they_have_a_value(self) -> None:
        seen = self.of(self.TIMES, [1, 2, None, None, 5, 6, 7, 8], [None, 1, None, 1, None, 1, 1, 1])
        assert seen.samples_in(self.span(1, 5)) == 4
        assert seen.samples_in(self.span(1.5, 4.5)) == 2

    def test_the_peak_is_the_highest_power_in_the_window_with_its_ends(self) -> None:
        seen = self.of(self.TIMES, [None] * 8, [900, 300, 200, None, 100, 400, 500, 800])
        assert seen.peak_power_w(self.span(1, 5)) == 400
        assert seen.peak_power_w(self.span(0.5, 4.5)) == 300
        assert seen.peak_power_w(self.span(3, 3)) is None
        assert seen.peak_power_w(self.span(8, 9)) is None

    def test_the_powers_around_a_window_are_those_that_bracket_it(self) -> None:
        seen = self.of(self.TIMES, [None] * 8, [1, 2, None, 4, 5, 6, 7, 8])
        around = seen.powers_around(self.span(2.5, 4.5))
        assert around is not None
        assert (around.times_ns.tolist(), around.power_mw.tolist()) == (
            [1_000_000_000, 3_000_000_000, 4_000_000_000, 5_000_000_000],
            [2000, 4000, 5000, 6000],
        )
        assert seen.powers_around(self.span(2.5, 7.5)) is None

    def test_gaps_are_counted_against_the_median(self) -> None:
        seen = self.of((0, 1, 2, 3, 3 + GAP_FACTOR, 9.5 + GAP_FACTOR, 10.5 + GAP_FACTOR), [None] * 7, [1] * 7)
        assert seen.sampling_gaps(self.span(0.5, 9.6 + GAP_FACTOR)) == SampleGaps(1, 6.5)
        assert seen.sampling_gaps(self.span(0.5, 2.5)) is None
        assert seen.sampling_gaps(self.span(0.5, 99)) is None

    def test_of_several_samples_of_one_instant_the_first_is_kept(self) -> None:
        made = make_trace(np.array([3, 1, 3]), np.array([30, 10, 31]), np.array([300, 100, 301]))
        assert (made.times_ns.tolist(), made.counts.tolist(), made.power_mw.tolist()) == ([1, 3], [10, 30], [100, 300])

    @pytest.mark.parametrize(
        ("begin", "end", "lowest_to_highest"), [(2, 4, 2), (2, 4.5, 4), (1.5, 4, 10), (2, 2, 0), (0, 7, 22)]
    )
    def test_the_range_between_two_instants_has_the_readings_that_bracket_them(
        self, begin: float, end: float, lowest_to_highest: float
    ) -> None:
        power = np.array([30, 20, 10, 12, 11, 14, 8, 28]) * 1000
        times = np.arange(8) * 1_000_000_000
        assert range_between(times, power, self.span(begin, end), 0.0) == pytest.approx(lowest_to_highest)

    def test_a_margin_widens_the_range_at_both_ends(self) -> None:
        power = np.array([30, 20, 10, 12, 11, 14, 8, 28]) * 1000
        times = np.arange(8) * 1_000_000_000
        assert range_between(times, power, self.span(3, 3), 1.0) == 2
        assert range_between(times, power, self.span(3, 3), 2.0) == 10


class TestHandMade:
    """Bounds that can be added up on paper."""

    def test_of_a_counter(self) -> None:
        """100 counts per s, read every second, from 1.25 to 4.5 s: 325 counts of 2 J."""
        made = TestLooks.of((0, 1, 2, 3, 4, 5, 6), (0, 100, 200, 300, 400, 500, 600), [None] * 7)
        estimate = counter_energy(made, 2.0, TestLooks.span(1.25, 4.5), 3.0)
        assert estimate.joules == 650
        # At the end from 450 to 600 and at the begin from 100 to 125, or from 400 to 450 and from 125 to 300.
        assert estimate.bound_j == 2 * max(2 * 100, 150 + 25 + 1, 50 + 175 + 1) + 3 * 3.25
        assert estimate.sensor_j == 3 * 3.25

    def test_of_a_counter_that_shows_no_later_update(self) -> None:
        made = TestLooks.of((0, 1, 2, 3), (0, 100, 200, 300), [None] * 4)
        estimate = counter_energy(made, 1.0, TestLooks.span(0, 2.5))
        assert (estimate.joules, estimate.sensor_j) == (250, None)
        # At the end from 250 up to 300 and one more period of 100; at the begin from 0 to 100.
        assert estimate.bound_j == max(2 * 100, (400 - 250) + 0 + 1, (250 - 200) + (100 - 0) + 1)

    def test_of_an_integral(self) -> None:
        """100, 200, 200, 300 W at 0, 1, 2 and 3 s; from 0.5 to 2.5 s."""
        made = TestLooks.of((0, 1, 2, 3), [None] * 4, (100, 200, 200, 300))
        estimate = integrated_energy(made, 5.0, TestLooks.span(0.5, 2.5))
        assert estimate.joules == (150 + 200) / 2 * 0.5 + 200 + (200 + 250) / 2 * 0.5
        # Half of each step for 1 s; the readings around each end, one period of 1 s wide; 5 W for 2 s.
        assert estimate.bound_j == (50 + 50) + (100 + 100) + 5 * 2
        assert estimate.sensor_j == 10

    def test_of_an_integral_of_means(self) -> None:
        made = TestLooks.of((0, 1, 2, 3), [None] * 4, (100, 200, 200, 300))
        estimate = integrated_energy(made, 5.0, TestLooks.span(0.5, 2.5), averaged_s=0.25)
        assert estimate.bound_j == 100 + 200 + 10 + 0.25 * 200

    def test_without_the_sensor_s_accuracy_there_is_energy_and_no_bound(self) -> None:
        made = TestLooks.of((0, 1), [None] * 2, (100, 200))
        assert integrated_energy(made, None, TestLooks.span(0, 1)) == EnergyEstimate(150)
