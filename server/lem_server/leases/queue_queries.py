"""SQL of the queue as one worker sees it: its free devices, the other workers, and the queued runs of campaigns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam
from sqlalchemy.types import Text

from lem_domain.backends.registry import BackendName
from lem_domain.config.devices import DevicesConfig
from lem_domain.config.execution import Placement
from lem_domain.config.gaps import ExperimentCycle, GapConfig, RunGaps
from lem_server.leases.scheduling import CampaignPlace, FreeDevice, NextRun, OnlineWorker, QueuedCampaign

ASKING_S = 30.0
"""A worker that claimed within this time counts as waiting for work: it claims again every few seconds."""

# The primary keys of device_leases, device_uses and attempts.
_FREE_DEVICES = text("""
    SELECT offered.device, known.device ->> 'kind', known.device ->> 'name',
           extract(epoch FROM now() - a.ended_at)::float8
      FROM unnest(:devices) WITH ORDINALITY AS offered (device, ordinal)
      JOIN workers w ON w.id = :worker_id
      JOIN jsonb_array_elements(w.devices) AS known (device) ON known.device ->> 'uuid' = offered.device
      LEFT JOIN device_uses u ON u.device_uuid = offered.device
      LEFT JOIN attempts a ON a.id = u.attempt_id
     WHERE NOT EXISTS (SELECT 1 FROM device_leases d WHERE d.device_uuid = offered.device)
     ORDER BY offered.ordinal
""").bindparams(bindparam("devices", type_=ARRAY(Text)))


async def free_devices(
    connection: AsyncConnection, worker_id: UUID, devices: Sequence[str], temperatures_c: Mapping[str, float]
) -> list[FreeDevice]:
    """Return the offered devices that belong to the worker and have no lease, in the offered order."""
    rows = await connection.execute(_FREE_DEVICES, {"worker_id": worker_id, "devices": list(devices)})
    return [FreeDevice(uuid, kind, name, idle_s, temperatures_c.get(uuid)) for uuid, kind, name, idle_s in rows]


FITTING = """
    SELECT coalesce(array_agg(free.uuid ORDER BY array_position(r.device_uuids, free.uuid), free.ordinal), '{}')
           AS uuids
      FROM unnest(:uuids, :names, :kinds) WITH ORDINALITY AS free (uuid, name, kind, ordinal)
     WHERE (r.device_uuids IS NULL OR free.uuid = ANY (r.device_uuids))
       AND (r.device_like IS NULL OR free.name ILIKE r.device_like OR free.kind ILIKE r.device_like)
"""
"""The free devices that a run `r` may use: those it names, in its order; those of the kind it requires; or all."""

FREE = tuple(bindparam(name, type_=ARRAY(Text)) for name in ("uuids", "names", "kinds"))
"""The parameters of `FITTING`; `free_parameters` returns their values."""

# Index ix_runs_claim. The recursive part finds each pair of campaign and backend with queued runs by one step down the
# index, however many runs the pair has; DISTINCT would read them all. `head` is the first run of each pair that fits;
# a strict campaign shows its first run even if it does not fit, because no later run may overtake it. The other parts
# use primary keys, for as many rows as there are free devices.
_QUEUE = text(
    """
    WITH RECURSIVE queued AS (
        (SELECT r.campaign_id, r.backend FROM runs r
          WHERE r.state = 'queued'
          ORDER BY r.campaign_id, r.backend LIMIT 1)
         UNION ALL
        SELECT following.campaign_id, following.backend
          FROM queued
         CROSS JOIN LATERAL (
               SELECT r.campaign_id, r.backend FROM runs r
                WHERE r.state = 'queued' AND (r.campaign_id, r.backend) > (queued.campaign_id, queued.backend)
                ORDER BY r.campaign_id, r.backend LIMIT 1) following
    )
    SELECT c.id, queued.backend, c.placement, c.spec #> '{execution,config_gap}', c.spec #> '{execution,cycle_gap}',
           head.position, head.experiment_id, head.cycle, head.device_count, head.fitting, head.named,
           p.devices, p.kind, p.name, served.previous
      FROM queued
      JOIN campaigns c ON c.id = queued.campaign_id AND c.state = 'active'
     CROSS JOIN LATERAL (
           SELECT r.position, r.experiment_id, r.cycle, r.device_count, fitting.uuids AS fitting,
                  r.device_uuids AS named
             FROM runs r
            CROSS JOIN LATERAL (
                  {FITTING}
                  ) fitting
            WHERE r.campaign_id = queued.campaign_id AND r.backend = queued.backend AND r.state = 'queued'
              AND r.not_before <= now()
              AND (c.placement = 'same_device' OR r.device_count <= cardinality(fitting.uuids))
            ORDER BY r.position LIMIT 1
           ) head
      LEFT JOIN campaign_places p
        ON p.campaign_id = c.id AND p.simulated = (queued.backend = 'simulated') AND p.ended_at IS NULL
     CROSS JOIN LATERAL (
           SELECT max(d.claimed_at) AS at,
                  json_agg(json_build_array(d.device_uuid, last.experiment_id, last.cycle))
                      FILTER (WHERE d.device_uuid = ANY (:uuids)) AS previous
             FROM campaign_devices d
             JOIN runs last ON last.id = d.run_id
            WHERE d.campaign_id = c.id
           ) served
     WHERE NOT c.fail_fast
        OR (SELECT true FROM runs f WHERE f.campaign_id = c.id AND f.state = 'failed' LIMIT 1) IS NULL
     ORDER BY c.priority DESC, served.at NULLS FIRST, c.id, head.position
