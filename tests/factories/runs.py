"""Runs in any state, as their users, workers and the server would bring them there, by SQL of the test's own."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from factories.evidence import Evidence
from lem_domain.ids import IdKind, format_id, parse_id
from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_domain.states import ActorKind
from lem_server.aggregation.identity import canonical_bytes
from lem_server.aggregation.result import aggregate
from lem_server.runs.transitions import set_actor

EXPERIMENT: dict[str, Any] = {"backend": "simulated", "model": "builtin:tiny-llama"}


def campaign_body(**keys: Any) -> dict[str, Any]:
    """A campaign of the simulated backend; one experiment and one run unless told otherwise, on any device."""
    execution = {"placement": "any", **keys.pop("execution", {})}
    return {"name": "a campaign", "experiment": EXPERIMENT, "execution": execution, **keys}


async def submit(api: httpx.AsyncClient, **keys: Any) -> dict[str, Any]:
    """Submit a campaign; its view."""
    answer = await api.post("/api/v1/campaigns", json=campaign_body(**keys))
    assert answer.status_code == 201, answer.text
    view: dict[str, Any] = answer.json()
    return view


async def run_ids(api: httpx.AsyncClient, campaign: dict[str, Any]) -> list[str]:
    """The campaign's runs in order, at most 500."""
    answer = await api.get("/api/v1/runs", params={"campaign_id": campaign["id"], "limit": 500})
    return [run["id"] for run in answer.json()["items"]]


async def claim(engine: AsyncEngine, run_id: str, *, progress: dict[str, Any] | None = None) -> str:
    """A worker of its own claims the run: `queued` to `initialised`. Returns the attempt."""
    run, attempt, worker = parse_id(IdKind.RUN, run_id), uuid4(), uuid4()
    async with engine.begin() as connection:
        await connection.execute(
            text("""
                INSERT INTO workers (id, boot_id, name, host, backend, devices, versions, labels)
                VALUES (:id, :id, 'worker-1', 'host-1', 'simulated',
                        '[{"uuid": "SIM-0", "kind": "simulated", "name": "Simulated"}]', '{}', '{}')
            """),
            {"id": worker},
        )
        await connection.execute(
            text("""
                INSERT INTO attempts (id, run_id, number, worker_id, boot_id, claim_id, devices, device_details)
                SELECT :id, id, attempts + 1, :worker, :worker, gen_random_uuid(), ARRAY['SIM-0'],
                       '[{"uuid": "SIM-0", "kind": "simulated", "name": "Simulated"}]'
                  FROM runs WHERE id = :run
            """),
            {"id": attempt, "worker": worker, "run": run},
        )
        await connection.execute(
            text("""
                INSERT INTO leases (attempt_id, run_id, worker_id, boot_id, until, progress)
                VALUES (:id, :run, :worker, :worker, now() + interval '1 hour', CAST(:progress AS jsonb))
            """),
            {"id": attempt, "run": run, "worker": worker, "progress": progress and json.dumps(progress)},
        )
        await set_actor(connection, ActorKind.WORKER, format_id(IdKind.WORKER, worker))
        await connection.execute(
            text("""
                UPDATE runs SET state = 'initialised', current_attempt = :id, attempts = attempts + 1 WHERE id = :run
            """),
            {"id": attempt, "run": run},
        )
    return format_id(IdKind.ATTEMPT, attempt)


async def set_progress(engine: AsyncEngine, run_id: str, progress: dict[str, Any]) -> None:
    """A beat brings progress."""
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE leases SET progress = CAST(:progress AS jsonb) WHERE run_id = :run"),
            {"progress": json.dumps(progress), "run": parse_id(IdKind.RUN, run_id)},
        )


async def move(
    engine: AsyncEngine,
    run_id: str,
    state: str,
    *,
    actor: ActorKind = ActorKind.WORKER,
    reason: str | None = None,
    message: str | None = None,
) -> None:
    """Move a run along one edge; its lease and attempt end where the state says so."""
    async with engine.begin() as connection:
        await move_in(connection, run_id, state, actor=actor, reason=reason, message=message)


async def move_in(
    connection: AsyncConnection,
    run_id: str,
    state: str,
    *,
    actor: ActorKind = ActorKind.WORKER,
    reason: str | None = None,
    message: str | None = None,
) -> None:
    """The same inside a transaction of the caller's."""
    await set_actor(connection, actor, "tester")
    run = parse_id(IdKind.RUN, run_id)
    await connection.execute(
        text("UPDATE runs SET state = :state, reason = :reason, message = :message WHERE id = :run"),
        {"state": state, "reason": reason, "message": message, "run": run},
    )
    if state in ("completed", "failed", "interrupted", "cancelled"):
        await connection.execute(
            text("""
                UPDATE attempts SET ended_at = now(), outcome = :state, reason = :reason, message = :message
                 WHERE run_id = :run AND ended_at IS NULL
            """),
            {"state": state, "reason": reason, "message": message, "run": run},
        )
        await connection.execute(text("DELETE FROM leases WHERE run_id = :run"), {"run": run})


async def complete(engine: AsyncEngine, run_id: str) -> str:
    """Claim, run and complete a run. Returns its attempt."""
    attempt = await claim(engine, run_id)
    await move(engine, run_id, "running")
    await move(engine, run_id, "completed")
    return attempt


async def store_aggregate(engine: AsyncEngine, run_id: str, attempt_id: str, result: str) -> None:
    """The server aggregated a completed run with this result (JSON text)."""
    async with engine.begin() as connection:
        await connection.execute(
            text("""
                INSERT INTO aggregates (key, run_id, attempt_id, method, parameters, evidence_sha256, result)
                VALUES (:key, :run, :attempt, CAST(:result AS json) ->> 'method', '{}', '\\x00', CAST(:result AS json))
            """),
            {
                "key": uuid4().bytes,
                "run": parse_id(IdKind.RUN, run_id),
                "attempt": parse_id(IdKind.ATTEMPT, attempt_id),
                "result": result,
            },
        )
        await set_actor(connection, ActorKind.SERVER, "tester")
        await connection.execute(
            text("UPDATE runs SET state = 'aggregated' WHERE id = :run AND state = 'completed'"),
            {"run": parse_id(IdKind.RUN, run_id)},
        )


def result_json(watts: float = 100.0, output: str | None = None, method: MethodVersion = DEFAULT_METHOD) -> str:
    """The aggregate of a run of known power; `output` is a hexadecimal digit for the digest of its tokens."""
    made = Evidence()
    if output is not None:
        made.summaries["rank-0"]["outputs_sha256"] = output * 64
    made.request(0, 0.0, [1.0, 6.0, 12.0])
    made.power([number * 0.1 - 1 for number in range(141)], joules=lambda time: watts * time + 1000)
    made.method = method
    stored = made.stored()
    return canonical_bytes(aggregate(stored.inputs, stored.source)).decode()


async def write_log(engine: AsyncEngine, attempt_id: str, process: str, seq: int, words: str) -> None:
    """A process wrote something."""
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO logs (attempt_id, process, seq, text) VALUES (:attempt, :process, :seq, :words)"),
            {"attempt": parse_id(IdKind.ATTEMPT, attempt_id), "process": process, "seq": seq, "words": words},
        )


def uuid_of(kind: IdKind, public: dict[str, Any]) -> UUID:
    """The UUID of a view."""
    return parse_id(kind, public["id"])
