"""A database for proofs of the lease protocol: small worlds seeded at once, read at once, and audited at each commit.

The audit is a deferred trigger: when a transaction that wrote something for an attempt commits, the attempt's lease
must still stand. It only notes what it sees; the database's own behaviour stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy.engine import URL
from uuid_utils.compat import uuid7

from factories.evidence import Evidence, MadeChunk, manifest_of
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import StreamManifest
from lem_domain.ids import IdKind, format_id

PROCESS = "rank-0"
LOSSES = 3
"""How many workers a run may lose before it is put aside."""

_CONFIG = ExperimentConfig.model_validate({"backend": "simulated", "model": "builtin:tiny-llama"}).model_dump_json()


def _three_chunks() -> tuple[MadeChunk, ...]:
    made = Evidence(processes=(PROCESS,), chunk_rows=1)
    for number in range(3):
        made.event(PROCESS, "mark", None, float(number))
    return tuple(made.chunks())


CHUNKS = _three_chunks()
"""The whole evidence of any attempt here."""
MANIFEST: tuple[StreamManifest, ...] = manifest_of(CHUNKS)


@dataclass
class Machine:
    """A worker under one boot."""

    id: UUID = field(default_factory=uuid4)
    boot: UUID = field(default_factory=uuid4)
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.devices = self.devices or (f"SIM-{uuid4().hex[:12]}",)

    @property
    def name(self) -> str:
        """Its public id."""
        return format_id(IdKind.WORKER, self.id)


@dataclass
class Seed:
    """One run to begin with, in any state up to its worker's last call."""

    state: str = "queued"
    device_count: int = 1
    retries: int = 1
    losses: int = LOSSES
    chunks: int = 0
    marker: bool = False
    late_s: float | None = None
    """The lease ran out so long ago."""
    cancel: bool = False
    pause: bool = False
    worker: int = 0
    run: UUID = field(default_factory=uuid7)
    attempt: UUID = field(default_factory=uuid7)
    claim: UUID = field(default_factory=uuid4)


@dataclass
class World:
    """One campaign, its runs in order, and the workers of a backend of its own."""

    seeds: Sequence[Seed]
    machines: Sequence[Machine]
    campaign: UUID = field(default_factory=uuid7)
    campaign_state: str = "active"
    priority: int = 0
    placement: str = "any"
    gap_s: float | None = None
    """Of both gaps."""
    backend: str = field(default_factory=lambda: f"b{uuid4().hex[:12]}")


class RunFacts(NamedTuple):
    """What the database holds of a run."""

    id: UUID
    campaign_id: UUID
    position: int
    state: str
    reason: str | None
    retries_left: int
    losses_left: int
    attempts: int
    current_attempt: UUID | None
    cancel_requested: bool
    version: int
    retries_granted: int


class AttemptFacts(NamedTuple):
    """What the database holds of an attempt."""

    id: UUID
    run_id: UUID
    number: int
    worker_id: UUID
    boot_id: UUID
    claim_id: UUID
    devices: tuple[str, ...]
    started: bool
    outcome: str | None
    reason: str | None
    has_manifest: bool
    chunks: tuple[int, ...]
    markers: tuple[str, ...]


class LeaseFacts(NamedTuple):
    """What the database holds of a lease."""

    attempt_id: UUID
    run_id: UUID
    worker_id: UUID
    boot_id: UUID
    late: bool
    suspect: bool
    cancel: bool
    pause: bool
    devices: tuple[str, ...]


class LogFacts(NamedTuple):
    """One entry of the log of transitions."""

    run_id: UUID
    source: str | None
    target: str
    actor: str
    reason: str | None
    attempt_id: UUID | None


class WorkerFacts(NamedTuple):
    """What the database holds of a worker."""

    id: UUID
    boot_id: UUID
    draining: bool
    signed_off: bool


class Facts(NamedTuple):
    """Everything of some campaigns, with every lease of the database, as of one instant."""

    campaigns: dict[UUID, str]
    runs: tuple[RunFacts, ...]
    attempts: dict[UUID, AttemptFacts]
    leases: dict[UUID, LeaseFacts]
    loose_devices: int
    """Device leases of no lease."""
    log: tuple[LogFacts, ...]
    lease_events: tuple[tuple[UUID, str], ...]
    workers: dict[UUID, WorkerFacts]
    places: dict[UUID, tuple[str, ...]]
    """Where campaigns are."""
    audit: tuple[str, ...]
    """Writes of those who had lost their lease when they committed."""

    def log_of(self, run: UUID) -> list[LogFacts]:
        """One run's part of the log."""
        return [entry for entry in self.log if entry.run_id == run]


