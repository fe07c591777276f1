"""Peak arithmetic of GPU models: dense (no sparsity), per number format, as their maker's data sheets state it.

`float32` is the rate of plain float32 arithmetic: engines use TF32 only where they are told to. Where a data sheet
gives a rate with sparsity alone, half of it stands here, as the sheet's own footnote says.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

NumberFormat = Literal["float32", "float16", "bfloat16", "float8"]

_T = 1e12


class GpuPeak(NamedTuple):
    """Dense peaks of one model in FLOP/s; `name` matches what NVML calls the device."""

    name: str
    sheet: str
    flops_per_s: dict[NumberFormat, float]


def _peak(name: str, sheet: str, **teraflops: float) -> GpuPeak:
    formats: tuple[NumberFormat, ...] = ("float32", "float16", "bfloat16", "float8")
    return GpuPeak(name, sheet, {format_: teraflops[format_] * _T for format_ in formats if format_ in teraflops})


GPU_PEAKS: tuple[GpuPeak, ...] = (
    _peak(r"V100-SXM[23]\b", "NVIDIA V100 data sheet, January 2020 (V100 SXM2)", float32=15.7, float16=125),
    _peak(r"V100-PCIE\b", "NVIDIA V100 data sheet, January 2020 (V100 PCIe)", float32=14.0, float16=112),
    _peak(r"V100S-PCIE\b", "NVIDIA V100 data sheet, January 2020 (V100S PCIe)", float32=16.4, float16=130),
    _peak(r"Tesla T4\b", "NVIDIA T4 data sheet, 2019", float32=8.1, float16=65),
    _peak(r"NVIDIA A10\b", "NVIDIA A10 data sheet, 2021", float32=31.2, float16=125, bfloat16=125),
    _peak(r"NVIDIA A30\b", "NVIDIA A30 data sheet, 2022", float32=10.3, float16=165, bfloat16=165),
    _peak(r"A100\b", "NVIDIA A100 data sheet, 2021 (PCIe and SXM)", float32=19.5, float16=312, bfloat16=312),
    _peak(r"NVIDIA L4\b", "NVIDIA L4 data sheet, 2023", float32=30.3, float16=121, bfloat16=121, float8=242.5),
    _peak(r"NVIDIA L40S\b", "NVIDIA L40S data sheet, 2023", float32=91.6, float16=362.05, bfloat16=362.05, float8=733),
    _peak(
        r"NVIDIA H100 PCIe\b",
        "NVIDIA H100 data sheet, 2022 (H100 PCIe)",
        float32=51,
        float16=756.5,
        bfloat16=756.5,
        float8=1513,
    ),
    _peak(
        r"NVIDIA H100 80GB HBM3\b",
        "NVIDIA H100 data sheet, 2023 (H100 SXM)",
        float32=67,
        float16=989.5,
        bfloat16=989.5,
        float8=1979,
    ),
    _peak(
        r"NVIDIA H200(?! NVL)\b",
        "NVIDIA H200 data sheet, 2023 (H200 SXM)",
        float32=67,
        float16=989.5,
        bfloat16=989.5,
        float8=1979,
    ),
    _peak(
        r"NVIDIA B200\b",
        "NVIDIA HGX B200 specification, 2024 (an eighth of it)",
        float32=75,
        float16=2250,
        bfloat16=2250,
        float8=4500,
    ),
)


def peak_of(device_name: str) -> GpuPeak | None:
    """The entry of a device by the name that NVML gives it; None for one that isn't in the table.

    A MIG instance, which is a part of a GPU, has none.
    """
    if " MIG " in f" {device_name} ":
        return None
    return next((peak for peak in GPU_PEAKS if re.search(peak.name, device_name)), None)
