"""Power sensors of GPU models: how far they are off, and which part of the time they look.

A sensor's error is a factor and an offset: true power = reading × (1 ± gain) ± offset. `gain` is relative to the
reading, so that a sensor of slope 0.954 (reading / true power) is off by 1 / 0.954 - 1 = 4.8 % of what it shows. Each
row has the largest error that was metered for its model, rounded up, and at least 3 % where few cards were metered:
five cards of one model (RTX 3090) differed by 3.6 %. The offset is never below the ± 5 W of nvidia-smi's manual
(`power.draw`).

To add a model: one row in `SENSOR_ERRORS`, `SENSOR_TIMES` or both, with its source. The first row that matches counts.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

PowerReading = Literal["instant", "average"]
"""`instant`: the sensor's newest value; `average`: NVML's mean over one second."""

_SC24: Final = (
    "Yang, Adamek, Armour, arXiv:2312.02741 (SC24), external meter, in Overall_Results.xlsx of "
    "JimZeyuYang/GPU_Power_Benchmark"
)
_SMI: Final = "nvidia-smi manual, power.draw"

LEAST_OFFSET_W: Final = 5.0
"""nvidia-smi's manual states that `power.draw` is accurate within ± 5 W."""

HIGHEST_POWER_W: Final = 2900.0
"""The highest power limit that a device is known to report: the module of a GB300 (NVIDIA/k8s-test-infra#676). A GPU
without a known limit is taken to draw less."""


class SensorError(NamedTuple):
    """The error of a model's sensor: relative to the reading, and in W; the pattern matches the begin of its name."""

    name: str
    gain: float
    offset_w: float
    source: str


class SensorTimes(NamedTuple):
    """A model's reading: a new value every `period_s`, each the mean over the last `averaged_s` before it.

    `assumed` says that no measurement of this model is published.
    """

    name: str
    reading: PowerReading
    period_s: float
    averaged_s: float
    source: str
    assumed: bool = False

    @property
    def share(self) -> float:
        """The part of the time that the readings see."""
        return min(1.0, self.averaged_s / self.period_s)


_DATA_CENTRE: Final = (
    r"(NVIDIA )?(Tesla|GRID)\b|(NVIDIA )?(A(2|10|10G|16|30|40|100|800)|[HB]\d{2,3}|GH200|GB[23]00|L4|L40|L40S|L20|T4)\b"
)

SENSOR_ERRORS: tuple[SensorError, ...] = (
    SensorError(r"(NVIDIA )?A100-PCIE", 0.065, 5.0, f"{_SC24}: A100-PCIe, -5.6 to -5.8 %, slope 0.954"),
    SensorError(r"(Tesla )?P100", 0.03, 5.0, f"{_SC24}: P100, +0.7 %"),
    SensorError(r"(Tesla )?M40", 0.03, 5.0, f"{_SC24}: M40, -1.4 %"),
    SensorError(r"(Tesla )?K80", 0.10, 5.0, f"{_SC24}: K80, -8.9 % at steady power"),
    SensorError(r"(NVIDIA )?RTX A5000", 0.10, 5.0, f"{_SC24}: RTX A5000, -6.8 to -7.0 %, slope 0.91 to 0.93"),
    SensorError(r"(NVIDIA )?GeForce RTX 4090", 0.055, 22.0, f"{_SC24}: RTX 4090, -5.2 %, slope 1.045 and -22 W"),
    SensorError(r"(NVIDIA )?GeForce RTX 3090", 0.06, 5.0, f"{_SC24}: RTX 3090, five cards, -1.9 to -5.5 %"),
    SensorError(r"(NVIDIA )?GeForce RTX 3070 Ti", 0.045, 5.0, f"{_SC24}: RTX 3070 Ti, -3.6 to -4.0 %"),
    SensorError(r"(NVIDIA )?GeForce RTX 2080 Ti", 0.09, 5.0, f"{_SC24}: RTX 2080 Ti, -7.9 %"),
    SensorError(r"(NVIDIA )?GeForce RTX 2060", 0.12, 5.0, f"{_SC24}: RTX 2060, +12.8 %"),
    SensorError(r"(NVIDIA )?(GeForce GTX )?TITAN X", 0.03, 5.0, f"{_SC24}: Titan X, +1.0 %"),
    SensorError(r"(NVIDIA )?Quadro K620", 0.70, 5.0, f"{_SC24}: K620, -41 % at steady power"),
    SensorError(_DATA_CENTRE, 0.065, 5.0, f"not metered; the widest of its class, data centre ({_SC24}: A100-PCIe)"),
    SensorError(r"", 0.12, 5.0, f"not metered; the widest of its class, workstation and consumer ({_SC24}: RTX 2060)"),
)
"""The errors by model, the classes of other models last. K620 is left out of its class: it predates every
chip with an energy counter."""

_VOLTA: Final = r"(NVIDIA )?(Tesla V100|TITAN V)"
_GA100_HOPPER: Final = r"(NVIDIA )?(A100|A800|A30|H100|H200|H800|H20|GH200)\b"
_ADA_AMPERE: Final = (
    r"(NVIDIA )?(GeForce RTX [34]0\d\d|RTX A\d{4}|RTX \d{4} (SFF )?Ada|A2|A10|A10G|A16|A40|L4|L40|L40S|L20)\b"
)

SENSOR_TIMES: tuple[SensorTimes, ...] = (
    SensorTimes(_VOLTA, "instant", 0.020, 0.010, f"{_SC24}: V100, 10 of 20 ms"),
    SensorTimes(_VOLTA, "average", 0.020, 0.010, "NVML API reference: on Volta the same as the instant reading"),
    SensorTimes(_GA100_HOPPER, "instant", 0.100, 0.025, f"{_SC24}: A100 and H100, 25 of 100 ms"),
    SensorTimes(_ADA_AMPERE, "instant", 0.100, 0.100, f"{_SC24}: RTX 3090 and Ada, 100 of 100 ms"),
    SensorTimes(_ADA_AMPERE, "average", 0.100, 1.0, "NVML API reference: a mean over one second"),
    SensorTimes(
        r"", "instant", 0.100, 0.025, "no measurement is known; assumed as on A100 and H100, 25 of 100 ms", assumed=True
    ),
    SensorTimes(r"", "average", 0.100, 1.0, "NVML API reference: a mean over one second", assumed=True),
)
"""When readings are renewed and what they see, by model and reading."""


def sensor_error(device_name: str) -> SensorError:
    """Return the error of a device's sensor by the name that NVML gives."""
    return next(row for row in SENSOR_ERRORS if re.match(row.name, device_name))


def sensor_times(device_name: str, reading: PowerReading) -> SensorTimes:
    """Return when a device's readings are renewed and what they see, by the name that NVML gives."""
    return next(row for row in SENSOR_TIMES if row.reading == reading and re.match(row.name, device_name))
