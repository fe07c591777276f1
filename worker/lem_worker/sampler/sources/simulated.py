"""Power of simulated devices, constant or in a shape, with an energy counter that is its exact integral."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lem_domain.backends.registry import backend_spec
from lem_domain.backends.simulated import SimulatedConfig, SimulatedPower
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.figures import EnergyMethod
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.process.evidence_rows import Clock
from lem_worker.sampler.energy_source import Coverage, DeviceSample, EnergySource, SourceSpec, SourceUnavailable


def power_w(base_w: float, power: SimulatedPower | None, seconds: float) -> float:
    """Power in W, `seconds` after the beginning."""
    if power is None:
        return base_w
    rise_w = power.peak_w - base_w
    periods = seconds / power.period_s
    match power.shape:
        case "ramp":
            return base_w + rise_w * min(1.0, periods)
        case "sawtooth":
            return base_w + rise_w * (periods % 1.0)
        case "burst":
            return power.peak_w if periods % 1.0 < power.duty else base_w


def energy_j(base_w: float, power: SimulatedPower | None, seconds: float) -> float:
    """The integral of `power_w` in J over the first `seconds`."""
    if power is None:
        return base_w * seconds
    whole, fraction = divmod(seconds / power.period_s, 1.0)
    match power.shape:
        case "ramp":
            # In periods of the full rise: half of the first period, all of the later ones.
            risen = fraction**2 / 2 if whole == 0 else whole + fraction - 0.5
        case "sawtooth":
            risen = whole / 2 + fraction**2 / 2
        case "burst":
            risen = whole * power.duty + min(fraction, power.duty)
    return base_w * seconds + (power.peak_w - base_w) * power.period_s * risen


class SimulatedSource(EnergySource):
    """Energy = integral of power since `open`, for each leased simulated device."""

    def __init__(self, config: ExperimentConfig, clock: Clock) -> None:
        self._is_simulated = backend_spec(config.backend).is_simulated
        simulated = config.section(SimulatedConfig)
        self._base_w, self._power = simulated.power_w, simulated.power
        self._clock = clock
        self._opened_ns = 0
        self._indices: tuple[int, ...] = ()

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:
        """Raises SourceUnavailable without the simulated backend and simulated devices."""
        self._indices = tuple(index for index, device in enumerate(devices) if device.kind is DeviceKind.SIMULATED)
        if not self._is_simulated or not self._indices:
            raise SourceUnavailable(
                "the simulated source needs the simulated backend on simulated devices; remove it from energy.sources."
            )
        self._opened_ns = self._clock()
        return tuple(devices[index].uuid for index in self._indices)

    def sample(self, now_ns: int) -> Sequence[DeviceSample]:
        """One sample of each device."""
        seconds = max(0, now_ns - self._opened_ns) / 1e9
        energy_mj = math.floor(energy_j(self._base_w, self._power, seconds) * 1000)
        power_mw = round(power_w(self._base_w, self._power, seconds) * 1000)
        return [DeviceSample(index, now_ns, power_mw=power_mw, energy_mj=energy_mj) for index in self._indices]


SPEC = SourceSpec("simulated", Coverage.SIMULATED_DEVICES, EnergyMethod.COUNTER, SimulatedSource)
