"""FLOPs by the stated formula, and MFU against the table of peaks."""

from __future__ import annotations

from typing import Any

import pytest

from factories.evidence import Evidence, cpu
from lem_domain.results.run import ComputeResult
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.result import aggregate

SHAPE: dict[str, Any] = {"matmul_parameters": 1000, "layers": 3, "attention_width": 20, "dtype": "bfloat16"}
A100 = Device(uuid="GPU-A", kind=DeviceKind.GPU, name="NVIDIA A100-SXM4-80GB")


def gpu_named(name: str, uuid: str = "GPU-0") -> Device:
    return Device(uuid=uuid, kind=DeviceKind.GPU, name=name)


def compute_result(evidence: Evidence) -> ComputeResult:
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
    assert compute_result(made(SHAPE)).flops.value == 2 * 1000 * 6 + 4 * 3 * 20 * (1 + 2 + 3 + 4 + 5 + 6)


def test_cached_prompt_tokens_are_not_computed_but_looked_at() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0, 10.0], prompt_tokens=5, cached=3)
    evidence.summaries["rank-0"]["model"] = SHAPE
    assert compute_result(evidence).flops.value == 2 * 1000 * 3 + 4 * 3 * 20 * (4 + 5 + 6)


def test_failed_requests_and_those_without_tokens_do_not_count() -> None:
    evidence = made(SHAPE)
    evidence.request(1, 0.0, [2.0], error="broken")
    evidence.request(2, 0.0, [])
    assert compute_result(evidence).flops == compute_result(made(SHAPE)).flops


def test_ranks_add_up() -> None:
    evidence = made(SHAPE, processes=("rank-0", "rank-1", "sampler"))
    evidence.request(0, 0.0, [1.0, 5.0, 10.0], rank=1, prompt_tokens=4)
    evidence.summaries["rank-1"]["model"] = SHAPE
    assert compute_result(evidence).flops.value == 2 * (compute_result(made(SHAPE)).flops.value or 0)
    del evidence.summaries["rank-1"]["model"]
    assert compute_result(evidence).flops.reason == "rank-1 did not report the model's size"


def test_mfu_is_over_the_peak_of_all_leased_devices() -> None:
    other = A100.model_copy(update={"uuid": "GPU-B"})
    found = compute_result(made({**SHAPE, "matmul_parameters": 1e12}, devices=(A100, other, A100)))
    assert found.peak_flops_per_s.value == pytest.approx(2 * 312e12)
    assert found.mfu.value == pytest.approx(2 * 1e12 * 6 / (10 * 2 * 312e12))
    assert found.peak_source == "NVIDIA A100 data sheet, 2021 (PCIe and SXM)"


@pytest.mark.parametrize(
    ("device", "shape", "reason"),
    [
        (Device(uuid="GPU-0", kind=DeviceKind.GPU, name="Test GPU"), SHAPE, "the peak of Test GPU is not in the table"),
        (A100, {**SHAPE, "dtype": "int4"}, "states no peak of NVIDIA A100-SXM4-80GB for int4"),
        (A100, {**SHAPE, "dtype": None}, "the number format of the arithmetic is not known"),
        (gpu_named("GRID A100-10C"), SHAPE, "GRID A100-10C is a part of a GPU"),
        (gpu_named("NVIDIA A100-SXM4-40GB MIG 1g.5gb"), SHAPE, "MIG 1g.5gb is a part of a GPU"),
        (gpu_named("NVIDIA A100-SXM4-40GB", uuid="MIG-0"), SHAPE, "is a part of a GPU, of which no data sheet states"),
        (gpu_named("Tesla T4"), {**SHAPE, "dtype": "tensorfloat32"}, "states no peak of Tesla T4 for tensorfloat32"),
        (cpu(), SHAPE, "no GPU was leased"),
    ],
)
def test_without_a_peak_mfu_is_null_with_a_reason(device: Device, shape: dict[str, Any], reason: str) -> None:
    found = compute_result(made(shape, devices=(device,)))
    assert found.flops.value is not None
    assert found.mfu.value is None
    assert reason in str(found.mfu.reason)


def test_float32_that_is_multiplied_in_tensorfloat32_has_that_peak() -> None:
    plain, tensor = (
        compute_result(made({**SHAPE, "dtype": dtype}, devices=(A100,))) for dtype in ("float32", "tensorfloat32")
    )
    assert (plain.peak_flops_per_s.value, tensor.peak_flops_per_s.value) == (19.5e12, 156e12)


def test_more_than_the_peak_can_not_have_been_done() -> None:
    # 6 tokens × 2 × weights in 10 s: 31.2 TFLOP/s where plain float32 does 19.5.
    found = compute_result(made({**SHAPE, "matmul_parameters": 26e12, "dtype": "float32"}, devices=(A100,)))
    assert found.peak_flops_per_s.value == 19.5e12
    assert found.mfu.value is None
    assert str(found.mfu.reason).startswith(
        "the peak of 1.95e+13 FLOP/s is below the 3.12e+13 FLOP/s that the work needs: the arithmetic ran in another "
        "format than float32"
    )


@pytest.mark.parametrize(
    ("other", "reason"),
    [("float16", "the ranks differ in number format (bfloat16, float16)"), (None, "arithmetic is not known")],
)
def test_ranks_must_report_one_number_format(other: str | None, reason: str) -> None:
    evidence = made(SHAPE, processes=("rank-0", "rank-1", "sampler"), devices=(A100,))
    evidence.request(0, 0.0, [1.0, 5.0, 10.0], rank=1, prompt_tokens=4)
    evidence.summaries["rank-1"]["model"] = {**SHAPE, "dtype": other}
    assert reason in str(compute_result(evidence).mfu.reason)


@pytest.mark.parametrize("shape", [None, {}, {**SHAPE, "layers": None}, {**SHAPE, "layers": "many"}, [1]])
def test_a_model_of_unknown_size_has_no_flops(shape: Any) -> None:
    evidence = made()
    evidence.summaries["rank-0"]["model"] = shape
    assert compute_result(evidence).flops.reason == "rank-0 did not report the model's size"
