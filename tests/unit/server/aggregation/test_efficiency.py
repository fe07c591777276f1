"""Energy in relation to work: every ratio from sums, none from means, none where the energy is missing."""

from __future__ import annotations

import pytest

from factories.evidence import Evidence, gpu
from lem_domain.results.run import RunResult
from lem_server.aggregation.result import aggregate

SAMPLES = [number * 0.1 for number in range(140)]
TWO_RANKS = ("rank-0", "rank-1", "sampler")


def result_of(evidence: Evidence) -> RunResult:
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def two_uneven_ranks() -> Evidence:
    """Rank 0 works from 1 to 3 s, rank 1 from 1 to 11 s; two devices of 100 W and 300 W."""
    evidence = Evidence(processes=TWO_RANKS, devices=(gpu(0), gpu(1)))
    evidence.request(0, 1.0, [2.0, 3.0], rank=0, prompt_tokens=1000)
    evidence.request(0, 1.0, [2.0, 6.0], rank=1, prompt_tokens=1000)
    evidence.request(1, 6.0, [7.0, 8.0, 9.0, 11.0], rank=1, prompt_tokens=1000)
    evidence.power(SAMPLES, joules=lambda t: 100 * t, device=0)
    evidence.power(SAMPLES, joules=lambda t: 300 * t, device=1)
    return evidence


def test_prompt_tokens_neither_speed_a_run_up_nor_make_it_thriftier() -> None:
    result = result_of(two_uneven_ranks())
    assert (result.work.prompt_tokens, result.work.generated_tokens) == (3000, 8)
    assert result.speed.output_rate_tok_s.value == pytest.approx(8 / 10)
    assert result.speed.total_rate_tok_s.value == pytest.approx(3008 / 10)
    assert result.efficiency.energy_per_output_token_j.value == pytest.approx(4000 / 8, abs=0.01)


def test_every_ratio_is_of_the_job_s_sums() -> None:
    """Two ranks of 1 and 0.6 tok/s do not make 0.8 (their mean), nor 1.6 (their sum), but 8 tokens in 10 s."""
    result = result_of(two_uneven_ranks())
    efficiency, total = result.efficiency, result.energy.total.joules
    assert total == pytest.approx(4000, abs=0.1)
    assert result.window.duration_s == 10
    assert efficiency.output_tokens_per_j.value == pytest.approx(8 / 4000, rel=1e-4)
    tokens_per_j, per_token = efficiency.output_tokens_per_j.value, efficiency.energy_per_output_token_j.value
    assert tokens_per_j is not None and per_token is not None
    assert tokens_per_j * per_token == pytest.approx(1)
    assert efficiency.energy_per_request_j.value == pytest.approx(4000 / 3, rel=1e-4)
    mean_e2e_s = (2 + 5 + 5) / 3
    assert efficiency.energy_delay_product_js.value == pytest.approx(4000 / 3 * mean_e2e_s, rel=1e-4)


def test_failed_requests_cost_energy_and_divide_none() -> None:
    evidence = two_uneven_ranks()
    evidence.request(9, 1.0, [2.0, 5.0], rank=0, error="out of blocks")
    efficiency = result_of(evidence).efficiency
    assert efficiency.energy_per_request_j.value == pytest.approx(4000 / 3, rel=1e-4)


def test_without_energy_every_ratio_is_null_and_says_why() -> None:
    evidence = Evidence()
    evidence.request(0, 1.0, [2.0, 3.0])
    for figure in result_of(evidence).efficiency.__dict__.values():
        assert figure.value is None
        assert figure.reason


def test_a_prompt_token_s_energy_is_that_of_prefill_alone() -> None:
    evidence = Evidence()
    for number in range(10):  # 0.5 s of prefill at 400 W, 0.5 s of decode at 100 W, in lockstep
        begin = 1.0 + number
        evidence.request(number, begin, [begin + 0.5, begin + 1.0], scheduled=begin, prompt_tokens=50, batch=number)

    def joules(t: float) -> float:
        whole, part = divmod(max(t - 1.0, 0.0), 1.0)
        return 100.0 + whole * 250 + 400 * min(part, 0.5) + 100 * max(part - 0.5, 0.0)

    evidence.power([number * 0.01 for number in range(1300)], joules=joules)
    result = result_of(evidence)
    prefill = result.energy.phases.prefill.energy
    assert prefill.joules is not None, prefill.reason
    assert prefill.joules == pytest.approx(2000, rel=0.05)
    assert result.efficiency.energy_per_prompt_token_j.value == pytest.approx(prefill.joules / 500)
