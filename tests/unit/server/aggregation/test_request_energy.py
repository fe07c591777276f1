"""Energy of each request: sums are the window's energy, work decides the shares, and known costs are found again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories.evidence import EPOCH_NS, Evidence, Stored, cpu, gpu, simulated
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import StreamName
from lem_domain.results.figures import EnergyMethod
from lem_domain.results.method import MethodVersion
from lem_domain.results.requests import RequestRow, RequestTable
from lem_server.aggregation.errors import EvidenceInvalid, EvidenceMissing
from lem_server.aggregation.request_table import RequestColumns, RequestFormat, request_table, write_table
from lem_server.aggregation.result import aggregate

WEIGHTS_ONLY = {"matmul_parameters": 1e6, "layers": 0, "attention_width": 0}
"""A model in which a token costs the same whatever its context."""


def table_of(evidence: Evidence) -> RequestColumns:
    return table_of_stored(evidence.stored())


def table_of_stored(stored: Stored) -> RequestColumns:
    return request_table(stored.inputs, stored.source)


def energies(found: RequestColumns) -> list[float | None]:
    values: list[float | None] = found.table["energy_j"].to_pylist()
    return values


def bounds(found: RequestColumns) -> list[float | None]:
    values: list[float | None] = found.table["bound_j"].to_pylist()
    return values


def sum_of_all(found: RequestColumns) -> float:
    idle = found.summary.idle_energy_j.value
    assert idle is not None
    return math.fsum([idle, *(value for value in energies(found) if value is not None)])


def simulated_run(power_w: Callable[[float], float], seconds: float = 20.0, period_s: float = 0.01) -> Evidence:
    """A simulated device, whose readings are exact, with a counter; its power is level within a sampling period."""
    evidence = Evidence(devices=(simulated(),))
    evidence.summaries["rank-0"]["model"] = WEIGHTS_ONLY
    counted, at, counts = 1000.0, -1.0, {}
    while at < seconds:
        counts[at] = counted
        counted += power_w(at + period_s / 2) * period_s
        at = round(at + period_s, 9)
    evidence.power(list(counts), joules=lambda t: counts[t])
    return evidence


# --- sums -------------------------------------------------------------------------------------------------------------


def random_window(seed: int) -> Evidence:
    """Some ranks and devices, requests that overlap in any way, a few failed, tokens of one step, gaps without work."""
    rng = np.random.default_rng(seed)
    ranks, devices = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    make = (gpu, simulated)[int(rng.integers(2))]
    processes = (*(f"rank-{number}" for number in range(ranks)), "sampler")
    evidence = Evidence(processes=processes, devices=tuple(make(number) for number in range(devices)))
    shaped, size = rng.random() < 0.5, float(rng.choice([1e6, 8e9]))
    for number in range(ranks):
        if shaped:
            shape = {"matmul_parameters": size, "layers": 32, "attention_width": 4096}
            evidence.summaries[f"rank-{number}"]["model"] = shape
        for request in range(int(rng.integers(1, 5))):
            arrival = int(rng.integers(0, 400)) / 100
            begin = arrival + int(rng.integers(1, 100)) / 1000
            # Steps from 0 (a token of the same step) to 2 s, or a thousandth of it.
            steps = rng.integers(0, 2000, size=rng.integers(1, 9)) * (rng.random() < 0.8)
            tokens = begin + np.cumsum(steps) / float(rng.choice([1e3, 1e6]))
            prompt = int(rng.choice([1, 10, 1000]))
            evidence.request(
                request,
                arrival,
                tokens.tolist(),
                rank=number,
                prompt_tokens=prompt,
                scheduled=begin if rng.random() < 0.5 else None,
                cached=(None, 0, prompt)[int(rng.integers(3))],
                error="no blocks left" if rng.random() < 0.2 else None,
            )
    levels = rng.integers(50, 400, size=10)
    counted = rng.random() < 0.5
    times = [at / 10 - 1 for at in range(240)]
    for device in range(devices):
        edges = np.arange(11) * 2.5 - 1
        until = np.concatenate(([5.0], 5 + np.cumsum(levels * 2.5)))
        evidence.power(
            times,
            watts=lambda t: float(levels[int((t + 1) // 2.5)]),
            joules=(lambda t, e=edges, u=until: float(np.interp(t, e, u))) if counted else None,  # type: ignore[misc]
            device=device,
        )
    return evidence


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_requests_and_idle_time_have_the_energy_of_the_window_exactly(seed: int) -> None:
    evidence = random_window(seed)
    stored = evidence.stored()
    found = table_of_stored(stored)
    total = aggregate(stored.inputs, stored.source).energy.total
    assert found.summary.total == total
    assert total.joules is not None
    idle = found.summary.idle_energy_j
    if idle.value is None:
        assert idle.reason == "no request has token times in the window"
        return
    assert sum_of_all(found) == pytest.approx(total.joules, rel=1e-9)
    assert all(value is None or value >= 0 for value in energies(found))
    assert idle.value >= 0
    parts = [found.summary.finished_energy_j, found.summary.failed_energy_j, idle]
    assert math.fsum(part.value or 0.0 for part in parts) == pytest.approx(total.joules, rel=1e-9)
    for value, exact in zip(energies(found), by_hand(evidence, total.joules, found), strict=True):
        assert value is None or value == pytest.approx(exact, rel=1e-5, abs=1e-5 * total.joules)


def by_hand(evidence: Evidence, total_j: float, found: RequestColumns) -> list[float]:
    """Divide the counter's or the integral's energy instant by instant with fractions."""
    weighted = found.summary.weights == "flops"
    steps: list[tuple[int, int, int, Fraction]] = []
    number, window_begin, window_end = 0, None, 0
    for process in evidence.processes[:-1]:
        rows = evidence.rows[(process, StreamName.REQUESTS)]
        tokens = evidence.rows[(process, StreamName.TOKENS)]
        model: dict[str, Any] = evidence.summaries[process].get("model", {})
        for row in range(len(rows["request_id"])):
            begin = rows["scheduled_ns"][row] or rows["arrival_ns"][row]
            window_begin = min(window_begin or rows["arrival_ns"][row], rows["arrival_ns"][row])
            window_end = max(window_end, rows["last_token_ns"][row])
            done = min(rows["cached_prompt_tokens"][row] or 0, rows["prompt_tokens"][row] - 1)
            times = [
                time
                for which, time in zip(tokens["request_id"], tokens["time_ns"], strict=True)
                if which == rows["request_id"][row]
            ]
            for index, time in enumerate(times):
                if index + 1 < len(times) and times[index + 1] == time:
                    continue
                after = rows["prompt_tokens"][row] + index
                work = Fraction(after - done)
                if weighted:
                    contexts = sum(Fraction(1) * position for position in (done + 1, after)) * (after - done) / 2
                    work = 2 * Fraction(model["matmul_parameters"]) * (after - done)
                    work += 4 * model["layers"] * model["attention_width"] * contexts
                if time > begin:
                    steps.append((number, begin, time, work / (time - begin)))
                begin, done = time, after
            number += 1
    assert window_begin is not None
    edges = sorted({window_begin, window_end, *(edge for _, begin, end, _ in steps for edge in (begin, end))})
    course = course_of(evidence, edges, total_j)
    shares = [0.0] * number
    for at, (low, high) in enumerate(pairwise(edges)):
        running = [(request, density) for request, begin, end, density in steps if begin <= low and end >= high]
        together = sum(density for _, density in running)
        for request, density in running:
            shares[request] += float(density / together) * (course[at + 1] - course[at])
    return shares


def course_of(evidence: Evidence, edges: Sequence[int], total_j: float) -> list[float]:
    """The energy until each edge by the samples of all devices, scaled to the window's energy."""
    rows = evidence.rows[("sampler", StreamName.POWER)]
    whole = np.zeros(len(edges))
    for device in range(len(evidence.devices)):
        mine = [number for number, index in enumerate(rows["device_index"]) if index == device]
        times = np.array([rows["time_ns"][number] - EPOCH_NS for number in mine])
        at = np.array(edges) - EPOCH_NS
        if rows["energy_mj"][mine[0]] is not None:
            counts = np.array([rows["energy_mj"][number] for number in mine]) / 1e3
            shape = np.interp(at, times, counts)
        else:
            watts = np.array([rows["power_mw"][number] for number in mine]) / 1e3
            inner = np.unique(np.concatenate((times, at)))
            power = np.interp(inner, times, watts)
            until = np.concatenate(([0.0], np.cumsum(np.diff(inner) / 1e9 * (power[1:] + power[:-1]) / 2)))
            shape = np.interp(at, inner, until)
        whole += shape - shape[0]
    return [float(value) for value in whole * (total_j / whole[-1])]


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_a_step_s_energy_is_divided_by_the_tokens_processed_in_it() -> None:
    """One second each: a prompt of 99 tokens next to one token of another request, then one token of each."""
    evidence = simulated_run(lambda _: 100.0)
    evidence.request(0, 0.0, [1.0, 2.0, 3.0], prompt_tokens=50)
    evidence.request(1, 0.0, [2.0, 3.0], scheduled=1.0, prompt_tokens=99)
    found = table_of(evidence)
    first, second = energies(found)
    assert found.summary.weights == "flops"
    assert first == pytest.approx(100 + 100 * 1 / 100 + 50, rel=1e-6)
    assert second == pytest.approx(100 * 99 / 100 + 50, rel=1e-6)
    assert found.summary.idle_energy_j.value == pytest.approx(0, abs=1e-9)


