"""Temperatures of the devices, sent with each claim so that the server can end a gap that waits for cooling."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices.gpu_memory import finishes_within
from lem_worker.devices.nvml_session import NvmlFailed, NvmlUnavailable, open_nvml

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
"""A driver call may hang; a claim without temperatures is better than none."""


async def read_temperatures(devices: Sequence[Device]) -> dict[str, float]:
    """Degrees Celsius by UUID, of the GPUs that report it within `TIMEOUT_S`."""
    uuids = [device.uuid for device in devices if device.kind is DeviceKind.GPU]
    found: dict[str, float] = {}
    if uuids and not await finishes_within(TIMEOUT_S, lambda: _read(uuids, found)):
        logger.warning("NVML did not report the temperatures of the devices within %g s", TIMEOUT_S)
    # A copy: a thread that hangs in NVML may add to `found` later.
    return dict(found)


def _read(uuids: Sequence[str], found: dict[str, float]) -> None:
    try:
        with open_nvml() as nvml:
            for uuid in uuids:
                try:
                    degrees = nvml.temperature_c(uuid)
                except NvmlFailed as error:  # a GPU that is lost does not hide the others
                    logger.warning("the temperature of a device is unknown: %s", error)
                    continue
                if degrees is not None:
                    found[uuid] = degrees
    except NvmlUnavailable as error:
        logger.warning("the temperatures of the devices are unknown: %s", error)
