"""Why an active campaign has no live run: the rules of claims, applied to all workers for the campaign's users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.ids import IdKind, format_id
from lem_domain.wire.campaigns import WaitReason, WaitView
from lem_server.leases import queue_queries as queries
from lem_server.leases.queue_queries import FirstRun, KnownDevice, KnownWorker
from lem_server.leases.scheduling import DeferReason, Deferred, FreeDevice, SchedulingPass

MOVE_HINT = "`lemctl place` lets the campaign run on other devices"
MAX_WORKERS_EXAMINED = 8
"""Each costs one query of the queue; further workers wait for the same reason."""


async def why_nothing_runs(connection: AsyncConnection, campaign_id: UUID, *, ttl: timedelta) -> WaitView | None:
    """Return what the first queued run of an active campaign without live runs waits for; None without such a run."""
    first = await queries.first_run(connection, campaign_id)
    if first is None:
        return None
    if first.failed_fast:
        return WaitView(reason=WaitReason.FAIL_FAST, message="a run failed, which ends the campaign (fail_fast)")
    workers = await queries.workers(connection, ttl=ttl)
    serving = [worker for worker in workers if worker.backend == first.backend]
    missing = _no_worker(first, serving)
    if missing is not None:
        return missing
    able = [worker for worker in serving if worker.online and _can_run(worker, first)]
    known = await queries.devices(connection, {device for worker in able for device in worker.devices})
    busy = _busy(first, able, known)
    if busy is not None:
        return busy
    asking = [worker for worker in able if worker.asking]
    if not asking:
        return _silent(able, known)
    online = [worker for worker in workers if worker.online]
    waits = [await _wait_at(connection, campaign_id, worker, online, known) for worker in asking[:MAX_WORKERS_EXAMINED]]
    return min((wait for wait in waits if wait is not None), key=_until, default=None)


async def _wait_at(
    connection: AsyncConnection,
    campaign_id: UUID,
    worker: KnownWorker,
    online: Sequence[KnownWorker],
    known: Mapping[str, KnownDevice],
) -> WaitView | None:
    free = [
        FreeDevice(uuid, kind, name, known[uuid].idle_s, worker.temperatures_c.get(uuid))
        for uuid, (kind, name) in worker.devices.items()
        if known[uuid].leased_by is None
    ]
    queue = await queries.queue(connection, free)
    scheduling = SchedulingPass(worker.backend, free, [other.for_scheduling for other in online])
    for campaign, decision in scheduling.decisions(queue):
        if campaign.campaign_id == campaign_id and isinstance(decision, Deferred):
            return _deferred(decision, {device.uuid: device for device in free}, _gap_end(decision, known))
    return None


def _gap_end(deferred: Deferred, known: Mapping[str, KnownDevice]) -> datetime | None:
    """Return when a gap ends, counted from the end of the last run, so that repeated queries return the same time."""
    last = known[deferred.devices[-1]] if deferred.devices else None
    if last is None or last.ended_at is None or last.idle_s is None or deferred.remaining_s is None:
        return None
    return last.ended_at + timedelta(seconds=round(last.idle_s + deferred.remaining_s, 3))


def _deferred(deferred: Deferred, free: Mapping[str, FreeDevice], until: datetime | None) -> WaitView:
    at = "" if until is None else f"{until:%H:%M:%S} UTC"
    devices = [free[uuid] for uuid in deferred.devices]
    names = ", ".join(f"{device.name} ({device.uuid})" for device in devices)
    if deferred.reason is DeferReason.COOLING:
        degrees = [device.temperature_c for device in devices if device.temperature_c is not None]
        temperature = f"is at {max(degrees):g} °C" if degrees else "reports no temperature"
        return WaitView(
            reason=WaitReason.COOLING,
            message=f"gap: {names} {temperature}; the run starts when it has cooled, at the latest at {at}",
            until=until,
        )
    if deferred.reason is DeferReason.GAP:
        return WaitView(
            reason=WaitReason.GAP, message=f"the gap before the next run on {names} ends at {at}", until=until
        )
    if deferred.reason is DeferReason.TURN:
        return WaitView(reason=WaitReason.TURN, message="its devices are reserved for another campaign")
    if deferred.reason is DeferReason.ORDER:
        return WaitView(reason=WaitReason.ORDER, message="an earlier run of the campaign waits for another worker")
    return WaitView(reason=WaitReason.BUSY, message="no single worker has enough free devices for the run")


def _no_worker(first: FirstRun, serving: Sequence[KnownWorker]) -> WaitView | None:
    if not any(worker.online for worker in serving):
        last = f"; last contact with {serving[0].name}: {_moment(serving[0].last_seen_at)}" if serving else ""
        start = f"; start one with `lemctl up --backend {first.backend}`"
        return WaitView(
            reason=WaitReason.NO_WORKER, message=f"no worker for backend {first.backend} is online{last}{start}"
        )
    if any(worker.online and _can_run(worker, first) for worker in serving):
        return None
    required = _required_devices(first)
    if not required:
        model = f" of the model {first.place.name}" if first.place and first.placement == "same_model" else ""
        return WaitView(
            reason=WaitReason.DEVICE_GONE,
            message=f"no online worker for backend {first.backend} has {first.devices.describe()}{model}"
            + (f"; {MOVE_HINT}" if model else ""),
        )
    names = ", ".join(required)
    owner = next((worker for worker in serving if set(required) <= set(worker.devices)), None)
    where = (
        f"no worker for backend {first.backend} ever registered it"
        if owner is None
        else f"it belongs to worker {owner.name}; last contact: {_moment(owner.last_seen_at)}"
    )
    return WaitView(
        reason=WaitReason.DEVICE_GONE,
        message=f"waiting for device {names}: {where}" + ("" if first.devices.uuids else f"; {MOVE_HINT}"),
    )


def _busy(first: FirstRun, able: Sequence[KnownWorker], known: Mapping[str, KnownDevice]) -> WaitView | None:
    required = _required_devices(first)
    busy = []
    for worker in able:
        leased = [uuid for uuid in required or worker.devices if known[uuid].leased_by is not None]
        too_few = len(worker.devices) - len(leased) < first.devices.count
        if not leased or not (required or too_few):
            return None
        busy.append(leased[0])
    run = known[busy[0]].leased_by if busy else None
    if run is None:
        return None
    return WaitView(
        reason=WaitReason.BUSY,
        message=f"device {busy[0]} is leased by {format_id(IdKind.RUN, run.run_id)} of campaign {run.campaign_name!r}",
    )


def _required_devices(first: FirstRun) -> tuple[str, ...]:
    """Return the devices without which the run cannot start; empty if the run can choose."""
    if first.devices.uuids or first.place is None or first.placement != "same_device":
        return first.devices.uuids
    return first.place.devices[: first.devices.count]


def _can_run(worker: KnownWorker, first: FirstRun) -> bool:
    required = _required_devices(first)
    model = (
        (first.place.kind, first.place.name)
        if first.place is not None and first.placement == "same_model" and not first.devices.uuids
        else None
    )
    usable = [
        {"uuid": uuid, "kind": kind, "name": name}
        for uuid, (kind, name) in worker.devices.items()
        if model is None or (kind, name) == model
    ]
    return first.devices.fit(usable) and set(required) <= {device["uuid"] for device in usable}


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _until(wait: WaitView) -> datetime:
    return wait.until or datetime.max.replace(tzinfo=UTC)


def _silent(able: Sequence[KnownWorker], known: Mapping[str, KnownDevice]) -> WaitView | None:
    """Report workers that are online but do not claim; None if one has just ended a run and will claim soon."""
    idle_s = [known[device].idle_s for worker in able for device in worker.devices]
    if any(seconds is not None and seconds < queries.ASKING_S for seconds in idle_s):
        return None
    names = ", ".join(worker.name for worker in able)
    return WaitView(
        reason=WaitReason.WORKER_SILENT, message=f"worker {names} is online but does not claim runs; see its log"
    )
