"""RAPL: energy of the host's CPU packages, cores and memory, from the kernel's powercap files.

Each zone has a counter in µJ that the processor updates about every millisecond and that wraps at
`max_energy_range_uj` (Linux, Documentation/power/powercap/powercap.rst). Since the PLATYPUS attack (CVE-2020-8694) only
root may read it, unless the machine's owner allows it.

A counter that falls has wrapped or was set to zero, which happens with some suspends, firmware and virtual machines. It
was a reset if a wrap would mean more power than the zone can draw; then nothing is known of the step, and the counter
here falls by 1 µJ, in a sample of that moment, so that no energy over it can be computed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.figures import EnergyMethod
from lem_domain.wire.workers import Device
from lem_worker.process.evidence_rows import Clock
from lem_worker.sampler.energy_source import (
    Coverage,
    DomainFailed,
    DomainSilent,
    EnergySource,
    HostSample,
    Sample,
    SourceEvent,
    SourceSpec,
    SourceUnavailable,
)

POWERCAP_VARIABLE = "LEM_WORKER_POWERCAP_DIR"
"""Names the folder of the zones where it is not the kernel's, as in a container that has it mounted elsewhere."""
_POWERCAP = Path("/sys/class/powercap")

_PACKAGE = "package-"
MOST_W = 2000.0
"""No package draws more; the largest of 2025 are rated at 500 W."""
_LIMIT_FACTOR = 4
"""A zone may exceed the higher of its power limits for a moment, but not by so much."""
_SLACK_UJ = 1_000_000
"""A counter updates about every millisecond and two readings may be closer."""
_REPEATED_UJ = 1_000_000
"""Two counters that run since the machine started differ by more, unless one repeats the other."""
GIVEN_UP_S = 5.0
_WAITED_SHARE = 4


class UncountedStep(Exception):
    """What a counter has counted since the previous reading is unknown; the message says why."""


class Zone:
    """One powercap counter, unwrapped. Raises OSError or ValueError where it can't be read."""

    def __init__(self, domain: str, folder: Path, time_ns: int) -> None:
        self.domain = domain
        self.file = folder / "energy_uj"
        self._range_uj = int((folder / "max_energy_range_uj").read_text())
        self._most_w = _most_w(folder)
        self.raw_uj = int(self.file.read_text())
        self._time_ns = time_ns
        self.energy_uj = 0
        self.silent_since_ns: int | None = None
        self.due_ns = 0
        self.has_failed = False

    def read(self, clock: Clock) -> tuple[int, float]:
        """Add the energy since the previous reading; return the time of this one and the seconds in between.

        Raises:
            UncountedStep: the step means more power than the zone can draw, or several wraps fit into the time.
        """
        raw = int(self.file.read_text())
        time_ns = clock()
        seconds = (time_ns - self._time_ns) / 1e9
        passed = raw - self.raw_uj
        before, self.raw_uj, self._time_ns = self.raw_uj, raw, time_ns
        most_uj = self._most_w * seconds * 1e6 + _SLACK_UJ
        step = passed if passed >= 0 else passed + self._range_uj
        why = None
        if most_uj > self._range_uj + _SLACK_UJ:
            why = f"it may have wrapped several times within {seconds:.3g} s"
        elif step > most_uj:
            what = "rose" if passed >= 0 else "fell"
            why = f"it {what} from {before} to {raw} µJ within {seconds:.3g} s, more than {self._most_w:.4g} W: a reset"
        if why is not None:
            self.energy_uj -= 1
            raise UncountedStep(f"the counter of {self.domain} has a gap: {why}.")
        self.energy_uj += step
        return time_ns, seconds


