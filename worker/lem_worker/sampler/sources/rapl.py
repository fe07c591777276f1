"""RAPL: energy of the host's CPU packages, cores and memory, from the kernel's powercap files.

Each zone has a counter in µJ that the processor updates about every millisecond and that wraps at
`max_energy_range_uj` (Linux, Documentation/power/powercap/powercap.rst). Since the PLATYPUS attack (CVE-2020-8694) only
root may read it, unless the machine's owner allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.run import EnergyMethod
from lem_domain.wire.workers import Device
from lem_worker.sampler.sources import HostSample, SourceUnavailable

POWERCAP = Path("/sys/class/powercap")

_SOCKET = "package-"


class Zone:
    """One counter, made to rise for ever. A wrap between two readings is seen as long as it is only one; at 1 kW the
    usual range lasts more than four minutes."""

    def __init__(self, domain: str, folder: Path) -> None:
        self.domain = domain
        self._file = folder / "energy_uj"
        self._range_uj = int((folder / "max_energy_range_uj").read_text())
        self._raw_uj = int(self._file.read_text())
        self.energy_uj = 0

    def read(self) -> int:
        """Energy in µJ since the zone was opened."""
        raw = int(self._file.read_text())
        passed = raw - self._raw_uj
        self.energy_uj += passed if passed >= 0 else passed + self._range_uj
        self._raw_uj = raw
        return self.energy_uj


class RaplSource:
    """Counters of every zone that the kernel shows."""

    name = "rapl"
    method = EnergyMethod.COUNTER
    min_interval_s = 0.0

    def __init__(
        self,
        config: ExperimentConfig,  # noqa: ARG002 - has no settings
        clock: Callable[[], int],
        root: Path = POWERCAP,
    ) -> None:
        self._clock = clock
        self._root = root
        self._zones: list[Zone] = []
        self._last: dict[str, tuple[int, int]] = {}

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:  # noqa: ARG002 - it measures the host
        """Raises SourceUnavailable where there is no zone, or it may not be read."""
        folders = zone_folders(self._root)
        if not folders:
            raise SourceUnavailable(
                f"there are no RAPL counters in {self._root}; virtual machines and most ARM hosts have none."
            )
        try:
            self._zones = [Zone(domain, folder) for domain, folder in folders.items()]
        except PermissionError as error:
            raise SourceUnavailable(
                f"{error.filename} is readable by root only; let the worker's user read it "
                "(chmod a+r, or a udev rule for the subsystem powercap that survives a reboot)."
            ) from error
        except (OSError, ValueError) as error:
            raise SourceUnavailable(f"the RAPL counters in {self._root} can't be read: {error}.") from error
        return tuple(folders)

    def sample(self, now_ns: int) -> Sequence[HostSample]:  # noqa: ARG002 - each zone is timed where it is read
        """One sample of each zone, with its mean power since the last one."""
        return [self._sample(zone) for zone in self._zones]

    def facts(self) -> list[dict[str, JsonValue]]:
        """Nothing that the power stream lacks."""
        return []

    def close(self) -> None:
        """Nothing is held."""
        self._zones = []

    def _sample(self, zone: Zone) -> HostSample:
        energy_uj = zone.read()
        time_ns = self._clock()
        before_ns, before_uj = self._last.get(zone.domain, (time_ns, energy_uj))
        self._last[zone.domain] = (time_ns, energy_uj)
        passed_s = (time_ns - before_ns) / 1e9
        power_mw = round((energy_uj - before_uj) / 1e3 / passed_s) if passed_s > 0 else None
        return HostSample(zone.domain, time_ns, energy_uj, power_mw, self.method.value)


def zone_folders(root: Path) -> dict[str, Path]:
    """Domain to folder: `package-0`, and of its parts `core-0`, `uncore-0`, `dram-0`; `psys` for the platform.

    Packages are also shown a second time, read through memory-mapped registers (`intel-rapl-mmio`); those are left out.
    """
    found: dict[str, Path] = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
        except OSError:
            continue
        place = folder.name.removeprefix("intel-rapl:").split(":")
        if len(place) == 1:
            found[name] = folder
            continue
        parent = root / f"intel-rapl:{place[0]}" / "name"
        socket = parent.read_text().strip().removeprefix(_SOCKET) if parent.is_file() else place[0]
        found[f"{name}-{socket}"] = folder
    return found