""".replace("{FITTING}", FITTING)
).bindparams(*FREE)


async def queue(connection: AsyncConnection, free: Sequence[FreeDevice]) -> list[QueuedCampaign]:
    """Return the next run of every active campaign for each backend, in the order of priority and turn."""
    rows = await connection.execute(_QUEUE, free_parameters(free))
    return [
        QueuedCampaign(
            campaign_id=row[0],
            backend=row[1],
            placement=row[2],
            gaps=RunGaps(_gap(row[3]), _gap(row[4])),
            run=NextRun(row[5], ExperimentCycle(row[6], row[7]), row[8], tuple(row[9]), tuple(row[10] or ())),
            place=None if row[11] is None else CampaignPlace(tuple(row[11]), row[12], row[13]),
            previous={device: ExperimentCycle(UUID(experiment), cycle) for device, experiment, cycle in row[14] or ()},
        )
        for row in rows
    ]


class KnownWorker(NamedTuple):
    """A registered worker, online or not."""

    name: str
    backend: str
    devices: dict[str, tuple[str, str]]
    """Kind and name, by UUID."""
    online: bool
    """Its last contact is recent, and it is neither draining nor signed off."""
    asking: bool
    last_seen_at: datetime
    temperatures_c: dict[str, float]

    @property
    def for_scheduling(self) -> OnlineWorker:
        """The part that scheduling uses."""
        return OnlineWorker(self.backend, frozenset(self.devices), self.asking)


_WORKERS = text("""
    SELECT w.name, w.backend, w.devices,
           w.signed_off_at IS NULL AND NOT w.draining AND w.last_seen_at + :ttl > now(),
           coalesce(w.asked_at + :asking > now(), false), w.last_seen_at, w.temperatures_c
      FROM workers w
     ORDER BY w.last_seen_at DESC
""")


async def workers(connection: AsyncConnection, *, ttl: timedelta) -> list[KnownWorker]:
    """Return all workers, the one with the latest contact first (a scan: there are few)."""
    rows = await connection.execute(_WORKERS, {"ttl": ttl, "asking": timedelta(seconds=ASKING_S)})
    return [
        KnownWorker(row[0], row[1], {one["uuid"]: (one["kind"], one["name"]) for one in row[2]}, *row[3:])
        for row in rows
    ]


class LeasingRun(NamedTuple):
    """The run that leases a device."""

    run_id: UUID
    campaign_name: str


class KnownDevice(NamedTuple):
    """The run that leases a device, or since when the device is idle."""

    ended_at: datetime | None
    """End of the last run on it."""
    idle_s: float | None
    leased_by: LeasingRun | None


_DEVICES = text("""
    SELECT wanted.device, a.ended_at, extract(epoch FROM now() - a.ended_at)::float8, l.run_id, c.name
      FROM unnest(:devices) AS wanted (device)
      LEFT JOIN device_uses u ON u.device_uuid = wanted.device
      LEFT JOIN attempts a ON a.id = u.attempt_id
      LEFT JOIN device_leases d ON d.device_uuid = wanted.device
      LEFT JOIN leases l ON l.attempt_id = d.attempt_id
      LEFT JOIN runs r ON r.id = l.run_id
      LEFT JOIN campaigns c ON c.id = r.campaign_id
""").bindparams(bindparam("devices", type_=ARRAY(Text)))


async def devices(connection: AsyncConnection, uuids: Collection[str]) -> dict[str, KnownDevice]:
    """Return the state of devices by UUID, through primary keys."""
    rows = await connection.execute(_DEVICES, {"devices": list(uuids)})
    return {row[0]: KnownDevice(row[1], row[2], None if row[3] is None else LeasingRun(row[3], row[4])) for row in rows}


class FirstRun(NamedTuple):
    """The first queued run of a campaign."""

    backend: str
    devices: DevicesConfig
    placement: Placement
    place: CampaignPlace | None
    failed_fast: bool


# Index ix_runs_claim, one step down the index per known backend.
_FIRST_RUN = text("""
    SELECT r.backend, e.config -> 'devices', c.placement, p.devices, p.kind, p.name,
           c.fail_fast AND EXISTS (SELECT 1 FROM runs f WHERE f.campaign_id = c.id AND f.state = 'failed')
      FROM campaigns c
     CROSS JOIN unnest(:backends) AS known (backend)
     CROSS JOIN LATERAL (
           SELECT q.backend, q.position, q.experiment_id FROM runs q
            WHERE q.campaign_id = c.id AND q.backend = known.backend AND q.state = 'queued'
            ORDER BY q.position LIMIT 1) r
      JOIN experiments e ON e.id = r.experiment_id
      LEFT JOIN campaign_places p
        ON p.campaign_id = c.id AND p.simulated = (r.backend = 'simulated') AND p.ended_at IS NULL
     WHERE c.id = :id
     ORDER BY r.position LIMIT 1
""").bindparams(bindparam("backends", type_=ARRAY(Text)))


async def first_run(connection: AsyncConnection, campaign_id: UUID) -> FirstRun | None:
    """Return the first queued run of a campaign, whether or not a worker could take it."""
    row = (await connection.execute(_FIRST_RUN, {"id": campaign_id, "backends": list(BackendName)})).one_or_none()
    if row is None:
        return None
    place = None if row[3] is None else CampaignPlace(tuple(row[3]), row[4], row[5])
    return FirstRun(row[0], DevicesConfig.model_validate(row[1] or {}), row[2], place, row[6])


def free_parameters(free: Sequence[FreeDevice]) -> dict[str, list[str]]:
    """Return the parameters of `FITTING`."""
    return {
        "uuids": [device.uuid for device in free],
        "names": [device.name for device in free],
        "kinds": [device.kind for device in free],
    }


def _gap(stored: dict[str, Any] | None) -> GapConfig | None:
    return None if stored is None else GapConfig.model_validate(stored)
