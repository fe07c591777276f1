"""Idle baselines that later attempts reuse until their time-to-live is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lem_domain.config.measurement import EnergyConfig
from lem_domain.wire.workers import Device
from lem_worker.process.protocol import ReuseBaseline


class _CachedBaseline(NamedTuple):
    parts_w: dict[str, float]
    taken_at: float
    taken_by: str


class IdleBaselines:
    """Power of this worker's devices without an engine, by devices and energy configuration.

    Kept in memory only: a restarted worker measures them again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cached: dict[tuple[tuple[str, ...], EnergyConfig], _CachedBaseline] = {}

    def keep(
        self, devices: Sequence[Device], energy: EnergyConfig, parts_w: Mapping[str, float], taken_by: str
    ) -> None:
        """Cache a baseline; `taken_by` is the attempt whose evidence holds it."""
        self._cached[_key(devices, energy)] = _CachedBaseline(dict(parts_w), self._clock(), taken_by)

    def find(self, devices: Sequence[Device], energy: EnergyConfig, *, ttl_s: float) -> ReuseBaseline | None:
        """Return the baseline of the same devices and configuration if it is younger than `ttl_s` seconds."""
        cached = self._cached.get(_key(devices, energy))
        if cached is None:
            return None
        age_s = self._clock() - cached.taken_at
        return ReuseBaseline(parts_w=cached.parts_w, age_s=age_s, taken_by=cached.taken_by) if age_s < ttl_s else None


def _key(devices: Sequence[Device], energy: EnergyConfig) -> tuple[tuple[str, ...], EnergyConfig]:
    return tuple(device.uuid for device in devices), energy
