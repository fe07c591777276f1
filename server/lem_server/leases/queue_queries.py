"""SQL of the queue as one worker sees it: free devices, who else could take runs, and what campaigns have queued."""

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
from lem_domain.config.gaps import GapConfig, Gaps, Turn
from lem_server.leases.scheduling import FreeDevice, Head, Neighbour, Place, Waiting

ASKING_S = 30.0
"""A worker that waits for work asks at least every few seconds (see `claims.claim`)."""

# The primary keys of device_leases, device_uses and attempts.
_FREE_DEVICES = text("""
    SELECT offered.device, known.device ->> 'kind', known.device ->> 'name',
           extract(epoch FROM now() - a.ended_at)::float8
      FROM unnest(:devices) WITH ORDINALITY AS offered (device, place)
      JOIN workers w ON w.id = :worker_id
      JOIN jsonb_array_elements(w.devices) AS known (device) ON known.device ->> 'uuid' = offered.device
      LEFT JOIN device_uses u ON u.device_uuid = offered.device
      LEFT JOIN attempts a ON a.id = u.attempt_id
     WHERE NOT EXISTS (SELECT 1 FROM device_leases d WHERE d.device_uuid = offered.device)
     ORDER BY offered.place
""").bindparams(bindparam("devices", type_=ARRAY(Text)))


async def free_devices(
    connection: AsyncConnection, worker_id: UUID, devices: Sequence[str], temperatures_c: Mapping[str, float]
) -> list[FreeDevice]:
    """Those of the offered devices that are the worker's and that nobody leases, in the offered order."""
    rows = await connection.execute(_FREE_DEVICES, {"worker_id": worker_id, "devices": list(devices)})
    return [FreeDevice(uuid, kind, name, idle_s, temperatures_c.get(uuid)) for uuid, kind, name, idle_s in rows]


FITTING = """
    SELECT coalesce(array_agg(free.uuid ORDER BY array_position(r.device_uuids, free.uuid), free.place), '{}') AS uuids
      FROM unnest(:uuids, :names, :kinds) WITH ORDINALITY AS free (uuid, name, kind, place)
     WHERE (r.device_uuids IS NULL OR free.uuid = ANY (r.device_uuids))
       AND (r.device_like IS NULL OR free.name ILIKE r.device_like OR free.kind ILIKE r.device_like)
"""
"""The free devices that a run `r` may have: those it names in its own order, those of the kind it asks for, or any."""

FREE = tuple(bindparam(name, type_=ARRAY(Text)) for name in ("uuids", "names", "kinds"))
"""Its parameters; `of_free` gives their values."""

# There are few workers: a scan.
_NEIGHBOURS = text("""
    SELECT w.backend, ARRAY(SELECT device ->> 'uuid' FROM jsonb_array_elements(w.devices) AS known (device)),
           coalesce(w.asked_at + :asking > now(), false)
      FROM workers w
     WHERE w.signed_off_at IS NULL AND NOT w.draining AND w.last_seen_at + :ttl > now()
""")


async def neighbours(connection: AsyncConnection, *, ttl: timedelta) -> list[Neighbour]:
    """The workers that are online and take work."""
    rows = await connection.execute(_NEIGHBOURS, {"ttl": ttl, "asking": timedelta(seconds=ASKING_S)})
    return [Neighbour(backend, frozenset(devices), asking) for backend, devices, asking in rows]


# Index ix_runs_claim: the pairs of campaign and backend that have something queued are found one after another, each by
# one step down the index, however many runs they have; then the first run of each that fits. Strict campaigns show
# their first run whether it fits or not. The other parts go by primary keys, of as many rows as there are devices.
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


async def queue(connection: AsyncConnection, free: Sequence[FreeDevice]) -> list[Waiting]:
    """What every active campaign has queued for each backend, in order of priority and turn."""
    rows = await connection.execute(_QUEUE, of_free(free))
    return [
        Waiting(
            campaign_id=row[0],
            backend=row[1],
            placement=row[2],
            gaps=Gaps(_gap(row[3]), _gap(row[4])),
            head=Head(row[5], Turn(row[6], row[7]), row[8], tuple(row[9]), tuple(row[10] or ())),
            place=None if row[11] is None else Place(tuple(row[11]), row[12], row[13]),
            previous={device: Turn(UUID(experiment), cycle) for device, experiment, cycle in row[14] or ()},
        )
        for row in rows
    ]


class KnownWorker(NamedTuple):
    """A worker that ever registered."""

    name: str
    backend: str
    devices: dict[str, tuple[str, str]]
    """Kind and name by UUID."""
    online: bool
    """Heard of lately, not draining and not signed off."""
    asking: bool
    last_seen_at: datetime
    temperatures_c: dict[str, float]

    @property
    def as_neighbour(self) -> Neighbour:
        """What counts of it for scheduling."""
        return Neighbour(self.backend, frozenset(self.devices), self.asking)


_WORKERS = text("""
    SELECT w.name, w.backend, w.devices,
           w.signed_off_at IS NULL AND NOT w.draining AND w.last_seen_at + :ttl > now(),
           coalesce(w.asked_at + :asking > now(), false), w.last_seen_at, w.temperatures_c
      FROM workers w
     ORDER BY w.last_seen_at DESC
""")


async def workers(connection: AsyncConnection, *, ttl: timedelta) -> list[KnownWorker]:
    """All workers, the one heard of last first (there are few: a scan)."""
    rows = await connection.execute(_WORKERS, {"ttl": ttl, "asking": timedelta(seconds=ASKING_S)})
    return [
        KnownWorker(row[0], row[1], {one["uuid"]: (one["kind"], one["name"]) for one in row[2]}, *row[3:])
        for row in rows
    ]


class Busy(NamedTuple):
    """Who leases a device."""

    run_id: UUID
    campaign_name: str


class KnownDevice(NamedTuple):
    """What a device does, or since when it does nothing."""

    ended_at: datetime | None
    """Of the last run on it."""
    idle_s: float | None
    busy: Busy | None


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
    """What is known of devices, by primary keys."""
    rows = await connection.execute(_DEVICES, {"devices": list(uuids)})
    return {row[0]: KnownDevice(row[1], row[2], None if row[3] is None else Busy(row[3], row[4])) for row in rows}


class FirstRun(NamedTuple):
    """The run of a campaign that comes next in its order."""

    backend: str
    devices: DevicesConfig
    placement: Placement
    place: Place | None
    failed_fast: bool


# Index ix_runs_claim, one step for each backend that there is.
_FIRST_OF = text("""
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


async def first_of(connection: AsyncConnection, campaign_id: UUID) -> FirstRun | None:
    """What a campaign has queued first, whoever could take it."""
    row = (await connection.execute(_FIRST_OF, {"id": campaign_id, "backends": list(BackendName)})).one_or_none()
    if row is None:
        return None
    place = None if row[3] is None else Place(tuple(row[3]), row[4], row[5])
    return FirstRun(row[0], DevicesConfig.model_validate(row[1] or {}), row[2], place, row[6])


def of_free(free: Sequence[FreeDevice]) -> dict[str, list[str]]:
    """Free devices as parameters of a statement."""
    return {
        "uuids": [device.uuid for device in free],
        "names": [device.name for device in free],
        "kinds": [device.kind for device in free],
    }


def _gap(stored: dict[str, Any] | None) -> GapConfig | None:
    return None if stored is None else GapConfig.model_validate(stored)
