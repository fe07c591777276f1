"""The CodeCarbon source, with CodeCarbon itself."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import pytest

from conformance.sources.suite import Rig, SourceConformance


@dataclass
class CodeCarbonRig(Rig):
    monkeypatch: pytest.MonkeyPatch = field(default_factory=pytest.MonkeyPatch)

    def work(self) -> None:
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            sum(range(1000))

    def remove(self) -> None:
        self.monkeypatch.setitem(sys.modules, "codecarbon", None)


class TestCodeCarbon(SourceConformance):
    name = "codecarbon"

    @pytest.fixture
    def rig(self, monkeypatch: pytest.MonkeyPatch) -> Rig:
        return CodeCarbonRig(monkeypatch=monkeypatch)
