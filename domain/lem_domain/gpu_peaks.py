"""Peak arithmetic of GPU models: dense (without sparsity), per number format, from their data sheets.

`float32` is the rate of plain float32 arithmetic, `tensorfloat32` that of float32 numbers multiplied in TF32, which
engines use only when it is switched on. Where a data sheet gives a rate with sparsity only, the table has half of it,
as the sheet's footnote states. The sheets were read in copies and quotations. A format that a sheet does not state, or
whose sheet was not found, is left out; so is a GPU without a public sheet.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

NumberFormat = Literal["float32", "tensorfloat32", "float16", "bfloat16", "float8"]

_T = 1e12


class GpuPeak(NamedTuple):
    """Dense peaks of one model in FLOP/s; the pattern `name` matches the whole device name that NVML gives."""

    name: str
    sheet: str
    flops_per_s: dict[NumberFormat, float]


def _peak(name: str, sheet: str, **teraflops: float) -> GpuPeak:
    formats: tuple[NumberFormat, ...] = get_args(NumberFormat)
    return GpuPeak(name, sheet, {format_: teraflops[format_] * _T for format_ in formats if format_ in teraflops})


GPU_PEAKS: tuple[GpuPeak, ...] = (
    _peak(r"Tesla V100-SXM[23]-\d+GB", "NVIDIA V100 data sheet, January 2020 (V100 SXM2)", float32=15.7, float16=125),
    _peak(r"Tesla V100-PCIE-\d+GB", "NVIDIA V100 data sheet, January 2020 (V100 PCIe)", float32=14.0, float16=112),
    _peak(r"Tesla V100S-PCIE-\d+GB", "NVIDIA V100 data sheet, January 2020 (V100S PCIe)", float32=16.4, float16=130),
    _peak(r"Tesla T4", "NVIDIA T4 data sheet, 2019", float32=8.1, float16=65),
    _peak(r"(NVIDIA )?A10", "NVIDIA A10 data sheet, 2021", float32=31.2, tensorfloat32=62.5, float16=125, bfloat16=125),
    _peak(r"(NVIDIA )?A30", "NVIDIA A30 data sheet, 2022", float32=10.3, float16=165, bfloat16=165),
    _peak(
        r"(NVIDIA )?A40",
        "NVIDIA A40 data sheet, 2021",
        float32=37.4,
        tensorfloat32=74.8,
        float16=149.7,
        bfloat16=149.7,
    ),
    _peak(
        r"(NVIDIA )?A100(-SXM4-[48]0GB|-PCIE-40GB| 80GB PCIe)",
        "NVIDIA A100 data sheet, 2021 (PCIe and SXM)",
        float32=19.5,
        tensorfloat32=156,
        float16=312,
        bfloat16=312,
    ),
    _peak(
        r"NVIDIA L4",
        "NVIDIA L4 data sheet, 2023",
        float32=30.3,
        float16=121,
        bfloat16=121,
        float8=242.5,
    ),
    _peak(
        r"NVIDIA L40",
        "NVIDIA L40 data sheet, 2023",
        float32=90.5,
        tensorfloat32=90.5,
        float16=181.05,
        bfloat16=181.05,
        float8=362,
    ),
    _peak(
        r"NVIDIA L40S",
        "NVIDIA L40S data sheet, 2023",
        float32=91.6,
        tensorfloat32=183,
        float16=362.05,
        bfloat16=362.05,
        float8=733,
    ),
    # The sheet states one figure for the tensor cores: 1,457 TFLOPS of float8 with sparsity.
    _peak(r"NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX 6000 Ada data sheet, 2023", float32=91.1, float8=728.5),
    _peak(
        r"NVIDIA H100 PCIe",
        "NVIDIA H100 data sheet, 2022 (H100 PCIe)",
        float32=51,
        tensorfloat32=378,
        float16=756.5,
        bfloat16=756.5,
        float8=1513,
    ),
    _peak(
        r"NVIDIA H100 80GB HBM3",
        "NVIDIA H100 data sheet, 2023 (H100 SXM)",
        float32=67,
        tensorfloat32=494.5,
        float16=989.5,
        bfloat16=989.5,
        float8=1979,
    ),
    _peak(r"NVIDIA H100 NVL", "NVIDIA H100 data sheet, 2024 (H100 NVL)", bfloat16=835.5),
    _peak(
        r"NVIDIA H200",
        "NVIDIA H200 data sheet, 2023 (H200 SXM)",
        float32=67,
        tensorfloat32=494.5,
        float16=989.5,
        bfloat16=989.5,
        float8=1979,
    ),
    _peak(
        r"NVIDIA H200 NVL",
        "NVIDIA H200 data sheet, 2024 (H200 NVL)",
        float32=60,
        tensorfloat32=417.5,
        float16=835.5,
        bfloat16=835.5,
        float8=1670.5,
    ),
    _peak(
        r"NVIDIA GH200 (480GB|144G HBM3e)",
        "NVIDIA GH200 Grace Hopper Superchip data sheet, 2024 (GH200)",
        float32=67,
        tensorfloat32=494,
        float16=990,
        bfloat16=990,
        float8=1979,
    ),
    _peak(
        r"NVIDIA B200",
        "NVIDIA Blackwell data sheet, 2025 (HGX B200, one GPU)",
        float32=75,
        tensorfloat32=1100,
        float16=2250,
        bfloat16=2250,
        float8=4500,
    ),
    _peak(
        r"NVIDIA GB200",
        "NVIDIA Blackwell data sheet, 2025 (GB200 NVL72, one GPU)",
        float32=80,
        tensorfloat32=1250,
        float16=2500,
        bfloat16=2500,
        float8=5000,
    ),
)

_PART = re.compile(r".* MIG .*|GRID .*|.*-\d+[ABCQ](ME)?(-NC)?")
"""Names of MIG instances and of vGPU types. A vGPU type ends with its framebuffer and a series, for example
`NVIDIA A40-48Q` or `GRID A100D-1-10C` (NVIDIA vGPU software user guide)."""


def is_part(device_name: str) -> bool:
    """Return whether a device is a part of a GPU (a MIG instance or a vGPU); no sheet states the peak of one."""
    return _PART.fullmatch(device_name) is not None


def peak_of(device_name: str) -> GpuPeak | None:
    """Return the entry of a device by the name that NVML gives; None if it is not in the table."""
    return next((peak for peak in GPU_PEAKS if re.fullmatch(peak.name, device_name)), None)
