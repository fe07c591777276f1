"""Devices are found in the table of peaks by the names that NVML gives them, and no other device is."""

from __future__ import annotations

import re

import pytest

from lem_domain.gpu_peaks import GPU_PEAKS, NumberFormat, is_part, peak_of


@pytest.mark.parametrize(
    ("name", "number_format", "teraflops"),
    [
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla V100-PCIE-32GB", "float16", 112),
        ("Tesla V100S-PCIE-32GB", "float16", 130),
        ("Tesla T4", "float16", 65),
        ("NVIDIA A10", "bfloat16", 125),
        ("NVIDIA A30", "bfloat16", 165),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "float32", 19.5),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "float16", 362.05),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H200", "bfloat16", 989.5),
        ("NVIDIA B200", "bfloat16", 2250),
        ("A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA A100-PCIE-40GB", "tensorfloat32", 156),
        ("NVIDIA A10", "tensorfloat32", 62.5),
        ("NVIDIA A40", "tensorfloat32", 74.8),
        ("NVIDIA L40", "tensorfloat32", 90.5),
        ("NVIDIA L40", "bfloat16", 181.05),
        ("NVIDIA L40S", "tensorfloat32", 183),
        ("NVIDIA H100 PCIe", "tensorfloat32", 378),
        ("NVIDIA H100 80GB HBM3", "tensorfloat32", 494.5),
        ("NVIDIA H100 80GB HBM3", "float32", 67),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA H200", "tensorfloat32", 494.5),
        ("NVIDIA H200 NVL", "float32", 60),
        ("NVIDIA GH200 480GB", "bfloat16", 990),
        ("NVIDIA B200", "tensorfloat32", 1100),
        ("NVIDIA GB200", "bfloat16", 2500),
        ("NVIDIA RTX 6000 Ada Generation", "float32", 91.1),
    ],
)
def test_a_device_has_the_dense_peak_of_its_data_sheet(
    name: str, number_format: NumberFormat, teraflops: float
) -> None:
    found = peak_of(name)
    assert found is not None
    assert found.flops_per_s[number_format] == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA H20",
        "NVIDIA GeForce RTX 4090",
        "NVIDIA L40S-48Q",
        "Simulated device",
        "",
    ],
)
def test_an_unknown_device_has_none(name: str) -> None:
    assert peak_of(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb+me",
        "GRID A100-10C",
        "GRID A100D-1-10CME",
        "GRID T4-16Q",
        "NVIDIA A10-24Q",
        "NVIDIA A40-48Q",
        "NVIDIA L4-6Q",
        "NVIDIA H100L-94C",
        "NVIDIA H200X-141C",
    ],
)
def test_a_part_of_a_device_is_reported_and_has_no_peak(name: str) -> None:
    assert is_part(name)
    assert peak_of(name) is None


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA L4", "Tesla T4", ""])
def test_a_whole_device_is_no_part(name: str) -> None:
    assert not is_part(name)


def test_no_two_entries_match_one_name() -> None:
    for name in ("NVIDIA L4", "NVIDIA L40", "NVIDIA L40S", "NVIDIA H200", "NVIDIA H200 NVL", "NVIDIA A10"):
        assert sum(re.fullmatch(peak.name, name) is not None for peak in GPU_PEAKS) == 1


def test_the_gpus_of_a_grace_blackwell_module_are_known() -> None:
    for name, fp8 in (("NVIDIA GB200", 5000e12), ("NVIDIA GB300", 5000e12)):
        found = peak_of(name)
        assert found is not None and max(found.flops_per_s.values()) == fp8


def test_tensorfloat32_is_faster_than_plain_float32_and_no_faster_than_half() -> None:
    for peak in GPU_PEAKS:
        rates = peak.flops_per_s
        if "tensorfloat32" in rates:
            assert rates["float32"] <= rates["tensorfloat32"] <= 0.51 * rates["bfloat16"], peak.name


def test_chips_before_ampere_have_no_bfloat16() -> None:
    for name in ("Tesla V100-SXM2-16GB", "Tesla T4"):
        found = peak_of(name)
        assert found is not None
        assert not {"bfloat16", "tensorfloat32"} & set(found.flops_per_s)


def test_every_entry_names_its_sheet() -> None:
    assert all("NVIDIA" in peak.sheet for peak in GPU_PEAKS)