_AUDIT = """
    CREATE TABLE protocol_audit (attempt_id uuid NOT NULL, what text NOT NULL);
    CREATE FUNCTION protocol_audit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    BEGIN
        IF NOT EXISTS (SELECT 1 FROM leases l WHERE l.attempt_id = NEW.attempt_id) THEN
            INSERT INTO protocol_audit VALUES (NEW.attempt_id, TG_TABLE_NAME);
        END IF;
        RETURN NULL;
    END $$;
    CREATE FUNCTION protocol_audit_start() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    BEGIN
        IF NOT EXISTS (SELECT 1 FROM leases l WHERE l.attempt_id = NEW.id) THEN
            INSERT INTO protocol_audit VALUES (NEW.id, 'start');
        END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER protocol_audit AFTER INSERT ON chunks
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION protocol_audit();
    CREATE CONSTRAINT TRIGGER protocol_audit AFTER INSERT ON process_results
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION protocol_audit();
    CREATE CONSTRAINT TRIGGER protocol_audit AFTER INSERT ON logs
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION protocol_audit();
    CREATE CONSTRAINT TRIGGER protocol_audit AFTER UPDATE ON attempts
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.started_at IS NULL AND NEW.started_at IS NOT NULL)
        EXECUTE FUNCTION protocol_audit_start();
"""

_FACTS = """
    SELECT json_build_object(
        'campaigns', (SELECT json_agg(json_build_array(c.id, c.state)) FROM campaigns c WHERE c.id = ANY($1)),
        'runs', (SELECT json_agg(json_build_array(
                     r.id, r.campaign_id, r.position, r.state, r.reason, r.retries_left, r.losses_left, r.attempts,
                     r.current_attempt, r.cancel_requested_at IS NOT NULL, r.version,
                     (c.spec -> 'execution' ->> 'retries')::int) ORDER BY c.id, r.position)
                   FROM runs r JOIN campaigns c ON c.id = r.campaign_id WHERE c.id = ANY($1)),
        'attempts', (SELECT json_agg(json_build_array(
                         a.id, a.run_id, a.number, a.worker_id, a.boot_id, a.claim_id, a.devices,
                         a.started_at IS NOT NULL, a.outcome, a.reason, a.manifest IS NOT NULL,
                         (SELECT coalesce(json_agg(h.seq ORDER BY h.seq), '[]')
                            FROM chunks h WHERE h.attempt_id = a.id),
                         (SELECT coalesce(json_agg(p.process), '[]') FROM process_results p WHERE p.attempt_id = a.id)
                         ) ORDER BY a.run_id, a.number)
                       FROM attempts a JOIN runs r ON r.id = a.run_id WHERE r.campaign_id = ANY($1)),
        'leases', (SELECT json_agg(json_build_array(
                       l.attempt_id, l.run_id, l.worker_id, l.boot_id, l.until < now(), l.suspect_since IS NOT NULL,
                       l.cancel, l.pause,
                       (SELECT coalesce(json_agg(d.device_uuid ORDER BY d.device_uuid), '[]')
                          FROM device_leases d WHERE d.attempt_id = l.attempt_id)))
                     FROM leases l),
        'loose_devices', (SELECT count(*) FROM device_leases d
                           WHERE NOT EXISTS (SELECT 1 FROM leases l WHERE l.attempt_id = d.attempt_id)),
        'log', (SELECT json_agg(json_build_array(t.run_id, t.source, t.target, t.actor, t.reason, t.attempt_id)
                                ORDER BY t.id)
                  FROM run_transitions t WHERE t.campaign_id = ANY($1)),
        'lease_events', (SELECT json_agg(json_build_array(e.attempt_id, e.kind) ORDER BY e.id)
                           FROM lease_events e JOIN runs r ON r.id = e.run_id WHERE r.campaign_id = ANY($1)),
        'workers', (SELECT json_agg(json_build_array(w.id, w.boot_id, w.draining, w.signed_off_at IS NOT NULL))
                      FROM workers w WHERE w.id = ANY($2)),
        'places', (SELECT json_agg(json_build_array(p.campaign_id, p.devices))
                     FROM campaign_places p WHERE p.campaign_id = ANY($1) AND p.ended_at IS NULL),
        'audit', (SELECT json_agg(what) FROM protocol_audit)
    )
"""


