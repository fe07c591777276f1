"""The states of a run, its legal transitions with their actors, and the reasons for which a run ends.

`EDGES` is the only list of transitions: a migration copies it into the table that a database trigger checks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class RunState(StrEnum):
    """The state of a run."""

    QUEUED = "queued"
    INITIALISED = "initialised"
    RUNNING = "running"
    COMPLETED = "completed"
    AGGREGATED = "aggregated"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"


class ActorKind(StrEnum):
    """The kind of actor that changes the state of a run."""

    USER = "user"
    WORKER = "worker"
    SERVER = "server"


class Edge(NamedTuple):
    """One legal transition and its actor."""

    source: RunState
    target: RunState
    actor: ActorKind


class FailureReason(StrEnum):
    """Why an attempt ended without a result, or why a completed run is unusable."""

    OUT_OF_MEMORY = "out_of_memory"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    BACKEND_INITIALISATION = "backend_initialisation"
    INFERENCE = "inference"
    TIMEOUT = "timeout"
    SILENT = "silent"
    WORKER_LOST = "worker_lost"
    WORKER_SHUTDOWN = "worker_shutdown"
    NOT_AS_REQUESTED = "not_as_requested"
    INVALID_EVIDENCE = "invalid_evidence"
    USER_CANCELLED = "user_cancelled"
    USER_PAUSED = "user_paused"
    FAIL_FAST = "fail_fast"
    """It was cancelled because another run of the campaign failed (`fail_fast`)."""


class CampaignState(StrEnum):
    """The state of a campaign. Users set active, paused and cancelled; completed follows from its runs."""

    ACTIVE = "active"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    COMPLETED = "completed"


_S, _A = RunState, ActorKind

EDGES: frozenset[Edge] = frozenset(
    {
        Edge(_S.QUEUED, _S.INITIALISED, _A.WORKER),
        Edge(_S.QUEUED, _S.CANCELLED, _A.USER),
        Edge(_S.QUEUED, _S.CANCELLED, _A.SERVER),
        Edge(_S.INITIALISED, _S.RUNNING, _A.WORKER),
        Edge(_S.INITIALISED, _S.FAILED, _A.WORKER),
        Edge(_S.INITIALISED, _S.INTERRUPTED, _A.WORKER),
        Edge(_S.INITIALISED, _S.INTERRUPTED, _A.SERVER),
        Edge(_S.INITIALISED, _S.CANCELLED, _A.WORKER),
        Edge(_S.INITIALISED, _S.CANCELLED, _A.SERVER),
        Edge(_S.RUNNING, _S.COMPLETED, _A.WORKER),
        Edge(_S.RUNNING, _S.FAILED, _A.WORKER),
        Edge(_S.RUNNING, _S.INTERRUPTED, _A.WORKER),
        Edge(_S.RUNNING, _S.INTERRUPTED, _A.SERVER),
        Edge(_S.RUNNING, _S.CANCELLED, _A.WORKER),
        Edge(_S.RUNNING, _S.CANCELLED, _A.SERVER),
        Edge(_S.COMPLETED, _S.AGGREGATED, _A.SERVER),
        Edge(_S.COMPLETED, _S.FAILED, _A.SERVER),
        Edge(_S.FAILED, _S.QUEUED, _A.USER),
        Edge(_S.FAILED, _S.QUEUED, _A.SERVER),
        Edge(_S.INTERRUPTED, _S.QUEUED, _A.USER),
        Edge(_S.INTERRUPTED, _S.QUEUED, _A.SERVER),
        Edge(_S.INTERRUPTED, _S.FAILED, _A.SERVER),
        Edge(_S.INTERRUPTED, _S.CANCELLED, _A.USER),
    }
)
"""`interrupted` to `failed` is the quarantine: the budget of lost workers is used up. A live run is cancelled by its
worker, or by the server if the worker's lease ends first. The server cancels queued runs of a campaign with `fail_fast`
after another of its runs failed."""

LIVE_STATES: frozenset[RunState] = frozenset({RunState.INITIALISED, RunState.RUNNING})
"""States in which a worker holds a lease on the run."""

ENDED_STATES: frozenset[RunState] = frozenset(
    {RunState.COMPLETED, RunState.AGGREGATED, RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED}
)
"""States that only a user's request or an aggregation changes."""
