"""Why nothing of a campaign runs though it is active: the same rules that claims follow, asked in its users' name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.ids import IdKind, format_id
from lem_domain.wire.campaigns import WaitReason, WaitView
from lem_server.leases import queue_queries as queries
from lem_server.leases.queue_queries import FirstRun, KnownDevice, KnownWorker
from lem_server.leases.scheduling import FreeDevice, Held, Hold, Round

ELSEWHERE = "`lemctl place` lets the campaign go on elsewhere"
WORKERS_ASKED = 8
"""So many workers are looked at; the others wait for the same."""


async def why_nothing_runs(connection: AsyncConnection, campaign_id: UUID, *, ttl: timedelta) -> WaitView | None:
    """What the first queued run of an active campaign without live runs waits for; None when nothing is queued."""
    first = await queries.first_of(connection, campaign_id)
    if first is None:
        return None
    if first.failed_fast:
        return WaitView(reason=WaitReason.FAIL_FAST, message="a run failed, and the campaign ends with it (fail_fast)")
    workers = await queries.workers(connection, ttl=ttl)
    serving = [one for one in workers if one.backend == first.backend]
    missing = _no_worker(first, serving)
    if missing is not None:
        return missing
    able = [one for one in serving if one.online and _has_place(one, first)]
    known = await queries.devices(connection, {device for one in able for device in one.devices})
    busy = _busy(first, able, known)
    if busy is not None:
        return busy
    asking = [one for one in able if one.asking]
    if not asking:
        return _silent(able, known)
    found = [
        await _look(connection, campaign_id, worker, [one for one in workers if one.online], known)
        for worker in asking[:WORKERS_ASKED]
    ]
    return min((one for one in found if one is not None), key=_until, default=None)


async def _look(
    connection: AsyncConnection,
    campaign_id: UUID,
    worker: KnownWorker,
    online: Sequence[KnownWorker],
    known: Mapping[str, KnownDevice],
) -> WaitView | None:
    free = [
        FreeDevice(uuid, kind, name, known[uuid].idle_s, worker.temperatures_c.get(uuid))
        for uuid, (kind, name) in worker.devices.items()
        if known[uuid].busy is None
    ]
    queue = await queries.queue(connection, free)
    look = Round(worker.backend, free, [one.as_neighbour for one in online])
    for waiting, found in look.looks(queue):
        if waiting.campaign_id == campaign_id and isinstance(found, Held):
            return _held(found, {device.uuid: device for device in free}, _end_of(found, known))
    return None


def _end_of(held: Held, known: Mapping[str, KnownDevice]) -> datetime | None:
    """When a gap is over: counted from the end of the last run, so that it is the same at every look."""
    last = known[held.devices[-1]] if held.devices else None
    if last is None or last.ended_at is None or last.idle_s is None or held.remaining_s is None:
        return None
    return last.ended_at + timedelta(seconds=round(last.idle_s + held.remaining_s, 3))


def _held(held: Held, free: Mapping[str, FreeDevice], until: datetime | None) -> WaitView:
    at = "" if until is None else f"{until:%H:%M:%S} UTC"
    devices = [free[uuid] for uuid in held.devices]
    names = ", ".join(f"{device.name} ({device.uuid})" for device in devices)
    if held.hold is Hold.COOLING:
        degrees = [device.temperature_c for device in devices if device.temperature_c is not None]
        warm = f"is {max(degrees):g} °C warm" if degrees else "reports no temperature"
        return WaitView(
            reason=WaitReason.COOLING, message=f"gap: {names} {warm}; it has until {at} to cool", until=until
        )
    if held.hold is Hold.GAP:
        return WaitView(reason=WaitReason.GAP, message=f"gap: {names} rests until {at}", until=until)
    if held.hold is Hold.TURN:
        return WaitView(reason=WaitReason.TURN, message="another campaign comes first on its devices")
    if held.hold is Hold.ORDER:
        return WaitView(reason=WaitReason.ORDER, message="a run that comes before it waits for another worker")
    return WaitView(reason=WaitReason.BUSY, message="too few of the devices that it needs are free at one worker")


def _no_worker(first: FirstRun, serving: Sequence[KnownWorker]) -> WaitView | None:
    if not any(one.online for one in serving):
        last = f"; {serving[0].name} was last heard of {_moment(serving[0].last_seen_at)}" if serving else ""
        return WaitView(reason=WaitReason.NO_WORKER, message=f"no worker for backend {first.backend} is online{last}")
    if any(one.online and _has_place(one, first) for one in serving):
        return None
    wanted = _own_devices(first)
    if not wanted:
        model = f" of the model {first.place.name}" if first.place and first.placement == "same_model" else ""
        return WaitView(
            reason=WaitReason.DEVICE_GONE,
            message=f"no online worker for backend {first.backend} has {first.devices.describe()}{model}"
            + (f"; {ELSEWHERE}" if model else ""),
        )
    names = ", ".join(wanted)
    holder = next((one for one in serving if set(wanted) <= set(one.devices)), None)
    where = (
        f"no worker for backend {first.backend} ever had it"
        if holder is None
        else f"worker {holder.name} had it and was last heard of {_moment(holder.last_seen_at)}"
    )
    return WaitView(
        reason=WaitReason.DEVICE_GONE,
        message=f"waiting for device {names}: {where}" + ("" if first.devices.uuids else f"; {ELSEWHERE}"),
    )


def _busy(first: FirstRun, able: Sequence[KnownWorker], known: Mapping[str, KnownDevice]) -> WaitView | None:
    wanted = _own_devices(first)
    busy = []
    for worker in able:
        taken = [uuid for uuid in wanted or worker.devices if known[uuid].busy is not None]
        too_few = len(worker.devices) - len(taken) < first.devices.count
        if not taken or not (wanted or too_few):
            return None
        busy.append(taken[0])
    one = known[busy[0]].busy if busy else None
    if one is None:
        return None
    return WaitView(
        reason=WaitReason.BUSY,
        message=f"device {busy[0]} is busy with {format_id(IdKind.RUN, one.run_id)} of campaign {one.campaign_name!r}",
    )


def _own_devices(first: FirstRun) -> tuple[str, ...]:
    """The devices that only will do; empty where any of several will."""
    if first.devices.uuids or first.place is None or first.placement != "same_device":
        return first.devices.uuids
    return first.place.devices[: first.devices.count]


def _has_place(worker: KnownWorker, first: FirstRun) -> bool:
    own = _own_devices(first)
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
    return first.devices.fit(usable) and set(own) <= {one["uuid"] for one in usable}


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _until(wait: WaitView) -> datetime:
    return wait.until or datetime.max.replace(tzinfo=UTC)


def _silent(able: list[queries.KnownWorker], known: dict[str, queries.KnownDevice]) -> WaitView | None:
    """None where one of them has just ended a run: it cleans up, and asks in a moment."""
    idle_s = [known[device].idle_s for one in able for device in one.devices]
    if any(seconds is not None and seconds < queries.ASKING_S for seconds in idle_s):
        return None
    names = ", ".join(one.name for one in able)
    return WaitView(
        reason=WaitReason.WORKER_SILENT, message=f"worker {names} is online and does not ask for work; its log says why"
    )