class Laboratory:
    """One database with the audit in it, and a connection that may do anything."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    @property
    def connection(self) -> asyncpg.Connection:
        """The connection."""
        return self._connection

    async def seed(self, *worlds: World) -> None:
        """Make worlds with one round trip."""
        script = ["BEGIN; SELECT set_config('lem.actor', 'user', true), set_config('lem.actor_name', 'tester', true);"]
        for world in worlds:
            script += _world_sql(world)
        await self._connection.execute("".join(script) + "COMMIT;")

    async def age(self, attempt: UUID, seconds: float) -> None:
        """The attempt's lease ended so long ago."""
        await self._connection.execute(
            "UPDATE leases SET until = now() - make_interval(secs => $2) WHERE attempt_id = $1", attempt, seconds
        )

    async def rest(self) -> None:
        """Every device has been idle for an hour longer."""
        await self._connection.execute("UPDATE attempts SET ended_at = ended_at - interval '1 hour'")

    async def facts(self, campaigns: Sequence[UUID], workers: Sequence[UUID] = ()) -> Facts:
        """What there is, with one statement."""
        found = json.loads(await self._connection.fetchval(_FACTS, list(campaigns), list(workers)))
        return _facts_of(found)

    async def clear(self) -> None:
        """Take every lease away, so that the next world has the database to itself."""
        await self._connection.execute("DELETE FROM leases; DELETE FROM protocol_audit;")


@asynccontextmanager
async def laboratory(url: URL) -> AsyncIterator[Laboratory]:
    """Open a migrated database as a laboratory."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain)
    try:
        await connection.execute(_AUDIT)
        yield Laboratory(connection)
    finally:
        await connection.close()


def _world_sql(world: World) -> list[str]:
    """The statements that make a world; every value is of this module's own making."""
    script = [
        _insert_campaign(world),
        *(
            f"INSERT INTO workers (id, boot_id, name, host, backend, devices, versions, labels) VALUES ('{one.id}', "
            f"'{one.boot}', 'worker', 'host', '{world.backend}', '{_device_details(one.devices)}', '{{}}', '{{}}');"
            for one in world.machines
        ),
    ]
    for position, seed in enumerate(world.seeds):
        script.append(
            "INSERT INTO runs (id, campaign_id, experiment_id, cycle, position, backend, device_count, priority, "
            f"retries_left, losses_left) VALUES ('{seed.run}', '{world.campaign}', '{world.campaign}', {position + 1}, "
            f"{position}, '{world.backend}', {seed.device_count}, {world.priority}, {seed.retries}, {seed.losses});"
        )
        if seed.state != "queued":
            script += _attempt_sql(seed, world.machines[seed.worker])
    return script


def _insert_campaign(world: World) -> str:
    retries = max((seed.retries for seed in world.seeds), default=0)
    gap = None if world.gap_s is None else {"seconds": world.gap_s}
    spec = json.dumps({"execution": {"retries": retries, "config_gap": gap, "cycle_gap": gap}})
    return (
        "INSERT INTO campaigns (id, name, spec, submitted_by, priority, labels, state, placement) VALUES "
        f"('{world.campaign}', 'c', '{spec}', 'tester', {world.priority}, '{{}}', '{world.campaign_state}', "
        f"'{world.placement}');"
        "INSERT INTO experiments (id, campaign_id, ordinal, display_name, varied, config, config_hash) VALUES "
        f"('{world.campaign}', '{world.campaign}', 0, 'e', '{{}}', '{_CONFIG}', '{'0' * 64}');"
    )