def test_attention_over_a_longer_context_weighs_more() -> None:
    evidence = simulated_run(lambda _: 100.0)
    evidence.summaries["rank-0"]["model"] = {"matmul_parameters": 1000, "layers": 1, "attention_width": 10}
    evidence.request(0, 0.0, [1.0, 2.0], prompt_tokens=100)
    evidence.request(1, 0.0, [1.0, 2.0], prompt_tokens=300)
    first, second = energies(table_of(evidence))

    def flops(done: int, after: int) -> float:
        return 2 * 1000 * (after - done) + 4 * 10 * sum(range(done + 1, after + 1))

    prefill = flops(0, 100) / (flops(0, 100) + flops(0, 300))
    decode = flops(100, 101) / (flops(100, 101) + flops(300, 301))
    assert first == pytest.approx(100 * (prefill + decode), rel=1e-6)
    assert second == pytest.approx(200 - 100 * (prefill + decode), rel=1e-6)


def test_without_a_model_s_shape_every_token_weighs_the_same_and_it_says_so() -> None:
    evidence = simulated_run(lambda _: 100.0)
    del evidence.summaries["rank-0"]["model"]
    evidence.request(0, 0.0, [1.0], prompt_tokens=100)
    evidence.request(1, 0.0, [1.0], prompt_tokens=300)
    found = table_of(evidence)
    assert found.summary.weights == "tokens"
    assert energies(found) == pytest.approx([25, 75], rel=1e-6)


