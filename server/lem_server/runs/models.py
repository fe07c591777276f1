"""Tables of runs, the allowed transitions, and the append-only log of transitions."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
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
