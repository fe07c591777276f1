"""CodeCarbon's model of CPU and RAM power, read as back-to-back tasks of about a second.

CodeCarbon 3.3.2 (external/hardware.py and external/ram.py; its documentation, explanation/methodology) uses:

- CPU: RAPL where the worker may read it, in which case the source rapl is the better choice; else
  P = TDP × (0.1 + 0.9 × load³), with the rated power from a table of processors (85 W for one that is not in it) and
  the load of the whole machine; without a load meter, half of the rated power.
- RAM: 5 W per module on x86 (1.5 W on ARM), less for each beyond the fourth; the number of modules is guessed from the
  size of the memory. It does not depend on the memory's activity.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.figures import EnergyMethod
from lem_domain.wire.workers import Device
from lem_worker.process.evidence_rows import Clock
from lem_worker.sampler.energy_source import Coverage, EnergySource, HostSample, SourceSpec, SourceUnavailable

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker

_UJ_PER_KWH = 3.6e12
_COUNTRY = "USA"
"""The offline tracker requires a country, for the emissions that it computes with every task. They are not used here:
energy does not depend on it, and LEM computes carbon from the user's own factors."""


class CodeCarbonSource(EnergySource):
    """Cumulative energy of the domains `package` (CPU) and `dram`, as CodeCarbon models them."""

    def __init__(self, config: ExperimentConfig, clock: Clock) -> None:  # noqa: ARG002 - it has no settings
        self._clock = clock
        self._tracker: OfflineEmissionsTracker | None = None
        self._task_begin_ns = 0
        self._last_ns = 0
        self._energy_uj = {"package": 0.0, "dram": 0.0}
        self._power_mw: dict[str, int | None] = {"package": None, "dram": None}

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:  # noqa: ARG002 - it covers the host
        """Start the first task. Raises SourceUnavailable when CodeCarbon can't model this machine."""
        from codecarbon import OfflineEmissionsTracker  # noqa: PLC0415 - the import takes seconds

        # The tracker logs while it is constructed, before its own log_level applies.
        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        self._tracker = OfflineEmissionsTracker(
            country_iso_code=_COUNTRY,
            output_methods=[],
            emissions_endpoint=None,
            log_level="error",
            allow_multiple_runs=True,
            tracking_mode="machine",
            measure_power_secs=1,
            gpu_ids=[],  # the source nvml reads GPUs
            pue=1.0,  # overrides a factor from a CodeCarbon settings file, which would multiply the energy
        )
        # The first task detects the hardware, which takes more than a second of no measurement; discard it.
        self._start_task()
        self._stop_task()
        self._start_task()
        self._last_ns = self._task_begin_ns
        return tuple(self._energy_uj)

    def sample(self, now_ns: int) -> Sequence[HostSample]:
        """Stop the task, add its energy and start the next one."""
        now_ns = self._clock()
        if now_ns == self._task_begin_ns:
            return self._samples(now_ns)
        cpu_kwh, ram_kwh = self._stop_task()
        # CodeCarbon counts nothing between two tasks; that millisecond gets the mean power of the task after it.
        scale = (now_ns - self._last_ns) / (now_ns - self._task_begin_ns)
        seconds = (now_ns - self._last_ns) / 1e9
        for domain, kwh in (("package", cpu_kwh), ("dram", ram_kwh)):
            energy_uj = kwh * _UJ_PER_KWH * scale
            self._energy_uj[domain] += energy_uj
            self._power_mw[domain] = round(energy_uj / seconds / 1000)
        self._last_ns = now_ns
        self._start_task()
        return self._samples(now_ns)

    def close(self) -> None:
        """Stop the last task and the tracker's threads."""
        if self._tracker is not None:
            self._stop_task()
            self._tracker.stop()
            self._tracker = None

    def _samples(self, now_ns: int) -> Sequence[HostSample]:
        return [
            HostSample(domain, now_ns, round(energy_uj), self._power_mw[domain])
            for domain, energy_uj in self._energy_uj.items()
        ]

    def _start_task(self) -> None:
        self._task_begin_ns = self._clock()
        self._open_tracker().start_task()

    def _stop_task(self) -> tuple[float, float]:
        data = self._open_tracker().stop_task()
        # The tracker logs most of its errors instead of raising them, and then returns no task.
        if data is None:
            raise SourceUnavailable("codecarbon could not measure a task; see its message in the sampler's log.")
        return float(data.cpu_energy), float(data.ram_energy)

    def _open_tracker(self) -> OfflineEmissionsTracker:
        if self._tracker is None:
            raise SourceUnavailable("the codecarbon source is not open.")
        return self._tracker


SPEC = SourceSpec(
    "codecarbon",
    Coverage.HOST,
    EnergyMethod.MODELLED,
    CodeCarbonSource,
    min_interval_s=1.0,  # CodeCarbon's load meter averages over a second
    instead_of="rapl",
)