def test_cached_prompt_tokens_are_no_work_but_the_last_one_is() -> None:
    evidence = simulated_run(lambda _: 100.0)
    evidence.request(0, 0.0, [1.0], prompt_tokens=100, cached=90)
    evidence.request(1, 0.0, [1.0], prompt_tokens=100, cached=100)
    assert energies(table_of(evidence)) == pytest.approx([1000 / 11, 100 / 11], rel=1e-6)


def test_tokens_of_one_step_share_it_and_a_missing_token_is_in_the_next_step() -> None:
    evidence = simulated_run(lambda _: 100.0)
    evidence.request(0, 0.0, [1.0, 2.0, 2.0, 2.0], prompt_tokens=1)
    evidence.request(1, 0.0, [1.0, 1.5, 2.0], prompt_tokens=1, record_tokens=False)
    for index, time in ((0, 1.0), (2, 2.0)):
        evidence.token(1, index, time)
    assert energies(table_of(evidence)) == pytest.approx([50 + 60, 50 + 40], rel=1e-6)


def test_time_without_work_is_idle_and_belongs_to_no_request() -> None:
    evidence = simulated_run(lambda t: 100.0 if 1 < t < 2 or 5 < t < 6 else 30.0)
    evidence.request(0, 0.0, [2.0], scheduled=1.0)
    evidence.request(1, 4.0, [6.0], scheduled=5.0)
    found = table_of(evidence)
    assert energies(found) == pytest.approx([100, 100], rel=1e-3)
    assert found.summary.idle_energy_j.value == pytest.approx(4 * 30, rel=1e-3)


