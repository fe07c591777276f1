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


def _peak(name: str, sheet: str, *teraflops: float | None) -> GpuPeak:
    formats: tuple[NumberFormat, ...] = get_args(NumberFormat)
    pairs = zip(formats, teraflops, strict=True)
    return GpuPeak(name, sheet, {format_: rate * _T for format_, rate in pairs if rate is not None})


GPU_PEAKS: tuple[GpuPeak, ...] = (
    # Name, data sheet, and TFLOP/s in float32, tensorfloat32, float16, bfloat16 and float8.
    _peak(r"Tesla V100-SXM[23]-\d+GB", "NVIDIA V100 data sheet, January 2020 (V100 SXM2)", 15.7, None, 125, None, None),
    _peak(r"Tesla V100-PCIE-\d+GB", "NVIDIA V100 data sheet, January 2020 (V100 PCIe)", 14.0, None, 112, None, None),
    _peak(r"Tesla V100S-PCIE-\d+GB", "NVIDIA V100 data sheet, January 2020 (V100S PCIe)", 16.4, None, 130, None, None),
    _peak(r"Tesla T4", "NVIDIA T4 data sheet, 2019", 8.1, None, 65, None, None),
    _peak(r"(NVIDIA )?A10", "NVIDIA A10 data sheet, 2021", 31.2, 62.5, 125, 125, None),
    _peak(r"(NVIDIA )?A30", "NVIDIA A30 data sheet, 2022", 10.3, None, 165, 165, None),
    _peak(r"(NVIDIA )?A40", "NVIDIA A40 data sheet, 2021", 37.4, 74.8, 149.7, 149.7, None),
    _peak(
        r"(NVIDIA )?A100(-SXM4-[48]0GB|-PCIE-40GB| 80GB PCIe)",
        "NVIDIA A100 data sheet, 2021 (PCIe and SXM)",
        19.5,
        156,
        312,
        312,
        None,
    ),
    _peak(r"NVIDIA L4", "NVIDIA L4 data sheet, 2023", 30.3, None, 121, 121, 242.5),
    _peak(r"NVIDIA L40", "NVIDIA L40 data sheet, 2023", 90.5, 90.5, 181.05, 181.05, 362),
    _peak(r"NVIDIA L40S", "NVIDIA L40S data sheet, 2023", 91.6, 183, 362.05, 362.05, 733),
    # The sheet states one figure for the tensor cores: 1,457 TFLOPS of float8 with sparsity.
    _peak(r"NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX 6000 Ada data sheet, 2023", 91.1, None, None, None, 728.5),
    _peak(r"NVIDIA H100 PCIe", "NVIDIA H100 data sheet, 2022 (H100 PCIe)", 51, 378, 756.5, 756.5, 1513),
    _peak(r"NVIDIA H100 80GB HBM3", "NVIDIA H100 data sheet, 2023 (H100 SXM)", 67, 494.5, 989.5, 989.5, 1979),
    _peak(r"NVIDIA H100 NVL", "NVIDIA H100 data sheet, 2024 (H100 NVL)", None, None, None, 835.5, None),
    _peak(r"NVIDIA H200", "NVIDIA H200 data sheet, 2023 (H200 SXM)", 67, 494.5, 989.5, 989.5, 1979),
    _peak(r"NVIDIA H200 NVL", "NVIDIA H200 data sheet, 2024 (H200 NVL)", 60, 417.5, 835.5, 835.5, 1670.5),
    _peak(
        r"NVIDIA GH200 (480GB|144G HBM3e)",
        "NVIDIA GH200 Grace Hopper Superchip data sheet, 2024 (GH200)",
        67,
        494,
        990,
        990,
        1979,
    ),
    _peak(r"NVIDIA B200", "NVIDIA Blackwell data sheet, 2025 (HGX B200, one GPU)", 75, 1100, 2250, 2250, 4500),
    _peak(r"NVIDIA GB200", "NVIDIA Blackwell data sheet, 2025 (GB200 NVL72, one GPU)", 80, 1250, 2500, 2500, 5000),
    # 72 GPUs of 360 PFLOP/s in FP8, 180 in FP16 and BF16, all dense (the sheet's 720 are with sparsity).
    _peak(r"NVIDIA GB300( NVL)?", "NVIDIA GB300 NVL72 data sheet, 2025 (one GPU)", 80, 1250, 2500, 2500, 5000),
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
