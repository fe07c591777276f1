"""Prefill and decode of lockstep batches on the interpolated counter, with a bound that holds, or a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories.evidence import Evidence, cpu, gpu
from lem_domain.results.energy import PhaseSplit
from lem_domain.results.figures import EnergyMethod
from lem_domain.results.run import RunResult
from lem_server.aggregation.energy.meters import Meter
from lem_server.aggregation.energy.phase_split import phase_split
from lem_server.aggregation.energy.traces import Span, Trace
from lem_server.aggregation.evidence_reader import NULL, IntArray
from lem_server.aggregation.result import aggregate
from lem_server.aggregation.work.requests import RankRequests


def lockstep(batches: int, prefill: float, decode: float, *, size: int = 2, **fields: object) -> Evidence:
    """Batches one after another from 1 s on."""
    made = Evidence(**fields)  # type: ignore[arg-type]
    for batch in range(batches):
        begin = 1 + batch * (prefill + decode)
        for place in range(size):
            tokens = [begin + prefill, begin + prefill + decode / 2, begin + prefill + decode]
            made.request(batch * size + place, begin, tokens, batch=batch, prompt_tokens=100)
    return made


def energy_until(batches: int, prefill: float, decode: float, hot: float, cool: float) -> Callable[[float], float]:
    """Cumulative energy: 30 W at rest, `hot` in prefill, `cool` in decode."""
    edges, watts = [0.0, 1.0], [30.0]
    for _ in range(batches):
        edges += [edges[-1] + prefill, edges[-1] + prefill + decode]
        watts += [hot, cool]
    edges.append(edges[-1] + 1000)
    watts.append(30.0)
    sums = np.concatenate(([0.0], np.cumsum(np.diff(edges) * watts)))
    return lambda t: float(np.interp(t, edges, sums))


def result_of(made: Evidence) -> RunResult:
    stored = made.stored()
    return aggregate(stored.inputs, stored.source)


def split_of(made: Evidence) -> PhaseSplit:
    return result_of(made).energy.phases


def every(step: float, until: float) -> list[float]:
    return [number * step for number in range(round(until / step) + 1)]


def test_long_phases_are_distinguished_exactly() -> None:
    made = lockstep(3, 2.0, 3.0)
    made.power(every(0.02, 18), joules=energy_until(3, 2.0, 3.0, 300, 150))
    result = result_of(made)
    split = result.energy.phases
    assert split.batches == 3
    assert (split.prefill.time_s.value, split.decode.time_s.value) == (pytest.approx(6), pytest.approx(9))
    assert split.prefill.energy.joules == pytest.approx(6 * 300, abs=1)
    assert split.decode.energy.joules == pytest.approx(9 * 150, abs=1)
    assert split.prefill.energy.method is EnergyMethod.COUNTER
    parts = split.prefill.energy.bound_parts
    assert parts is not None and 0 < parts.sampling_j < 0.02 * 1800
    assert (split.prefill.energy.sensor_bound_j or 0) == pytest.approx(0.065 * 1800 + 5 * 6, abs=0.2)
    assert result.efficiency.energy_per_prompt_token_j.value == pytest.approx(1800 / 600, abs=0.01)


def test_phases_shorter_than_the_counter_shows_are_null_with_the_numbers() -> None:
    made = lockstep(40, 0.02, 0.28)
    exact = energy_until(40, 0.02, 0.28, 300, 150)
    made.power(every(0.02, 15), joules=lambda t: exact(np.floor(t / 0.1 + 1e-9) * 0.1))
    result = result_of(made)
    prefill = result.energy.phases.prefill
    assert prefill.energy.joules is None
    assert "prefill lasts 20 ms per batch and the energy counter shows a new value every 100 ms" in str(
        prefill.energy.reason
    )
    assert prefill.time_s.value == pytest.approx(0.8)
    assert result.efficiency.energy_per_prompt_token_j.reason == prefill.energy.reason


def test_several_devices_add_up() -> None:
    made = lockstep(2, 2.0, 4.0, devices=(gpu(0), gpu(1)))
    for device in range(2):
        made.power(every(0.05, 15), joules=energy_until(2, 2.0, 4.0, 300, 100), device=device)
    split = split_of(made)
    assert split.prefill.energy.joules == pytest.approx(2 * 4 * 300, abs=1)
    assert split.decode.energy.joules == pytest.approx(2 * 8 * 100, abs=1)


def test_a_device_that_no_one_sampled_makes_the_phases_null() -> None:
    made = lockstep(2, 2.0, 4.0, devices=(gpu(0), gpu(1)))
    made.power(every(0.05, 15), joules=energy_until(2, 2.0, 4.0, 300, 100), device=0)
    result = result_of(made)
    for phase in (result.energy.phases.prefill, result.energy.phases.decode):
        assert phase.energy.reason == "GPU-1: no power was sampled for it"
        assert phase.time_s.value is not None
    assert result.efficiency.energy_per_prompt_token_j.value is None


def test_a_batch_that_waited_begins_when_the_engine_does() -> None:
    made = Evidence()
    made.request(0, 1.0, [3.0, 6.0], batch=0, scheduled=1.0)
    made.request(1, 2.0, [8.0, 11.0], batch=1, scheduled=6.0, released=2.1)
    made.power(every(0.05, 13), joules=lambda t: 100 * t)
    split = split_of(made)
    assert (split.prefill.time_s.value, split.decode.time_s.value) == (4, 6)


def test_one_token_each_has_no_decode() -> None:
    made = Evidence()
    made.request(0, 1.0, [11.0], batch=0)
    made.power(every(0.05, 13), joules=lambda t: 100 * t)
    split = split_of(made)
    assert split.prefill.energy.joules == pytest.approx(1000, abs=0.1)
    assert split.decode.energy.reason == "there is no decode in the window"


def continuous() -> Evidence:
    made = Evidence()
    made.request(0, 1.0, [2.0, 12.0])
    return made


def two_processes() -> Evidence:
    made = Evidence(processes=("rank-0", "rank-1", "sampler"))
    for rank in range(2):
        made.request(0, 1.0, [2.0, 12.0], rank=rank, batch=0)
    return made


def overlapping() -> Evidence:
    made = Evidence()
    made.request(0, 1.0, [2.0, 12.0], batch=0)
    made.request(1, 3.0, [4.0, 12.0], batch=1)
    return made


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (continuous, "requests join and leave"),
        (two_processes, "several processes"),
        (overlapping, "batches overlap in time"),
    ],
)
def test_what_does_not_run_in_lockstep_is_not_divided(make: Callable[[], Evidence], words: str) -> None:
    made = make()
    made.power(every(0.1, 14), joules=lambda t: 100 * t)
    split = split_of(made)
    for phase in (split.prefill, split.decode):
        assert words in str(phase.energy.reason)
        assert words in str(phase.time_s.reason)
    assert split.batches == 0


def test_power_without_a_counter_does_not_separate_phases() -> None:
    made = lockstep(3, 2.0, 3.0)
    made.power(every(0.05, 18), watts=lambda _: 100)
    assert "phases need a counter" in str(split_of(made).prefill.energy.reason)


def test_modelled_power_does_not_separate_phases() -> None:
    made = lockstep(3, 2.0, 3.0, devices=(cpu(),))
    made.host_power("package", every(1.0, 18), joules=lambda t: 50 * t)
    assert "a model of power" in str(split_of(made).prefill.energy.reason)


def test_a_reset_after_the_window_does_no_harm() -> None:
    made = lockstep(3, 2.0, 3.0)
    made.power(every(0.05, 18), joules=lambda t: 100 * t if t < 17 else 100 * (t - 17))
    assert split_of(made).prefill.energy.joules == pytest.approx(600, abs=1)


@given(
    phases=st.lists(st.tuples(st.floats(0.05, 1.5), st.floats(0.05, 1.5)), min_size=2, max_size=8),
    watts=st.lists(st.floats(20, 500), min_size=16, max_size=16),
    update=st.sampled_from([0.02, 0.07, 0.1]),
    interval=st.sampled_from([0.02, 0.05, 0.11]),
)
def test_the_bound_contains_the_truth(
    phases: Sequence[tuple[float, float]], watts: Sequence[float], update: float, interval: float
) -> None:
    """Each phase of each batch has a power of its own; the counter shows whole mJ of its last update."""
    edges = [0.0, 1.0]
    made = Evidence()
    for batch, (prefill, decode) in enumerate(phases):
        begin = edges[-1]
        made.request(batch, begin, [begin + prefill, begin + prefill + decode], batch=batch)
        edges += [begin + prefill, begin + prefill + decode]
    levels = [50.0, *watts[: 2 * len(phases)]]
    sums = np.concatenate(([0.0], np.cumsum(np.diff(edges) * levels)))

    def truth(t: float) -> float:
        return float(np.interp(t, edges, sums)) + 50 * max(0.0, t - edges[-1])

    made.power(every(interval, edges[-1] + 1), joules=lambda t: truth(np.floor(t / update + 1e-9) * update))
    split = split_of(made)
    for place, phase in enumerate((split.prefill, split.decode)):
        exact = sum(truth(edges[2 + 2 * b + place]) - truth(edges[1 + 2 * b + place]) for b in range(len(phases)))
        if phase.energy.joules is not None:
            assert abs(phase.energy.joules - exact) <= (phase.energy.bound_j or 0) + 1e-6


class TestCounts:
    """A counter of 10, 20 or 40 counts per second, read every second, over batches whose ends lie between readings."""

    SECONDS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    COUNTS = (5, 15, 25, 65, 105, 145, 185, 205, 225, 245, 265)

    @pytest.fixture(autouse=True)
    def _any_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So coarse a counter separates no phases of this length, but its numbers can be followed by hand."""
        monkeypatch.setattr("lem_server.aggregation.energy.phase_split.MOST_UNCERTAIN", 2)

    @staticmethod
    def split(*batches: tuple[float, float, float], counts: Sequence[int] = COUNTS) -> PhaseSplit:
        def column(values: Sequence[float]) -> IntArray:
            return np.array([round(value * 1e9) for value in values], dtype=np.int64)

        begins, firsts, lasts = (column(times) for times in zip(*batches, strict=True))
        numbers = np.arange(len(batches))
        rank = RankRequests(
            process="rank-0",
            request_id=numbers,
            prompt_index=numbers,
            arrival_ns=begins,
            released_ns=begins,
            scheduled_ns=np.full(len(batches), NULL),
            first_token_ns=firsts,
            last_token_ns=lasts,
            prompt_tokens=numbers,
            cached_prompt_tokens=numbers,
            generated_tokens=numbers,
            batch_id=numbers,
            finished=np.ones(len(batches), dtype=np.bool_),
            first_error=None,
            cut_outputs=0,
        )
        nothing = np.full(len(counts), NULL)
        trace = Trace(column(TestCounts.SECONDS[: len(counts)]), np.array(counts, dtype=np.int64), nothing)
        meter = Meter("GPU-0", trace, joules_per_count=10.0, sensor_w=2.0, source="nvml")
        return phase_split([rank], {"GPU-0": meter}, ["GPU-0"], Span(round(1e9), round(9.5e9)))

    def test_energy_and_bound_of_one_batch(self) -> None:
        split = self.split((1.5, 5.0, 9.0))
        assert (split.prefill.time_s.value, split.decode.time_s.value) == (3.5, 4.0)
        # From 20 counts to 145, and from there to 245.
        assert (split.prefill.energy.joules, split.decode.energy.joules) == (1250, 1000)
        # At 1.5 s the true count is from 15 to 66 (after the next update, and one for its rounding), at 5 s from 145 to
        # 186, at 9 s from 245 to 266.
        at_begin, at_first, at_last = max(66 - 20, 20 - 15), 186 - 145, 266 - 245
        assert split.prefill.energy.bound_j == 10 * (at_begin + at_first) + 2 * 3.5
        assert split.decode.energy.bound_j == 10 * (at_first + at_last) + 2 * 4.0
        assert (split.prefill.energy.sensor_bound_j, split.decode.energy.sensor_bound_j) == (7, 8)

    def test_batches_that_follow_each_other_add_up_and_ranges_count_once(self) -> None:
        split = self.split((1.0, 4.0, 4.0), (4.0, 6.25, 9.0))
        assert split.prefill.energy.joules == 10 * ((105 - 15) + (190 - 105))
        # 15 to 26, 105 to 146 once instead of twice, 185 to 226.
        assert split.prefill.energy.bound_j == 10 * (11 + 41 + 41) + 2 * 5.25
        assert split.decode.energy.joules == 10 * (245 - 190)

    def test_after_the_last_update_a_mean_period_may_be_hidden(self) -> None:
        split = self.split((1.0, 5.0, 9.25))
        assert split.decode.energy.joules == 10 * (250 - 145)
        # Relative to the reading at 1 s the counter made nine steps to 250, of 27 in the mean.
        assert split.decode.energy.bound_j == pytest.approx(
            10 * (41 + max(265 + 2 * 27 + 2 - 250, 250 - 245)) + 2 * 4.25
        )
