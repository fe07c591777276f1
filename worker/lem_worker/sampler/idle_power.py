"""Power of GPUs at rest without and with sampling (`python -m lem_worker.sampler.idle_power UUID…`), printed as JSON.

Polling may keep a GPU, or its driver, in a state of higher power. Without polling only the energy counter measures: it
is read at both ends of a span, each time at an update, so that its period is not in the difference. Around a span with
sampling are two without, whose difference shows a device that cools or warms up.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices.nvml_session import Nvml, NvmlFailed, NvmlUnavailable, open_nvml
from lem_worker.process.protocol import IdlePower
from lem_worker.sampler.energy_source import SourceUnavailable
from lem_worker.sampler.sources.nvml import NvmlSource

SPAN_S = 1.5
"""Of each of the two spans without sampling; that with sampling is twice as long. An update is seen to within the 2 ms
between two polls on an idle machine, 0.1 % of a span, and its polls take about 100 ms of it."""
_POLL_S = 0.002
_UPDATE_S = 0.5
"""Counters are updated about every 100 ms; with a slower one the ends of such short spans say too little."""
_BUSY_PERCENT = 5


class _Update(NamedTuple):
    """An update of a counter between two polls, and the value after it."""

    after_s: float
    seen_s: float
    energy_mj: int

    @property
    def time_s(self) -> float:
        """The middle between the polls."""
        return (self.after_s + self.seen_s) / 2


class _Span(NamedTuple):
    """The mean power between two updates, and what their times leave open."""

    power_w: float
    open_w: float

    @classmethod
    def between(cls, begin: _Update, end: _Update) -> _Span:
        """The span between two updates."""
        duration_s = end.time_s - begin.time_s
        power_w = (end.energy_mj - begin.energy_mj) / 1e3 / duration_s
        open_s = (begin.seen_s - begin.after_s + end.seen_s - end.after_s) / 2
        return cls(power_w, power_w * open_s / duration_s)


def measured(uuids: Sequence[str]) -> tuple[IdlePower, ...]:
    """Return the power at rest of each GPU, or the reason why it is not known."""
    try:
        with open_nvml() as nvml:
            return _measured(nvml, uuids)
    except (NvmlUnavailable, SourceUnavailable) as error:
        return tuple(IdlePower(uuid=uuid, reason=str(error)) for uuid in uuids)


def _measured(nvml: Nvml, uuids: Sequence[str]) -> tuple[IdlePower, ...]:
    import pynvml  # noqa: PLC0415 - open_nvml has found it

    reasons: dict[str, str] = {}
    handles: dict[str, Any] = {}
    for uuid in uuids:
        if (why := _why_not_at_rest(pynvml, nvml, uuid)) is not None:
            reasons[uuid] = why
            continue
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            handles[uuid] = handle
        except pynvml.NVMLError as error:
            reasons[uuid] = f"it has no energy counter ({error}), and nothing else measures without polling"
    if handles:
        edges = _edges(pynvml, handles)
        for uuid in handles:
            reasons |= {uuid: why} if (why := _why_not_at_rest(pynvml, nvml, uuid)) is not None else {}
    return tuple(
        IdlePower(uuid=uuid, reason=reasons[uuid]) if uuid in reasons else _compared(uuid, [one[uuid] for one in edges])
        for uuid in uuids
    )


def _why_not_at_rest(pynvml: Any, nvml: Nvml, uuid: str) -> str | None:
    try:
        if nvml.processes(uuid):
            return "a process is on it"
    except NvmlFailed as error:
        return str(error)
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        if uuid.startswith("MIG"):
            return "it is a part of a GPU, whose power is that of all its users"
        percent = int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except pynvml.NVMLError:  # some drivers do not offer it
        return None
    return f"it is used to {percent} %" if percent > _BUSY_PERCENT else None


def _edges(pynvml: Any, handles: Mapping[str, Any]) -> list[dict[str, _Update | None]]:
    """Return an update of each counter at both ends of three spans: without, with, and without sampling."""
    edges = [_next_updates(pynvml, handles)]
    time.sleep(SPAN_S)
    edges.append(_next_updates(pynvml, handles))
    _sample(tuple(handles), 2 * SPAN_S)
    edges.append(_next_updates(pynvml, handles))
    time.sleep(SPAN_S)
    edges.append(_next_updates(pynvml, handles))
    return edges


def _sample(uuids: Sequence[str], duration_s: float) -> None:
    """Read the GPUs as an attempt with the default interval does."""
    config = ExperimentConfig.model_validate({"backend": "pytorch", "model": "none"})
    source = NvmlSource(config, time.monotonic_ns)
    source.open([Device(uuid=uuid, kind=DeviceKind.GPU, name="GPU") for uuid in uuids])
    try:
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            source.sample(time.monotonic_ns())
            time.sleep(config.energy.interval_ms / 1e3)
    finally:
        source.close()


def _next_updates(pynvml: Any, handles: Mapping[str, Any]) -> dict[str, _Update | None]:
    """Poll until every counter has moved; None for one that did not, or could not be read."""
    last: dict[str, tuple[float, int]] = {}
    found: dict[str, _Update | None] = {}
    until_s = time.monotonic() + _UPDATE_S
    while len(found) < len(handles) and time.monotonic() < until_s:
        for uuid in handles.keys() - found.keys():
            asked_s = time.monotonic()
            try:
                energy_mj = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handles[uuid]))
            except pynvml.NVMLError:
                found[uuid] = None
                continue
            if last.setdefault(uuid, (asked_s, energy_mj))[1] != energy_mj:
                found[uuid] = _Update(last[uuid][0], time.monotonic(), energy_mj)
            last[uuid] = (asked_s, energy_mj)
        time.sleep(_POLL_S)
    return {uuid: found.get(uuid) for uuid in handles}


def _compared(uuid: str, edges: Sequence[_Update | None]) -> IdlePower:
    updates = [edge for edge in edges if edge is not None]
    if len(updates) < len(edges):
        return IdlePower(uuid=uuid, reason=f"its energy counter was not updated within {_UPDATE_S:g} s")
    before, sampled, after = (_Span.between(begin, end) for begin, end in pairwise(updates))
    if min(before.power_w, sampled.power_w, after.power_w) <= 0:
        return IdlePower(uuid=uuid, reason="its energy counter went back")
    return IdlePower(
        uuid=uuid,
        unsampled_w=(before.power_w + after.power_w) / 2,
        sampled_w=sampled.power_w,
        uncertainty_w=abs(after.power_w - before.power_w) + max(before.open_w, after.open_w) + sampled.open_w,
    )


if __name__ == "__main__":
    print(TypeAdapter(tuple[IdlePower, ...]).dump_json(measured(sys.argv[1:])).decode())  # noqa: T201 - the answer