def test_the_energy_of_failed_requests_is_theirs() -> None:
    evidence = simulated_run(lambda _: 100.0)
    evidence.request(0, 0.0, [1.0, 2.0], prompt_tokens=1)
    evidence.request(1, 0.0, [1.0], prompt_tokens=1, error="out of blocks")
    evidence.request(2, 0.0, [], prompt_tokens=1, error="too long")
    found = table_of(evidence)
    assert found.table["failed"].to_pylist() == [False, True, True]
    assert energies(found) == [pytest.approx(150), pytest.approx(50), None]
    summary = found.summary
    assert (summary.requests, summary.failed_requests, summary.without_energy) == (3, 2, 1)
    assert summary.failed_energy_j.value == pytest.approx(50)
    assert summary.finished_energy_j.value == pytest.approx(150)
    assert (summary.per_request_j.count, summary.per_request_j.mean) == (1, pytest.approx(150))


def test_requests_of_all_ranks_share_the_energy_of_all_devices() -> None:
    evidence = Evidence(processes=("rank-0", "rank-1", "sampler"), devices=(simulated(0), simulated(1)))
    for number in (0, 1):
        evidence.request(0, 0.0, [1.0 + number], rank=number, prompt_tokens=10)
        watts = 100 * (number + 1)
        times = [at / 100 for at in range(-10, 300)]
        evidence.power(times, joules=lambda t, watts=watts: 1000 + watts * t, device=number)  # type: ignore[misc]
    found = table_of(evidence)
    assert found.table["process"].to_pylist() == ["rank-0", "rank-1"]
    # In the first second the prompt of rank 0 is computed twice as fast.
    assert energies(found) == pytest.approx([200, 400], rel=1e-3)


# --- known truth ------------------------------------------------------------------------------------------------------


def test_two_kinds_of_requests_are_told_apart_within_their_bounds() -> None:
    """Batches of two kinds by turns, of 300 W and of 200 W, on a GPU with a counter that is updated every 100 ms."""
    evidence = Evidence(devices=(gpu(),))
    evidence.summaries["rank-0"]["model"] = WEIGHTS_ONLY

    def watts(t: float) -> float:
        return 100.0 if not 0 <= t < 40 else 300.0 if int(t) % 2 == 0 else 200.0

    edges = np.arange(-500, 4600) / 100
    until = np.concatenate(([0.0], np.cumsum([watts(t + 0.005) * 0.01 for t in edges])))[:-1] + 1000
    times = [at / 50 for at in range(-200, 2200)]
    evidence.power(times, watts=watts, joules=lambda t: float(np.interp(math.floor(t * 10 + 1e-9) / 10, edges, until)))
    for batch in range(40):
        for row in range(4):
            tokens = [batch + 0.02 * (step + 1) for step in range(50)]
            evidence.request(4 * batch + row, float(batch), tokens, batch=batch, prompt_tokens=1)
    found = table_of(evidence)
    each, open_j = np.array(energies(found)).reshape(40, 4), np.array(bounds(found)).reshape(40, 4)
    truth = np.where(np.arange(40) % 2 == 0, 75.0, 50.0)[:, None]
    assert (np.abs(each - truth) <= open_j).all()
    dear, cheap = slice(0, None, 2), slice(1, None, 2)
    # The sensor's factor and offset are those of all of them: what is left of the bounds tells them apart.
    alone = open_j - 0.065 * each - 5.0 / 4
    assert alone.min() > 0
    assert (each[dear] - alone[dear]).min() > (each[cheap] + alone[cheap]).max()
    assert np.abs(each - truth).max() < 1.0


