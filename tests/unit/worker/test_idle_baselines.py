"""Which idle baseline stands for another attempt, and for how long."""

from __future__ import annotations

import pytest

from lem_domain.config.measurement import EnergyConfig
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.daemon.idle_baselines import IdleBaselines
from lem_worker.process.protocol import ReuseBaseline

ONE = (Device(uuid="GPU-0", kind=DeviceKind.GPU, name="gpu"),)
OTHER = (Device(uuid="GPU-1", kind=DeviceKind.GPU, name="gpu"),)


@pytest.mark.proves("baseline.ttl_s", on="worker")
def test_one_is_found_for_the_same_devices_read_in_the_same_way_until_it_is_too_old() -> None:
    now = 100.0
    kept = IdleBaselines(lambda: now)
    assert kept.find(ONE, EnergyConfig(), ttl_s=60) is None
    kept.keep(ONE, EnergyConfig(), {"GPU-0": 55.0}, "att_1")
    now = 130.0
    assert kept.find(ONE, EnergyConfig(), ttl_s=60) == ReuseBaseline(
        parts_w={"GPU-0": 55.0}, age_s=30, taken_by="att_1"
    )
    assert kept.find(OTHER, EnergyConfig(), ttl_s=60) is None
    assert kept.find((*ONE, *OTHER), EnergyConfig(), ttl_s=60) is None
    assert kept.find(ONE, EnergyConfig(sources=("rapl",)), ttl_s=60) is None
    assert kept.find(ONE, EnergyConfig(), ttl_s=30) is None, "too old"
    assert kept.find(ONE, EnergyConfig(), ttl_s=0) is None, "never"
