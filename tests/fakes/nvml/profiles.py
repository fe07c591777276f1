"""Real chips as the simulated NVML shows them: facts, limits, units, scopes, sensors, and what each does not offer.

Only what public sources say is here, one source per group of facts; what they leave open is left out, which the
simulated NVML answers as not supported. Sources:

[mock]  NVIDIA/k8s-test-infra, deployments/nvml-mock/helm/nvml-mock/profiles at 3b2b865: NVIDIA's own simulated NVML.
[676]   https://github.com/NVIDIA/k8s-test-infra/issues/676: a GB300 tray, driver 580; module limits 2,900 and 500 W,
        GPU 1,400 W; memory power has an average and no instant reading.
[yang]  Yang, Adamek, Armour, arXiv:2312.02741: period and window of the power readings.
[api]   NVML API reference: nvmlDeviceGetPowerUsage is a mean over one second on Ampere (except GA100) and newer; the
        energy counter is offered from Volta on.
[zeus]  Zeus, skills/measuring-energy: the counter is updated roughly every 100 ms; PETSc's PetscLogGpuEnergyMeter: 20
        to 100 ms on newer chips.
[te]    TransformerEngine's support matrix: GB300 has compute capability 10.3, GB10 12.1.
[h200]  NVIDIA H200 data sheet: 141 GB, 700 W, 18 NVLinks of the fourth generation.
[4090]  NVIDIA's page of the GeForce RTX 4090: 24 GB, 450 W, 2,520 MHz boost; influxdata/telegraf#16569 and
        1Panel-dev/1Panel#11910 show its kind of XML: limits of 150 to 450 W, no module and no memory power.
[gb10]  XuehaiPan/nvitop#208 (driver 580.173.02): memory is not supported in both versions; ArcticTraining#345 (driver
        580.126.09): no power limit, no ECC, no MIG, 3 W at rest; Syllo/nvtop#426: PCIe generation 1, width 1;
        rwlove/home-ops#13238 (driver 580.142): power, SM clock, temperature, use and the energy counter work.
"""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Power limits in W."""

    enforced: float
    least: float
    most: float


class Profile(NamedTuple):
    """One chip; None is what it does not offer."""

    name: str
    compute: str
    memory_bytes: int | None
    limits: Limits | None
    sm_clock_max: int | None
    idle_w: float
    pcie: tuple[int, int]
    """Generation and width."""
    period_ms: float
    window_ms: float
    average_ms: float
    """What nvmlDeviceGetPowerUsage is a mean over."""
    counter_period_ms: float = 100
    nvlinks: int = 0
    has_mig: bool = False
    has_ecc: bool = True
    has_application_clock: bool = True
    has_violations: bool = True
    """nvmlDeviceGetViolationStatus is offered on devices that NVIDIA calls fully supported, which GeForce is not."""
    has_module: bool = False

    def lines(self, number: int, uuid: str, watts: str) -> list[str]:
        """The chip in the format of the state file; `watts` is the curve of its power."""
        memory = 0 if self.memory_bytes is None else self.memory_bytes
        generation, width = self.pcie
        facts = {
            "compute": self.compute,
            "ecc": "yes" if self.has_ecc else None,
            "persistence": "yes",
            "sm_clock_max": self.sm_clock_max,
            "sm_clock_application": self.sm_clock_max if self.has_application_clock else None,
            "pcie_generation": generation,
            "pcie_width": width,
            "nvlinks": self.nvlinks or None,
            "nvlinks_up": self.nvlinks or None,
        }
        known = " ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        lines = [
            f'device {number} uuid {uuid} name "{self.name}" pci 00000000:{0x10 + number:02X}:00.0 '
            f"memory_total {memory} memory_used {memory // 160}" + (" mig no" if self.has_mig else ""),
            f"power {number} {watts}",
            f"sensor {number} period_ms {self.period_ms} window_ms {self.window_ms} average_ms {self.average_ms}",
            f"counter {number} period_ms {self.counter_period_ms}",
            f"facts {number} {known}",
            f"temperature {number} constant 45",
            f"gpu_use {number} constant 90",
            f"memory_use {number} constant 30",
            f"sm_clock {number} constant {self.sm_clock_max or 1000}",
            f"throttle {number} constant 0",
        ]
        if self.limits is not None:
            enforced, least, most = self.limits
            lines.append(
                f"limits {number} enforced_w {enforced} current_w {enforced} default_w {enforced} min_w {least} "
                f"max_w {most}"
            )
        if self.has_violations:
            lines += [f"violation_{policy} {number} constant 0" for policy in POLICIES]
        if self.has_module:
            lines += [f"module_power {number} constant {2 * self.idle_w}", f"memory_power {number} constant 60"]
        if self.memory_bytes is None:
            lines.append(f"error nvmlDeviceGetMemoryInfo 3 {number}")
        return lines


POLICIES = ("power", "thermal", "board", "reliability")
GIB = 2**30

PROFILES: dict[str, Profile] = {
    # [mock]; 25 of every 100 ms [yang]; GA100's power usage is the newest reading [api].
    "A100": Profile(
        *("NVIDIA A100-SXM4-40GB", "8.0", 40 * GIB, Limits(400, 100, 400), 1410, 72, (4, 16), 100, 25, 25),
        nvlinks=12,
        has_mig=True,
    ),
    # [mock]; 25 of every 100 ms [yang]; a mean over one second [api].
    "H100": Profile(
        *("NVIDIA H100 80GB HBM3", "9.0", 80 * GIB, Limits(700, 200, 700), 1980, 95, (5, 16), 100, 25, 1000),
        nvlinks=18,
        has_mig=True,
    ),
    # [h200]; clocks and sensor as of the H100, whose chip it has.
    "H200": Profile(
        *("NVIDIA H200", "9.0", 141 * 10**9, Limits(700, 200, 700), 1980, 95, (5, 16), 100, 25, 1000),
        nvlinks=18,
        has_mig=True,
    ),
    # [mock]; no study of Blackwell's sensor is known, so it has Ada's; the mean over one second is stated [api].
    "B200": Profile(
        *("NVIDIA B200", "10.0", 192 * GIB, Limits(1000, 400, 1200), 2100, 130, (6, 16), 100, 100, 1000),
        nvlinks=18,
        has_mig=True,
    ),
    # [mock] with a module's scope [676].
    "GB200": Profile(
        *("NVIDIA GB200", "10.0", 192 * GIB, Limits(1000, 400, 1200), 2100, 145, (6, 16), 100, 100, 1000),
        nvlinks=18,
        has_mig=True,
        has_module=True,
    ),
    # [mock], limits and scopes [676], compute capability [te].
    "GB300": Profile(
        *("NVIDIA GB300", "10.3", 288 * GIB, Limits(1400, 500, 1400), 2200, 175, (6, 16), 100, 100, 1000),
        nvlinks=18,
        has_mig=True,
        has_module=True,
    ),
    # [mock]; 100 of every 100 ms on Ada [yang].
    "L40S": Profile(
        *("NVIDIA L40S", "8.9", 48 * GIB, Limits(350, 100, 350), 2520, 45, (4, 16), 100, 100, 1000),
    ),
    # [mock]; every 100 ms on Turing [yang], whose power usage is the newest reading [api].
    "T4": Profile(
        *("Tesla T4", "7.5", 16 * GIB, Limits(70, 60, 70), 1590, 12, (3, 16), 100, 100, 100),
    ),
    # [4090]; 100 of every 100 ms [yang].
    "RTX 4090": Profile(
        *("NVIDIA GeForce RTX 4090", "8.9", 24 * GIB, Limits(450, 150, 450), 2520, 20, (4, 16), 100, 100, 1000),
        has_ecc=False,
        has_application_clock=False,
        has_violations=False,
    ),
    # [gb10], [te]; no study of its sensor is known.
    "GB10": Profile(
        *("NVIDIA GB10", "12.1", None, None, None, 3, (1, 1), 100, 100, 1000),
        has_ecc=False,
        has_application_clock=False,
        has_violations=False,
    ),
}
