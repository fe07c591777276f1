"""RAPL: energy of the host's CPU packages, cores and memory, from the kernel's powercap files.

Each zone has a counter in µJ that the processor updates about every millisecond and that wraps at
`max_energy_range_uj` (Linux, Documentation/power/powercap/powercap.rst). Since the PLATYPUS attack (CVE-2020-8694) only
root may read it, unless the machine's owner allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.figures import EnergyMethod
from lem_domain.wire.workers import Device
from lem_worker.process.evidence_rows import Clock
from lem_worker.sampler.energy_source import Coverage, EnergySource, HostSample, SourceSpec, SourceUnavailable

POWERCAP = Path("/sys/class/powercap")

_PACKAGE = "package-"


class Zone:
    """One powercap counter, unwrapped.

    Only a single wrap between two readings can be detected; at 1 kW the usual range lasts more than four minutes.
    """

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


class RaplSource(EnergySource):
    """The counters of all powercap zones of the host."""

    def __init__(self, config: ExperimentConfig, clock: Clock) -> None:  # noqa: ARG002 - it has no settings
        self._clock = clock
        self._zones: list[Zone] = []
        self._last: dict[str, tuple[int, int]] = {}

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:  # noqa: ARG002 - it covers the host
        """Raises SourceUnavailable where there is no zone, or the zones can't be read."""
        folders = _zone_folders(POWERCAP)
        if not folders:
            raise SourceUnavailable(
                f"{POWERCAP} has no RAPL counters, as on virtual machines and most ARM hosts; "
                "choose another source in energy.sources."
            )
        try:
            self._zones = [Zone(domain, folder) for domain, folder in folders.items()]
        except PermissionError as error:
            raise SourceUnavailable(
                f"{error.filename} is readable by root only; let the worker's user read it "
                "(chmod a+r, or a udev rule for the subsystem powercap that survives a reboot)."
            ) from error
        except (OSError, ValueError) as error:
            raise SourceUnavailable(
                f"the RAPL counters in {POWERCAP} can't be read ({error}); choose others in energy.sources."
            ) from error
        return tuple(folders)

    def sample(self, now_ns: int) -> Sequence[HostSample]:  # noqa: ARG002 - each zone has the time of its reading
        """One sample of each zone, with its mean power since the previous one."""
        return [self._sample(zone) for zone in self._zones]

    def _sample(self, zone: Zone) -> HostSample:
        energy_uj = zone.read()
        time_ns = self._clock()
        before_ns, before_uj = self._last.get(zone.domain, (time_ns, energy_uj))
        self._last[zone.domain] = (time_ns, energy_uj)
        passed_s = (time_ns - before_ns) / 1e9
        power_mw = round((energy_uj - before_uj) / 1e3 / passed_s) if passed_s > 0 else None
        return HostSample(zone.domain, time_ns, energy_uj, power_mw)


SPEC = SourceSpec("rapl", Coverage.HOST, EnergyMethod.COUNTER, RaplSource)


def _zone_folders(root: Path) -> dict[str, Path]:
    """Folder by domain: `package-0`, and of its parts `core-0`, `uncore-0`, `dram-0`; `psys` for the platform.

    The `intel-rapl-mmio` zones are left out: they show the packages a second time, through memory-mapped registers.
    """
    found: dict[str, Path] = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
        except OSError:
            continue
        numbers = folder.name.removeprefix("intel-rapl:").split(":")
        if len(numbers) == 1:
            found[name] = folder
            continue
        parent = root / f"intel-rapl:{numbers[0]}" / "name"
        package = parent.read_text().strip().removeprefix(_PACKAGE) if parent.is_file() else numbers[0]
        found[f"{name}-{package}"] = folder
    return found