def _attempt_sql(seed: Seed, machine: Machine) -> list[str]:
    leased = machine.devices[: seed.device_count]
    array = "{" + ",".join(leased) + "}"
    script = [
        _actor("worker"),
        "INSERT INTO attempts (id, run_id, number, worker_id, boot_id, claim_id, devices, device_details) VALUES "
        f"('{seed.attempt}', '{seed.run}', 1, '{machine.id}', '{machine.boot}', '{seed.claim}', '{array}', "
        f"'{_device_details(leased)}');"
        f"UPDATE runs SET state = 'initialised', current_attempt = '{seed.attempt}', attempts = 1 "
        f"WHERE id = '{seed.run}';",
    ]
    live = seed.state in ("initialised", "running")
    started = seed.state != "initialised"
    until = "now() + interval '1 minute'" if seed.late_s is None else f"now() - interval '{seed.late_s} s'"
    script.append(
        "INSERT INTO leases (attempt_id, run_id, worker_id, boot_id, until, cancel, pause) VALUES "
        f"('{seed.attempt}', '{seed.run}', '{machine.id}', '{machine.boot}', {until}, {seed.cancel}, {seed.pause});"
    )
    script += [f"INSERT INTO device_leases VALUES ('{device}', '{seed.attempt}');" for device in leased]
    if started:
        script.append(
            f"UPDATE attempts SET started_at = now(), environment = '{{}}', effective_config = "
            f"'{json.dumps(EFFECTIVE)}' WHERE id = '{seed.attempt}';"
            f"UPDATE runs SET state = 'running' WHERE id = '{seed.run}';"
        )
    script += [
        "INSERT INTO chunks (attempt_id, process, stream, seq, rows, sha256, bytes, body) VALUES "
        f"('{seed.attempt}', '{chunk.process}', '{chunk.stream.value}', {chunk.seq}, {chunk.rows}, "
        f"'\\x{chunk.sha256}', {len(chunk.body)}, '\\x{chunk.body.hex()}');"
        for chunk in CHUNKS[: seed.chunks]
    ]
    if seed.marker:
        script.append(
            "INSERT INTO process_results (attempt_id, process, streams, summary) VALUES "
            f"('{seed.attempt}', '{PROCESS}', '{_manifest_json()}', '{{}}');"
        )
    if seed.cancel:
        script.append(f"UPDATE runs SET cancel_requested_at = now() WHERE id = '{seed.run}';")
    if not live:
        manifest = f"'{_manifest_json()}'" if seed.state == "completed" else "NULL"
        reason = "NULL" if seed.state == "completed" else "'inference'"
        script.append(
            f"UPDATE attempts SET ended_at = now(), outcome = '{seed.state}', reason = {reason}, manifest = {manifest} "
            f"WHERE id = '{seed.attempt}';"
            f"SET CONSTRAINTS ALL IMMEDIATE; DELETE FROM leases WHERE attempt_id = '{seed.attempt}';"
            f"UPDATE runs SET state = '{seed.state}', reason = {reason} WHERE id = '{seed.run}';"
        )
    return [*script, _actor("user")]


EFFECTIVE: dict[str, Any] = {"engine": "simulated 1", "parameters": []}


def _actor(kind: str) -> str:
    return f"SELECT set_config('lem.actor', '{kind}', true);"


def _manifest_json() -> str:
    return json.dumps([one.model_dump(mode="json") for one in MANIFEST])


def _device_details(devices: Sequence[str]) -> str:
    return json.dumps([{"uuid": uuid, "kind": "simulated", "name": "Simulated"} for uuid in devices])


def _facts_of(found: dict[str, Any]) -> Facts:
    attempts = [
        AttemptFacts(  # type: ignore[call-arg]  # lengths of unpacked lists are unknown
            *_uuids(row[:2]), row[2], *_uuids(row[3:6]), tuple(row[6]), *row[7:11], tuple(row[11]), tuple(row[12])
        )
        for row in found["attempts"] or ()
    ]
    leases = [LeaseFacts(*_uuids(row[:4]), *row[4:8], tuple(row[8])) for row in found["leases"] or ()]  # type: ignore[call-arg]
    return Facts(
        campaigns={UUID(row[0]): row[1] for row in found["campaigns"] or ()},
        runs=tuple(RunFacts(*_uuids(row[:2]), *row[2:8], _uuid(row[8]), *row[9:]) for row in found["runs"] or ()),  # type: ignore[call-arg]
        attempts={one.id: one for one in attempts},
        leases={one.attempt_id: one for one in leases},
        loose_devices=found["loose_devices"],
        log=tuple(LogFacts(UUID(row[0]), *row[1:5], _uuid(row[5])) for row in found["log"] or ()),  # type: ignore[call-arg]
        lease_events=tuple((UUID(row[0]), row[1]) for row in found["lease_events"] or ()),
        workers={UUID(row[0]): WorkerFacts(*_uuids(row[:2]), *row[2:]) for row in found["workers"] or ()},
        places={UUID(row[0]): tuple(row[1]) for row in found["places"] or ()},
        audit=tuple(found["audit"] or ()),
    )


def _uuids(values: list[str]) -> Any:
    """UUIDs to unpack as arguments; Any, because a list has no length for the type checker."""
    return [UUID(value) for value in values]


def _uuid(value: str | None) -> UUID | None:
    return None if value is None else UUID(value)
