"""How warm the devices are, as a claim tells it, so that the server knows when a gap by cooling is over."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices.gpu_memory import finishes_within
from lem_worker.devices.nvml_session import NvmlFailed, NvmlUnavailable, open_nvml

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0


async def temperatures_c(devices: Sequence[Device]) -> dict[str, float]:
    """Degrees Celsius by UUID, of those GPUs that say it; a driver that does not answer in time says nothing."""
    uuids = [device.uuid for device in devices if device.kind is DeviceKind.GPU]
    found: dict[str, float] = {}
    if uuids and not await finishes_within(TIMEOUT_S, lambda: _read(uuids, found)):
        logger.warning("NVML has not said for %g s how warm the devices are", TIMEOUT_S)
    return dict(found)


def _read(uuids: Sequence[str], found: dict[str, float]) -> None:
    try:
        with open_nvml() as nvml:
            for uuid in uuids:
                degrees = nvml.temperature_c(uuid)
                if degrees is not None:
                    found[uuid] = degrees
    except (NvmlUnavailable, NvmlFailed) as error:
        logger.warning("how warm the devices are is not known: %s", error)