def test_requests_in_one_batch_have_the_cost_that_their_work_has() -> None:
    """Power is proportional to work per time: requests of 10 and of 1,000 prompt tokens in one engine."""
    joules_per_token, steps = 0.05, 400
    # As long as there is power every sample has another count, so that the counter resolves every step.
    rng = np.random.default_rng(7)
    running: dict[int, list[float]] = {}
    prompts: dict[int, int] = {}
    power, number = [], 0
    for step in range(steps):
        tokens = 0
        if step < steps - 60 and len([one for one in running.values() if len(one) < 30]) < 8:
            prompts[number] = int(rng.choice([10, 1000]))
            running[number] = []
            number += 1
        for request, times in running.items():
            if len(times) < 30:
                tokens += prompts[request] if not times else 1
                times.append((step + 1) * 0.1)
        power.append(joules_per_token * tokens / 0.1 or 1.0)
    evidence = simulated_run(lambda t: power[min(int(t / 0.1), steps - 1)] if t >= 0 else 1.0, steps * 0.1 + 1)
    for request, times in running.items():
        evidence.request(request, times[0] - 0.1, times, scheduled=times[0] - 0.1, prompt_tokens=prompts[request])
    found = table_of(evidence)
    for request, value in enumerate(energies(found)):
        assert value == pytest.approx(joules_per_token * (prompts[request] + 29), rel=1e-3)


@pytest.mark.parametrize("counted", [True, False])
def test_a_request_s_energy_is_true_within_its_bound(counted: bool) -> None:
    """A slow sensor of 5 % too much on power that jumps: the truth is within the bound of nearly every request."""
    rng = np.random.default_rng(3)
    outside = requests = 0
    ratios = []
    for _ in range(6):
        evidence = Evidence(devices=(gpu(),))
        fine = np.arange(-2000, 14_000) / 1000
        power = np.repeat(rng.uniform(80, 350, size=len(fine) // 50), 50)
        until = np.concatenate(([0.0], np.cumsum(power * 0.001)))[:-1]
        times = [at / 20 for at in range(-30, 260)]

        def read(t: float, until: Any = until, fine: Any = fine) -> float:
            return 1.05 * float(np.interp(math.floor(t * 10 + 1e-9) / 10, fine, until)) + 2000

        def mean(t: float, until: Any = until, fine: Any = fine) -> float:
            at = math.floor(t * 10 + 1e-9) / 10
            return 1.05 * float(np.interp(at, fine, until) - np.interp(at - 0.1, fine, until)) / 0.1

        evidence.power(times, watts=mean, joules=read if counted else None)
        for request in range(30):
            begin = float(rng.uniform(0, 8))
            evidence.request(request, begin, [begin + float(rng.uniform(0.3, 2))], scheduled=begin)
        found = table_of(evidence)
        exact = replace(evidence.stored(), chunks=())
        assert exact.inputs.devices == evidence.devices
        for value, bound, truth in zip(energies(found), bounds(found), true_shares(evidence, fine, until), strict=True):
            assert value is not None and bound is not None
            outside += abs(value - truth) > bound
            requests += 1
            ratios.append(bound / truth)
    assert outside <= 0.02 * requests
    assert float(np.median(ratios)) < 1


def true_shares(evidence: Evidence, fine: Any, until: Any) -> list[float]:
    """The true energy of requests of one step each."""
    rows = evidence.rows[("rank-0", StreamName.REQUESTS)]
    begins = [(value - EPOCH_NS) / 1e9 for value in rows["scheduled_ns"]]
    ends = [(value - EPOCH_NS) / 1e9 for value in rows["last_token_ns"]]
    work = [tokens / (end - begin) for tokens, begin, end in zip(rows["prompt_tokens"], begins, ends, strict=True)]
    edges = sorted({*begins, *ends})
    shares = [0.0] * len(begins)
    for low, high in pairwise(edges):
        joules = float(np.interp(high, fine, until) - np.interp(low, fine, until))
        running = [one for one in range(len(begins)) if begins[one] <= low and ends[one] >= high]
        for one in running:
            shares[one] += joules * work[one] / sum(work[other] for other in running)
    return shares


# --- null with a reason -----------------------------------------------------------------------------------------------


def nothing_of(found: RequestColumns) -> str:
    """The reason of every figure, of which none has a value."""
    summary = found.summary
    figures = (summary.finished_energy_j, summary.failed_energy_j, summary.idle_energy_j, summary.resolution_ms)
    assert {figure.value for figure in figures} == {None}
    assert set(energies(found)) == set(bounds(found)) == {None}
    assert summary.without_energy == summary.requests == len(found.table)
    (reason,) = {figure.reason for figure in figures} | {summary.per_request_j.reason}
    assert reason is not None
    return reason


def test_it_is_null_without_energy() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0, 2.0])
    assert nothing_of(table_of(evidence)) == "GPU-0: no power was sampled for this device"


