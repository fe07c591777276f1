"""Tables of runs, the allowed transitions, and the append-only log of transitions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import UserDefinedType

from lem_domain.states import ActorKind, RunState
from lem_server.database.metadata import metadata


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


run_edges = Table(
    "run_edges",
    metadata,
    Column("source", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    Column("actor", Text, primary_key=True),
    CheckConstraint(_one_of("source", RunState), name="source"),
    CheckConstraint(_one_of("target", RunState), name="target"),
    CheckConstraint(_one_of("actor", ActorKind), name="actor"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("campaign_id", Uuid, ForeignKey("campaigns.id"), nullable=False),
    Column("experiment_id", Uuid, ForeignKey("experiments.id"), nullable=False),
    Column("cycle", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("backend", Text, nullable=False),
    Column("device_count", SmallInteger, nullable=False),
    Column("device_uuids", ARRAY(Text)),
    Column("device_like", Text),
    Column("priority", SmallInteger, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'queued'")),
    Column("reason", Text),
    Column("message", Text),
    Column("not_before", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("current_attempt", Uuid),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("retries_left", SmallInteger, nullable=False),
    Column("losses_left", SmallInteger, nullable=False),
    Column("cancel_requested_at", DateTime(timezone=True)),
    Column("version", Integer, nullable=False, server_default=text("0")),
    Column("imported", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    UniqueConstraint("campaign_id", "position", name="uq_runs_campaign_id_position"),
    UniqueConstraint("experiment_id", "cycle", name="uq_runs_experiment_id_cycle"),
    CheckConstraint(_one_of("state", RunState), name="state"),
    CheckConstraint("state NOT IN ('initialised', 'running') OR current_attempt IS NOT NULL", name="live_has_attempt"),
)
# A claim reads the queue of each campaign and backend in order.
Index(
    "ix_runs_claim",
    runs.c.campaign_id,
    runs.c.backend,
    runs.c.position,
    postgresql_where=text("state = 'queued'"),
)
Index("ix_runs_campaign_id_state", runs.c.campaign_id, runs.c.state)

# Readers order the log by (xact, id), not by id: ids are drawn before a transaction commits, so that a lower id can
# appear after a higher one; an entry whose xact is below the snapshot's xmin has no unseen predecessor.
run_transitions = Table(
    "run_transitions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("xact", TransactionId, nullable=False, server_default=text("pg_current_xact_id()")),
    Column("run_id", Uuid, ForeignKey("runs.id"), nullable=False),
    Column("campaign_id", Uuid, nullable=False),
    Column("source", Text),
    Column("target", Text, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("actor", Text, nullable=False),
    Column("actor_name", Text, nullable=False),
    Column("reason", Text),
    Column("message", Text),
    Column("attempt_id", Uuid),
    # True for entries that an import brought; the log triggers wrote all others.
    Column("imported", Boolean, nullable=False, server_default=text("false")),
    Index("ix_run_transitions_run_id", "run_id", "id"),
    Index("ix_run_transitions_campaign_id", "campaign_id", "xact", "id"),
)
