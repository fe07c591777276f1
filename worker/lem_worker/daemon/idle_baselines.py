"""Idle baselines that stand for more than one attempt, as long as their time-to-live says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lem_domain.config.measurement import EnergyConfig
from lem_domain.wire.workers import Device
from lem_worker.process.protocol import ReuseBaseline


class _Kept(NamedTuple):
    parts_w: dict[str, float]
    taken_at: float
    taken_by: str


class IdleBaselines:
    """What the devices of this worker drew without an engine, by devices and way of reading them.

    Kept in memory: a worker that is started anew measures anew.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[tuple[tuple[str, ...], EnergyConfig], _Kept] = {}

    def keep(
        self, devices: Sequence[Device], energy: EnergyConfig, parts_w: Mapping[str, float], taken_by: str
    ) -> None:
        """Remember one; `taken_by` is the attempt whose evidence holds it."""
        self._kept[_key(devices, energy)] = _Kept(dict(parts_w), self._clock(), taken_by)

    def find(self, devices: Sequence[Device], energy: EnergyConfig, *, ttl_s: float) -> ReuseBaseline | None:
        """One of the same devices, read the same way, that is not older than `ttl_s`."""
        kept = self._kept.get(_key(devices, energy))
        if kept is None:
            return None
        age_s = self._clock() - kept.taken_at
        return ReuseBaseline(parts_w=kept.parts_w, age_s=age_s, taken_by=kept.taken_by) if age_s < ttl_s else None


def _key(devices: Sequence[Device], energy: EnergyConfig) -> tuple[tuple[str, ...], EnergyConfig]:
    return tuple(device.uuid for device in devices), energy
