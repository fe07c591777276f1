"""The states of a run, who may move it along which edge, and the reasons a run ends for.

The edges below are the only list of them: a migration seeds them into the table that a database trigger checks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class RunState(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    INITIALISED = "initialised"
    RUNNING = "running"
    COMPLETED = "completed"
    AGGREGATED = "aggregated"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"


class ActorKind(StrEnum):
    """Who moves a run."""

    USER = "user"
    WORKER = "worker"
    SERVER = "server"


class Edge(NamedTuple):
    """One allowed transition and who may make it."""

    source: RunState
    target: RunState
    actor: ActorKind


class FailureReason(StrEnum):
    """Why an attempt ended without a result, or why a finished run can't be used."""

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
    """Not run, because another run of the campaign failed."""


class CampaignState(StrEnum):
    """Active, paused and cancelled by its user's word; completed follows from its runs."""

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
"""`interrupted` to `failed` is the quarantine: the budget for lost workers is used up. A cancel of a live run is
carried out by its worker, or by the server when the worker's lease ends first. The server cancels what is queued where
another run failed and its campaign has `fail_fast`."""

LIVE_STATES: frozenset[RunState] = frozenset({RunState.INITIALISED, RunState.RUNNING})
"""A worker holds a lease on the run."""

ENDED_STATES: frozenset[RunState] = frozenset(
    {RunState.COMPLETED, RunState.AGGREGATED, RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED}
)
"""Nothing happens to the run any more unless somebody asks for it."""
