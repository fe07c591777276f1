"""What decisions take from a result: the energy behind a metric, with what is open in it, and the work."""

from __future__ import annotations

import math

import pytest

from factories.decisions import METRIC
from factories.evidence import Evidence
from lem_domain.results.run import RunResult
from lem_server.aggregation.result import aggregate
from lem_server.decisions.facts import cycle_facts, energy_path, energy_reading


@pytest.fixture(scope="module")
def result() -> RunResult:
    """Three requests, one of them failed, over ten seconds at 100 W."""
    made = Evidence()
    made.request(0, 0.0, [1.0, 5.0, 10.0])
    made.request(1, 0.0, error="out of blocks")
    made.request(2, 0.0, [2.0])
    made.power([number * 0.1 - 1 for number in range(130)], watts=lambda _: 100, joules=lambda t: 100 * t + 500)
    stored = made.stored()
    return aggregate(stored.inputs, stored.source)


@pytest.mark.parametrize(
    ("metric", "path"),
    [
        ("efficiency.energy_per_output_token_j", ("energy.total", 1)),
        ("efficiency.output_tokens_per_j", ("energy.total", -1)),
        ("efficiency.energy_delay_product_js", ("energy.total", 1)),
        ("energy.mean_power_w", ("energy.total", 1)),
        ("energy.total", ("energy.total", 1)),
        ("energy.phases.prefill.energy", ("energy.phases.prefill.energy", 1)),
        ("speed.output_rate_tok_s", None),
    ],
)
def test_the_energy_that_a_metric_is_made_of(metric: str, path: tuple[str, int] | None) -> None:
    assert energy_path(METRIC[metric]) == path


def test_an_energy_with_its_parts(result: RunResult) -> None:
    total = result.energy.total
    parts = total.bound_parts
    assert parts is not None
    found = energy_reading(METRIC["efficiency.output_tokens_per_j"], result)
    assert found is not None
    assert (found.joules, found.seconds, found.power) == (total.joules, 10.0, -1)
    assert (found.gain, found.offset_w) == (parts.sensor_gain, parts.sensor_offset_w)
    assert found.open_j == pytest.approx(math.sqrt(parts.sampling_j**2 + parts.coverage_j**2))
    assert found.apart_j == parts.disagreement_j


def test_no_reading_without_energy_bound_or_duration(result: RunResult) -> None:
    metric = METRIC["energy.total"]
    for change in ({"joules": None}, {"bound_parts": None}):
        energy = result.energy.model_copy(update={"total": result.energy.total.model_copy(update=change)})
        assert energy_reading(metric, result.model_copy(update={"energy": energy})) is None
    window = result.window.model_copy(update={"duration_s": 0.0})
    assert energy_reading(metric, result.model_copy(update={"window": window})) is None
    assert energy_reading(METRIC["speed.output_rate_tok_s"], result) is None


def test_the_facts_of_a_cycle(result: RunResult) -> None:
    metrics = [METRIC["energy.total"], METRIC["speed.output_rate_tok_s"], METRIC["speed.queue_ms.mean"]]
    found = cycle_facts(result, 3, metrics, devices=("GPU-1", "GPU-0"))
    assert found.values == {"energy.total": result.energy.total.joules, "speed.output_rate_tok_s": 0.4}
    assert list(found.energies) == ["energy.total"]
    assert found.reasons == {"speed.queue_ms.mean": result.speed.queue_ms.reason}
    assert cycle_facts(result, 1, (), effective={"a": 1}).effective == {"a": 1}
    assert (found.cycle, found.devices, found.environment) == (3, ("GPU-0", "GPU-1"), {})
    parts = result.energy.total.bound_parts
    assert parts is not None
    assert found.sensors == ("GPU-0", str(result.energy.total.method), str(parts.calibration))
    assert found.work == (None, None, 2.0, None)


def test_all_requests_failed(result: RunResult) -> None:
    work = result.work.model_copy(update={"failed_requests": result.work.requests})
    assert cycle_facts(result.model_copy(update={"work": work}), 1, ()).work.tokens_per_request is None


@pytest.mark.parametrize(
    ("prompts", "digest"),
    [
        ({"sent_sha256": "a", "sha256": "b"}, "a"),
        ({"sent": 3, "sha256": "b"}, "b"),
        ({"one": "x", "another": "y", "size": 3}, "another=y;one=x"),
        ({"sent": "x"}, None),
        ({"size": 3}, None),
        ({}, None),
        ("x", None),
    ],
)
def test_what_identifies_prompts(result: RunResult, prompts: object, digest: str | None) -> None:
    assert cycle_facts(result, 1, (), environment={"prompts": prompts}).work.prompts == digest