class RaplSource(EnergySource):
    """The counters of all powercap zones of the host. A zone that fails does not affect the others."""

    def __init__(self, config: ExperimentConfig, clock: Clock) -> None:  # noqa: ARG002 - it has no settings
        self._clock = clock
        self._zones: list[Zone] = []
        self._news: list[Sample] = []

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:  # noqa: ARG002 - it covers the host
        """Raises SourceUnavailable where there is no zone, or none can be read."""
        root = Path(os.environ.get(POWERCAP_VARIABLE) or _POWERCAP)
        folders = _zone_folders(root)
        if not folders:
            raise SourceUnavailable(_why_no_zone(root))
        unreadable: dict[str, str] = {}
        zones: list[Zone] = []
        for domain, folder in folders.items():
            try:
                zones.append(Zone(domain, folder, self._clock()))
            except (OSError, ValueError) as error:
                unreadable[domain] = _why_unreadable(domain, folder, error)
        if not zones:
            raise SourceUnavailable(next(iter(unreadable.values())))
        now_ns = self._clock()
        self._news = [DomainFailed(domain, now_ns, reason) for domain, reason in unreadable.items()]
        self._zones = zones
        self._mark_repeated(now_ns)
        return tuple(zone.domain for zone in zones)

    def sample(self, now_ns: int) -> Sequence[Sample]:
        """One sample of each zone, with its mean power since the previous one, which is null in a gap."""
        news, self._news = self._news, []
        return [*news, *(found for zone in self._zones if now_ns >= zone.due_ns for found in self._sample(zone))]

    def _sample(self, zone: Zone) -> Sequence[Sample]:
        before_uj = zone.energy_uj
        try:
            time_ns, passed_s = zone.read(self._clock)
        except UncountedStep as step:
            now_ns = self._clock()
            detail = {"domain": zone.domain, "reason": str(step)}
            return [
                SourceEvent(now_ns, "counter_gap", {**detail}),
                HostSample(zone.domain, now_ns, zone.energy_uj, None),
            ]
        except (OSError, ValueError) as error:
            return self._silent(zone, _why_unreadable(zone.domain, zone.file.parent, error))
        power_mw = round((zone.energy_uj - before_uj) / 1e3 / passed_s) if passed_s > 0 else None
        return [*self._returned(zone, time_ns), HostSample(zone.domain, time_ns, zone.energy_uj, power_mw)]

    def _silent(self, zone: Zone, reason: str) -> Sequence[Sample]:
        """Report the first failure of a zone, and that it has failed after `GIVEN_UP_S`; it is asked further."""
        now_ns = self._clock()
        is_new = zone.silent_since_ns is None
        since_ns = zone.silent_since_ns = now_ns if zone.silent_since_ns is None else zone.silent_since_ns
        zone.due_ns = now_ns + (now_ns - since_ns) // _WAITED_SHARE
        if is_new:
            return [DomainSilent(zone.domain, now_ns, reason)]
        if not zone.has_failed and now_ns - since_ns >= GIVEN_UP_S * 1e9:
            zone.has_failed = True
            return [DomainFailed(zone.domain, now_ns, reason)]
        return []

    @staticmethod
    def _returned(zone: Zone, time_ns: int) -> Sequence[Sample]:
        if zone.silent_since_ns is None:
            return []
        kind = "source_returned" if zone.has_failed else "reading_returned"
        away_s = (time_ns - zone.silent_since_ns) / 1e9
        zone.silent_since_ns, zone.has_failed = None, False
        return [SourceEvent(time_ns, kind, {"domain": zone.domain, "away_s": away_s})]

    def _mark_repeated(self, now_ns: int) -> None:
        """Rename a zone that shows the counter of an earlier one of its name, as dies of AMD's packages do."""
        seen: dict[str, list[Zone]] = {}
        for zone in self._zones:
            name = zone.domain.partition("@")[0]
            first = next((one for one in seen.get(name, ()) if abs(one.raw_uj - zone.raw_uj) <= _REPEATED_UJ), None)
            seen.setdefault(name, []).append(zone)
            if first is not None and zone.raw_uj > _REPEATED_UJ:
                zone.domain = f"{REPEATED}-{zone.domain}"
                self._news.append(
                    SourceEvent(now_ns, "repeated_counter", {"domain": zone.domain, "repeats": first.domain})
                )


REPEATED = "repeated"
"""Begin of the name of a domain whose counter is another one's; it is in the evidence and in no sum."""

SPEC = SourceSpec("rapl", Coverage.HOST, EnergyMethod.COUNTER, RaplSource)


def _most_w(folder: Path) -> float:
    """The power above which a step of the counter is a reset."""
    limits_uw = []
    for file in folder.glob("constraint_*_power_limit_uw"):
        try:
            limits_uw.append(int(file.read_text()))
        except (OSError, ValueError):
            continue
    highest_w = max(limits_uw, default=0) / 1e6
    return min(MOST_W, _LIMIT_FACTOR * highest_w) if highest_w > 0 else MOST_W


def _why_no_zone(root: Path) -> str:
    if root.is_dir() and any(root.glob("**/intel-rapl:*")):
        return (
            f"the zones in {root} are empty, because container runtimes hide them; give the container the mount "
            "/sys/devices/virtual/powercap (docker run -v /sys/devices/virtual/powercap:<the same>:ro), or mount it "
            f"elsewhere and name that folder in {POWERCAP_VARIABLE}."
        )
    return f"{root} has no RAPL counters, as on virtual machines and most ARM hosts; choose another energy source."


def _why_unreadable(domain: str, folder: Path, error: OSError | ValueError) -> str:
    if isinstance(error, PermissionError):
        return (
            f"{error.filename} ({domain}) is readable by root only; let the worker's user read it "
            "(chmod a+r, or a udev rule for the subsystem powercap that survives a reboot)."
        )
    if isinstance(error, FileNotFoundError):
        return (
            f"{error.filename} ({domain}) does not exist; load the kernel module intel_rapl_msr, and give a container "
            "the mount /sys/devices/virtual/powercap."
        )
    return f"the counter of {domain} in {folder} can't be read ({error}); choose others in energy.sources."


def _zone_folders(root: Path) -> dict[str, Path]:
    """Folder by domain: `package-0`, and of its parts `core-0`, `uncore-0`, `dram-0`; `psys` for the platform.

    Zones of one name are kept apart by their path: `package-0@intel-rapl:1` is the second `package-0`. The
    `intel-rapl-mmio` zones are left out: they show the packages a second time, through memory-mapped registers.
    /sys/class/powercap lists all zones, as links, which are not followed; in /sys/devices/virtual/powercap the parts of
    a package are in its folder.
    """
    found: dict[str, Path] = {}
    folders = {folder.name: folder for folder in root.glob("**/intel-rapl:*")}
    names = {number: name for number, folder in folders.items() if (name := _name_of(folder)) is not None}
    for number in sorted(names):
        top, _, part = number.removeprefix("intel-rapl:").partition(":")
        domain = names[number]
        if part:
            domain = f"{domain}-{names.get(f'intel-rapl:{top}', top).removeprefix(_PACKAGE)}"
        found[f"{domain}@{number}" if domain in found else domain] = folders[number]
    return found


def _name_of(folder: Path) -> str | None:
    try:
        return (folder / "name").read_text().strip()
    except OSError:
        return None