def test_it_is_null_if_a_rank_recorded_no_token_times() -> None:
    evidence = simulated_run(lambda _: 100.0)
    evidence.request(0, 0.0, [1.0, 2.0], record_tokens=False)
    assert nothing_of(table_of(evidence)) == "no token times were recorded by rank-0"


def test_it_is_null_by_m1() -> None:
    evidence = simulated_run(lambda _: 100.0)
    evidence.method = MethodVersion.M1
    evidence.request(0, 0.0, [1.0, 2.0])
    assert "use m2" in nothing_of(table_of(evidence))


def test_it_is_null_if_no_step_has_a_length() -> None:
    evidence = simulated_run(lambda _: 100.0)
    evidence.request(0, 0.0, [1.0], scheduled=1.0)
    assert nothing_of(table_of(evidence)) == "no request has token times in the window"


def test_modelled_energy_is_divided_and_has_no_bound() -> None:
    evidence = Evidence(devices=(cpu(),))
    evidence.request(0, 0.0, [1.0], prompt_tokens=10)
    evidence.request(1, 0.0, [1.0], prompt_tokens=30)
    evidence.host_power("package", [at / 10 for at in range(-10, 30)], joules=lambda t: 40 * t + 100)
    found = table_of(evidence)
    assert found.summary.total.method is EnergyMethod.MODELLED
    assert energies(found) == pytest.approx([10, 30], rel=1e-3)
    assert bounds(found) == [None, None]


def test_missing_evidence_is_refused_and_tokens_that_contradict_themselves() -> None:
    evidence = simulated_run(lambda _: 100.0)
    evidence.request(0, 0.0, [1.0, 2.0])
    with pytest.raises(EvidenceMissing):
        table_of_stored(evidence.stored().without("rank-0", StreamName.TOKENS))
    twice = simulated_run(lambda _: 100.0)
    twice.request(0, 0.0, [1.0, 2.0])
    twice.token(0, 1, 3.0)
    with pytest.raises(EvidenceInvalid, match="twice"):
        table_of(twice)
    backwards = simulated_run(lambda _: 100.0)
    backwards.request(0, 0.0, [1.0, 2.0], error="e", record_tokens=False)
    for index, time in ((0, 2.0), (1, 1.0)):
        backwards.token(0, index, time)
    with pytest.raises(EvidenceInvalid, match="backwards"):
        table_of(backwards)
    negative = simulated_run(lambda _: 100.0)
    negative.request(0, 0.0, [1.0, 2.0])
    negative.token(0, -1, 3.0)
    with pytest.raises(EvidenceInvalid, match="negative"):
        table_of(negative)


def test_token_times_of_unknown_requests_change_nothing() -> None:
    evidence = simulated_run(lambda _: 100.0)
    evidence.request(0, 0.0, [1.0, 2.0])
    evidence.token(77, 0, 1.5)
    assert energies(table_of(evidence)) == pytest.approx([200])


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> RequestColumns:
    evidence = simulated_run(lambda _: 100.0)
    evidence.config = ExperimentConfig.model_validate({"backend": "simulated", "model": "test"})
    evidence.request(0, 0.0, [1.0, 2.0], cached=3)
    evidence.request(1, 0.5, [], error="too long")
    return table_of(evidence)


def test_every_format_has_the_same_columns_and_values(small: RequestColumns, tmp_path: Path) -> None:
    for form in RequestFormat:
        write_table(small, tmp_path / form.value, form)
    parsed = RequestTable.model_validate_json((tmp_path / "json").read_bytes())
    assert parsed.summary == small.summary
    assert [one.model_dump() for one in parsed.requests] == small.table.to_pylist()
    with pa.ipc.open_stream(tmp_path / "arrow") as reader:
        arrow = reader.read_all()
    assert arrow.equals(small.table)
    assert json.loads(arrow.schema.metadata[b"lem.summary"]) == small.summary.model_dump(mode="json")
    as_csv = pyarrow.csv.read_csv(tmp_path / "csv").to_pylist()
    assert [{**row, "scheduled_ns": None} for row in as_csv] == small.table.to_pylist()
    assert list(as_csv[0]) == list(RequestRow.model_fields) == small.table.column_names
    assert parsed.requests[1].energy_j is None
