"""CodeCarbon's model of CPU and RAM power, read as back-to-back tasks of about a second.

What it takes (CodeCarbon 3.3.2, external/hardware.py and external/ram.py; its documentation, explanation/methodology):

- CPU: RAPL where the worker may read it, which the source rapl then does better; else P = TDP × (0.1 + 0.9 × load³),
  the rated power from a table of processors (85 W for one that is not in it) and the load of the whole machine, and
  without a meter of load half of the rated power.
- RAM: 5 W per module on x86 (1.5 W on ARM), less for each beyond the fourth, the number of modules guessed from the
  size of the memory. It does not depend on what the memory does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from codecarbon import OfflineEmissionsTracker
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.run import EnergyMethod
from lem_domain.wire.workers import Device
from lem_worker.sampler.sources import HostSample, SourceUnavailable

_UJ_PER_KWH = 3.6e12
_COUNTRY = "USA"
"""The offline tracker wants a country for its emissions, which it computes with every task. They are not used here:
energy doesn't depend on it, and carbon is computed from the user's own factors alone."""


class CodeCarbonSource:
    """Cumulative counters of the domains `package` (CPU) and `dram`, whatever CodeCarbon bases them on."""

    name = "codecarbon"
    method = EnergyMethod.MODELLED
    min_interval_s = 1.0
    """Its own load meter averages over a second."""

    def __init__(self, config: ExperimentConfig, clock: Callable[[], int]) -> None:  # noqa: ARG002 - has no settings
        self._clock = clock
        self._tracker: OfflineEmissionsTracker | None = None
        self._task_begin_ns = 0
        self._last_ns = 0
        self._energy_uj = {"package": 0.0, "dram": 0.0}
        self._power_mw: dict[str, int | None] = {"package": None, "dram": None}

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:  # noqa: ARG002 - it models the host
        """Start the first task. Raises SourceUnavailable when CodeCarbon finds nothing to model."""
        logging.getLogger("codecarbon").setLevel(logging.ERROR)  # before its own log_level applies
        self._tracker = OfflineEmissionsTracker(
            country_iso_code=_COUNTRY,
            output_methods=[],
            emissions_endpoint=None,
            log_level="error",
            allow_multiple_runs=True,
            tracking_mode="machine",
            measure_power_secs=1,
            gpu_ids=[],  # accelerators belong to the sources that measure them
            pue=1.0,  # a factor from a CodeCarbon settings file must not slip into the energy
        )
        # The first task detects the hardware, which takes more than a second; it is thrown away.
        self._start_task()
        self._stop_task()
        self._start_task()
        self._last_ns = self._task_begin_ns
        return tuple(self._energy_uj)

    def sample(self, now_ns: int) -> Sequence[HostSample]:
        """End the task, add its energy, start the next."""
        now_ns = self._clock()
        if now_ns == self._task_begin_ns:
            return self._samples(now_ns)
        cpu_kwh, ram_kwh = self._stop_task()
        # Between two tasks nothing is counted; that millisecond gets the mean power of the task after it.
        stretch = (now_ns - self._last_ns) / (now_ns - self._task_begin_ns)
        seconds = (now_ns - self._last_ns) / 1e9
        for domain, kwh in (("package", cpu_kwh), ("dram", ram_kwh)):
            energy_uj = kwh * _UJ_PER_KWH * stretch
            self._energy_uj[domain] += energy_uj
            self._power_mw[domain] = round(energy_uj / seconds / 1000)
        self._last_ns = now_ns
        self._start_task()
        return self._samples(now_ns)

    def facts(self) -> list[dict[str, JsonValue]]:
        """Nothing that the power stream lacks."""
        return []

    def close(self) -> None:
        """End the last task and the tracker's threads."""
        if self._tracker is not None:
            self._stop_task()
            self._tracker.stop()
            self._tracker = None

    def _samples(self, now_ns: int) -> Sequence[HostSample]:
        return [
            HostSample(domain, now_ns, round(self._energy_uj[domain]), self._power_mw[domain], self.method.value)
            for domain in self._energy_uj
        ]

    def _start_task(self) -> None:
        self._task_begin_ns = self._clock()
        self._open_tracker().start_task()

    def _stop_task(self) -> tuple[float, float]:
        data = self._open_tracker().stop_task()
        # The tracker logs most of its errors instead of raising them, and then has no task.
        if data is None:
            raise SourceUnavailable("codecarbon could not measure a task; its own message stands in the sampler's log.")
        return float(data.cpu_energy), float(data.ram_energy)

    def _open_tracker(self) -> OfflineEmissionsTracker:
        if self._tracker is None:
            raise SourceUnavailable("the codecarbon source is not open.")
        return self._tracker
