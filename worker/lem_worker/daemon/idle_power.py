"""Measures at the start of a worker whether sampling changes the power of its GPUs at rest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.process.protocol import IdlePower

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""It takes about six seconds; a driver call may hang, and the worker must work without."""

_found = TypeAdapter(tuple[IdlePower, ...])


async def measure_idle_power(devices: Sequence[Device]) -> tuple[IdlePower, ...]:
    """Return the power at rest of each GPU, without and with sampling, or the reason why it is not known."""
    uuids = [device.uuid for device in devices if device.kind is DeviceKind.GPU]
    if not uuids:
        return ()
    # A subprocess: the program of the daemon contains no code of the sampler, and it can be killed if NVML hangs.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lem_worker.sampler.idle_power", *uuids, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            said, _ = await process.communicate()
        found = _found.validate_json(said)
    except TimeoutError:
        found = tuple(IdlePower(uuid=uuid, reason=f"NVML did not answer within {TIMEOUT_S:g} s") for uuid in uuids)
    except ValidationError:
        found = tuple(IdlePower(uuid=uuid, reason="its measurement failed, see the worker's log") for uuid in uuids)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    for one in found:
        if one.reason is None:
            logger.info("%s draws %.4g W at rest, and %.4g W sampled", one.uuid, one.unsampled_w, one.sampled_w)
        else:
            logger.info("whether sampling changes the power of %s at rest is not known: %s", one.uuid, one.reason)
    return found
