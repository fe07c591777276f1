"""The schema: the tables of every capability, from which the migration creates them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import UserDefinedType

from lem_domain.states import ActorKind, RunState

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class TransactionId(UserDefinedType[Any]):
    """PostgreSQL's xid8: a 64-bit transaction number, which does not wrap around."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name in DDL."""
        return "xid8"


# SQLAlchemy 2.0 has no xid8; without this entry, reflection warns and skips the column.
ischema_names["xid8"] = TransactionId


def _one_of(column: str, values: type[RunState] | type[ActorKind]) -> str:
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


# --- access: tokens and idempotency keys

api_tokens = sa.Table(
    "api_tokens",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("scopes", ARRAY(sa.Text), nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("expires_at", sa.DateTime(timezone=True)),
    sa.Column("revoked_at", sa.DateTime(timezone=True)),
    sa.Column("last_used_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint("kind IN ('owner', 'user', 'worker', 'ci')", name="kind"),
    sa.UniqueConstraint("sha256"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("principal", sa.Uuid, primary_key=True),
    sa.Column("route", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("status", sa.SmallInteger),
    sa.Column("body", sa.LargeBinary),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Index("ix_idempotency_keys_created_at", "created_at"),
)

# --- workers: registered workers, and all their boots

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("boot_id", sa.Uuid, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("devices", JSONB, nullable=False),
    sa.Column("versions", JSONB, nullable=False),
    sa.Column("labels", JSONB, nullable=False),
    sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("signed_off_at", sa.DateTime(timezone=True)),
    sa.Column("asked_at", sa.DateTime(timezone=True)),
    sa.Column("temperatures_c", JSONB, nullable=False, server_default=sa.text("'{}'")),
)

# Every boot that a worker ever had: a superseded one must not register again.
worker_boots = sa.Table(
    "worker_boots",
    metadata,
    sa.Column("worker_id", sa.Uuid, sa.ForeignKey("workers.id"), primary_key=True),
    sa.Column("boot_id", sa.Uuid, primary_key=True),
    sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

# --- datasets: uploaded sets of prompts, keyed by the digest of their texts

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("sha256", sa.LargeBinary, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("prompts", sa.Integer, nullable=False),
    sa.Column("texts", JSONB, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

# --- campaigns: their experiments, placements and devices

campaigns = sa.Table(
    "campaigns",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("spec", JSONB, nullable=False),
    sa.Column("submitted_by", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'active'")),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("labels", JSONB, nullable=False),
    sa.Column("imported", JSONB),
    sa.Column("placement", sa.Text, nullable=False, server_default=sa.text("'any'")),
    sa.Column("fail_fast", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint("state IN ('active', 'paused', 'cancelled')", name="state"),
    sa.CheckConstraint("placement IN ('same_device', 'same_model', 'any')", name="placement"),
    sa.Index("ix_campaigns_name", "name"),
    sa.Index("ix_campaigns_fail_fast", "id", postgresql_where=sa.text("fail_fast")),
)

experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("campaign_id", sa.Uuid, sa.ForeignKey("campaigns.id"), nullable=False),
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("varied", JSONB, nullable=False),
    sa.Column("config", JSONB, nullable=False),
    sa.Column("config_hash", sa.Text, nullable=False),
    sa.UniqueConstraint("campaign_id", "config_hash"),
    sa.UniqueConstraint("campaign_id", "ordinal"),
)

# Placements of a campaign, one row per decision; the unique index allows one current row each for real and simulated.
campaign_places = sa.Table(
    "campaign_places",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("campaign_id", sa.Uuid, sa.ForeignKey("campaigns.id"), nullable=False),
    sa.Column("simulated", sa.Boolean, nullable=False),
    sa.Column("devices", ARRAY(sa.Text), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("placed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("ended_at", sa.DateTime(timezone=True)),
    sa.Column("ended_by", sa.Text),
    sa.Index("ix_campaign_places_campaign_id", "campaign_id"),
)
sa.Index(
    "uq_campaign_places_current",
    campaign_places.c.campaign_id,
    campaign_places.c.simulated,
    unique=True,
    postgresql_where=sa.text("ended_at IS NULL"),
)

campaign_devices = sa.Table(
    "campaign_devices",
    metadata,
    sa.Column("campaign_id", sa.Uuid, sa.ForeignKey("campaigns.id"), primary_key=True),
    sa.Column("device_uuid", sa.Text, primary_key=True),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
)

# --- runs: the allowed transitions, and the append-only log of transitions

run_edges = sa.Table(
    "run_edges",
    metadata,
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("target", sa.Text, primary_key=True),
    sa.Column("actor", sa.Text, primary_key=True),
    sa.CheckConstraint(_one_of("source", RunState), name="source"),
    sa.CheckConstraint(_one_of("target", RunState), name="target"),
    sa.CheckConstraint(_one_of("actor", ActorKind), name="actor"),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("campaign_id", sa.Uuid, sa.ForeignKey("campaigns.id"), nullable=False),
    sa.Column("experiment_id", sa.Uuid, sa.ForeignKey("experiments.id"), nullable=False),
    sa.Column("cycle", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("device_count", sa.SmallInteger, nullable=False),
    sa.Column("device_uuids", ARRAY(sa.Text)),
    sa.Column("device_like", sa.Text),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'queued'")),
    sa.Column("reason", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("not_before", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("current_attempt", sa.Uuid),
    sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("retries_left", sa.SmallInteger, nullable=False),
    sa.Column("losses_left", sa.SmallInteger, nullable=False),
    sa.Column("cancel_requested_at", sa.DateTime(timezone=True)),
    sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("imported", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.UniqueConstraint("campaign_id", "position"),
    sa.UniqueConstraint("experiment_id", "cycle"),
    sa.CheckConstraint(_one_of("state", RunState), name="state"),
    sa.CheckConstraint(
        "state NOT IN ('initialised', 'running') OR current_attempt IS NOT NULL", name="live_has_attempt"
    ),
)
# A claim reads the queue of each campaign and backend in order.
sa.Index(
    "ix_runs_claim",
    runs.c.campaign_id,
    runs.c.backend,
    runs.c.position,
    postgresql_where=sa.text("state = 'queued'"),
)
sa.Index("ix_runs_campaign_id_state", runs.c.campaign_id, runs.c.state)

# Readers order the log by (xact, id), not by id: ids are drawn before a transaction commits, so that a lower id can
# appear after a higher one; an entry whose xact is below the snapshot's xmin has no unseen predecessor.
run_transitions = sa.Table(
    "run_transitions",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("xact", TransactionId, nullable=False, server_default=sa.text("pg_current_xact_id()")),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("campaign_id", sa.Uuid, nullable=False),
    sa.Column("source", sa.Text),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("actor_name", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("attempt_id", sa.Uuid),
    # True for entries that an import brought; the log triggers wrote all others.
    sa.Column("imported", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Index("ix_run_transitions_run_id", "run_id", "id"),
    sa.Index("ix_run_transitions_campaign_id", "campaign_id", "xact", "id"),
)

# --- attempts: one row per execution of a run by a worker

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("worker_id", sa.Uuid, sa.ForeignKey("workers.id"), nullable=False),
    sa.Column("boot_id", sa.Uuid, nullable=False),
    sa.Column("claim_id", sa.Uuid, nullable=False),
    sa.Column("devices", ARRAY(sa.Text), nullable=False),
    sa.Column("device_details", JSONB, nullable=False),
    sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("started_at", sa.DateTime(timezone=True)),
    sa.Column("ended_at", sa.DateTime(timezone=True)),
    sa.Column("outcome", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("environment", JSONB),
    sa.Column("effective_config", JSONB),
    sa.Column("manifest", JSONB),
    sa.UniqueConstraint("claim_id"),
    sa.UniqueConstraint("run_id", "number"),
    sa.CheckConstraint("outcome IN ('completed', 'failed', 'interrupted', 'cancelled')", name="outcome"),
    sa.CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended_has_outcome"),
)

# --- leases: of runs and devices, the last use of each device, and lost and recovered heartbeats

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("attempt_id", sa.Uuid, primary_key=True),
    sa.Column("run_id", sa.Uuid, nullable=False),
    sa.Column("worker_id", sa.Uuid, nullable=False),
    sa.Column("boot_id", sa.Uuid, nullable=False),
    sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    sa.Column("beat_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("cancel", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("progress", JSONB),
    sa.Column("suspect_since", sa.DateTime(timezone=True)),
    sa.Column("pause", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.UniqueConstraint("run_id"),
    # Every heartbeat updates a row. Half-empty pages let PostgreSQL do that in place (HOT), which also requires that no
    # index covers a column that a heartbeat changes.
    postgresql_with={"fillfactor": 50},
)

# A UUID identifies a device world-wide, so its primary key also excludes workers of other backends on the same host.
device_leases = sa.Table(
    "device_leases",
    metadata,
    sa.Column("device_uuid", sa.Text, primary_key=True),
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("leases.attempt_id", ondelete="CASCADE"), nullable=False),
    sa.Index("ix_device_leases_attempt_id", "attempt_id"),
)

device_uses = sa.Table(
    "device_uses",
    metadata,
    sa.Column("device_uuid", sa.Text, primary_key=True),
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("attempts.id"), nullable=False),
)

lease_events = sa.Table(
    "lease_events",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("attempts.id"), nullable=False),
    sa.Column("run_id", sa.Uuid, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("silent_s", sa.Double, nullable=False),
    sa.CheckConstraint("kind IN ('suspect', 'recovered')", name="kind"),
    sa.Index("ix_lease_events_run_id", "run_id", "id"),
)

# --- evidence: uploaded chunks, completion markers of processes, and their logs

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column("attempt_id", sa.Uuid, primary_key=True),
    sa.Column("process", sa.Text, primary_key=True),
    sa.Column("stream", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("t_min_ns", sa.BigInteger),
    sa.Column("t_max_ns", sa.BigInteger),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    # Each partition is vacuumed and indexed alone; the migration creates them.
    postgresql_partition_by="HASH (attempt_id)",
)

process_results = sa.Table(
    "process_results",
    metadata,
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("attempts.id"), primary_key=True),
    sa.Column("process", sa.Text, primary_key=True),
    sa.Column("streams", JSONB, nullable=False),
    sa.Column("summary", JSONB, nullable=False),
    sa.Column("completed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

logs = sa.Table(
    "logs",
    metadata,
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("attempts.id"), primary_key=True),
    sa.Column("process", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
)

# --- aggregation: results, keyed by the digest of their inputs

aggregates = sa.Table(
    "aggregates",
    metadata,
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("attempts.id"), primary_key=True),
    sa.Column("key", sa.LargeBinary, primary_key=True),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("parameters", JSONB, nullable=False),
    sa.Column("evidence_sha256", sa.LargeBinary, nullable=False),
    # JSON, not JSONB: it keeps the canonical text byte for byte.
    sa.Column("result", JSON, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Index("ix_aggregates_run_id", "run_id", "created_at"),
)
