"""The RAPL source over a folder like the kernel's."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from conformance.sources.suite import Rig, SourceConformance
from lem_worker.sampler.sources import rapl

RANGE_UJ = 262_143_328_850
WATTS = 20.0
WRAPS_AFTER_S = 0.1


class PowercapRig(Rig):
    """Two packages and a memory domain that each use 20 W; their counters wrap after a tenth of a second."""

    began_s = 0.0

    def write(self, root: Path) -> None:
        self.root = root
        for folder, name in (("0", "package-0"), ("0:0", "dram"), ("1", "package-1")):
            zone = root / f"intel-rapl:{folder}"
            zone.mkdir(parents=True, exist_ok=True)
            (zone / "name").write_text(f"{name}\n")
            (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
            seconds = time.monotonic() - self.began_s - WRAPS_AFTER_S
            (zone / "energy_uj").write_text(f"{round(seconds * WATTS * 1e6) % RANGE_UJ}\n")

    def work(self) -> None:
        super().work()
        self.write(self.root)

    def remove(self) -> None:
        shutil.rmtree(self.root)


class TestRapl(SourceConformance):
    name = "rapl"

    @pytest.fixture
    def rig(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
        rig = PowercapRig(watts=WATTS)
        rig.began_s = time.monotonic()
        rig.write(tmp_path / "powercap")
        monkeypatch.setenv(rapl.POWERCAP_VARIABLE, str(rig.root))
        return rig
