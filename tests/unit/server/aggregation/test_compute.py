"""FLOPs by the stated formula, and MFU against the table of peaks."""

from __future__ import annotations

from typing import Any

import pytest

from factories.evidence import Evidence, cpu
from lem_domain.results import ComputeResult
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.result import aggregate

SHAPE: dict[str, Any] = {"matmul_parameters": 1000, "layers": 3, "attention_width": 20, "dtype": "bfloat16"}
A100 = Device(uuid="GPU-A", kind=DeviceKind.GPU, name="NVIDIA A100-SXM4-80GB")


def compute_of(evidence: Evidence) -> ComputeResult:
    stored = evidence.stored()
    found = aggregate(stored.inputs, stored.source).compute
    assert found is not None
    return found


def made(shape: dict[str, Any] | None = None, **fields: Any) -> Evidence:
    evidence = Evidence(**fields)
    evidence.request(0, 0.0, [1.0, 5.0, 10.0], prompt_tokens=4)
    if shape is not None:
        evidence.summaries["rank-0"]["model"] = shape
    return evidence


def test_one_request_is_counted_token_by_token() -> None:
    # Four prompt tokens and two fed back see contexts of 1 to 6.
    assert compute_of(made(SHAPE)).flops.value == 2 * 1000 * 6 + 4 * 3 * 20 * (1 + 2 + 3 + 4 + 5 + 6)


def test_cached_prompt_tokens_are_not_computed_but_looked_at() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0, 10.0], prompt_tokens=5, cached=3)
    evidence.summaries["rank-0"]["model"] = SHAPE
    assert compute_of(evidence).flops.value == 2 * 1000 * 3 + 4 * 3 * 20 * (4 + 5 + 6)


def test_failed_requests_and_those_without_tokens_do_not_count() -> None:
    evidence = made(SHAPE)
    evidence.request(1, 0.0, [2.0], error="broken")
    evidence.request(2, 0.0, [])
    assert compute_of(evidence).flops == compute_of(made(SHAPE)).flops


def test_ranks_add_up() -> None:
    evidence = made(SHAPE, processes=("rank-0", "rank-1", "sampler"))
    evidence.request(0, 0.0, [1.0, 5.0, 10.0], rank=1, prompt_tokens=4)
    evidence.summaries["rank-1"]["model"] = SHAPE
    assert compute_of(evidence).flops.value == 2 * (compute_of(made(SHAPE)).flops.value or 0)
    del evidence.summaries["rank-1"]["model"]
    assert compute_of(evidence).flops.reason == "rank-1 did not tell the model's size"


def test_mfu_is_over_the_peak_of_all_leased_devices() -> None:
    other = A100.model_copy(update={"uuid": "GPU-B"})
    found = compute_of(made({**SHAPE, "matmul_parameters": 1e12}, devices=(A100, other, A100)))
    assert found.peak_flops_per_s.value == pytest.approx(2 * 312e12)
    assert found.mfu.value == pytest.approx(2 * 1e12 * 6 / (10 * 2 * 312e12))
    assert found.peak_source == "NVIDIA A100 data sheet, 2021 (PCIe and SXM)"


@pytest.mark.parametrize(
    ("device", "shape", "reason"),
    [
        (Device(uuid="GPU-0", kind=DeviceKind.GPU, name="Test GPU"), SHAPE, "the peak of Test GPU is not in the table"),
        (A100, {**SHAPE, "dtype": "int4"}, "states no peak of NVIDIA A100-SXM4-80GB for int4"),
        (A100, {**SHAPE, "dtype": None}, "the number format of the weights is not known"),
        (cpu(), SHAPE, "no GPU was leased"),
    ],
)
def test_without_a_peak_mfu_is_null_with_a_reason(device: Device, shape: dict[str, Any], reason: str) -> None:
    found = compute_of(made(shape, devices=(device,)))
    assert found.flops.value is not None
    assert found.mfu.value is None
    assert reason in str(found.mfu.reason)


@pytest.mark.parametrize("shape", [None, {}, {**SHAPE, "layers": None}, {**SHAPE, "layers": "many"}, [1]])
def test_a_model_of_unknown_size_has_no_flops(shape: Any) -> None:
    evidence = made()
    evidence.summaries["rank-0"]["model"] = shape
    assert compute_of(evidence).flops.reason == "rank-0 did not tell the model's size"
