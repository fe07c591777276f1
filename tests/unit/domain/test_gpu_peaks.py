"""Devices are found in the table of peaks by the names that NVML gives them, and no other device is."""

from __future__ import annotations

import pytest

from lem_domain.gpu_peaks import GPU_PEAKS, NumberFormat, peak_of


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
        "NVIDIA L40",
        "NVIDIA H100 NVL",
        "NVIDIA H200 NVL",
        "NVIDIA GeForce RTX 4090",
        "NVIDIA GB200",
        "Simulated device",
        "",
    ],
)
def test_an_unknown_device_has_none(name: str) -> None:
    assert peak_of(name) is None


def test_chips_before_ampere_have_no_bfloat16() -> None:
    for name in ("Tesla V100-SXM2-16GB", "Tesla T4"):
        found = peak_of(name)
        assert found is not None
        assert "bfloat16" not in found.flops_per_s


def test_every_entry_names_its_sheet() -> None:
    assert all("NVIDIA" in peak.sheet for peak in GPU_PEAKS)
