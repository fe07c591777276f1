"""A minute of chaos over real processes, and the auditor itself: it must see what it is there to see."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import httpx
import pytest
from sqlalchemy.engine import URL

from chaos import audit
from chaos.journal import Acknowledged, Entries
from chaos.run import make_world, run
from chaos.user import Submitted
from factories.runs import submit
from factories.worker import FakeWorker, plain_evidence
from lem_domain.ids import IdKind, parse_id

pytestmark = pytest.mark.anyio

SEED = 4


@pytest.mark.slow
async def test_a_minute_of_chaos_loses_nothing_and_leaves_nothing_behind() -> None:
    world = make_world()
    told: list[str] = []
    try:
        report = await run(world, seconds=60, seed=SEED, tell=told.append)
    finally:
        await world.destroy()
    assert report.is_clean, "\n".join([*told, report.text(), f"what the processes said is in {world.folder}"])
    assert len({fault.kind for fault in report.faults}) > 10, told
    assert report.figures["runs completed"], report.text()
    world.forget()


# --- the auditor ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def database(database_url: URL) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection that no trigger watches."""
    connection = await asyncpg.connect(database_url.set(drivername="postgresql").render_as_string(hide_password=False))
    await connection.execute("SET session_replication_role = replica")
    yield connection
    await connection.close()


class Measured:
    """A completed run, and what its worker was told."""

    def __init__(self, campaign: str, attempt: str, chunks: list[Acknowledged]) -> None:
        self.campaign = Submitted(parse_id(IdKind.CAMPAIGN, campaign), "a campaign", 1)
        self.entries = Entries(frozenset(chunks), frozenset({attempt}))


@pytest.fixture
async def measured(api: httpx.AsyncClient) -> Measured:
    """A run that went well."""
    campaign = await submit(api)
    evidence = plain_evidence(chunk_rows=7)
    assignment = await (await FakeWorker(api).ready()).whole_attempt(evidence)
    attempt = assignment.attempt_id
    chunks = [
        Acknowledged(attempt, one.process, one.stream.value, one.seq, hashlib.sha256(one.body).hexdigest(), True)
        for one in evidence.chunks()
    ]
    return Measured(campaign["id"], attempt, chunks)


async def found_by(database: asyncpg.Connection, api: httpx.AsyncClient, measured: Measured) -> dict[str, list[str]]:
    """Everything that the auditor finds, by kind."""
    found = {
        "chunks": (await audit.acknowledged_chunks(measured.entries, api))[0],
        "completions": await audit.acknowledged_completions(measured.entries, database),
        "transitions": (await audit.illegal_transitions(database))[0],
        "stuck": await audit.stuck_runs(database),
        "leases": (await audit.overlapping_leases(database))[0],
        "late": await audit.late_writes(database),
        "manifests": (await audit.wrong_completions(database))[0],
        "corrupt": (await audit.corrupt_chunks(database))[0],
        "campaigns": await audit.wrong_campaigns(database, [measured.campaign]),
        "processes": await audit.left_processes(database),
    }
    return {kind: some for kind, some in found.items() if some}


async def test_the_auditor_finds_nothing_where_all_went_well(
    database: asyncpg.Connection, api: httpx.AsyncClient, measured: Measured
) -> None:
    assert await found_by(database, api, measured) == {}
    wrong, count = await audit.aggregate_all(database, api)
    assert (wrong, count) == ([], 1)


A_CHUNK = "process = 'rank-0' AND stream = 'tokens' AND seq = 1"

OF_CHUNKS = {
    f"DELETE FROM chunks WHERE {A_CHUNK}": {"chunks", "manifests"},
    f"UPDATE chunks SET body = 'x', sha256 = sha256('x'), bytes = 1 WHERE {A_CHUNK}": {"chunks", "manifests"},
    f"UPDATE chunks SET body = 'x' WHERE {A_CHUNK}": {"chunks", "corrupt"},
}

OF_ROWS = {
    f"UPDATE chunks SET received_at = now() + interval '1 h' WHERE {A_CHUNK}": {"late"},
    "UPDATE attempts SET outcome = 'failed'": {"completions", "manifests"},
    "UPDATE runs SET state = 'running'": {"transitions", "stuck"},
    "UPDATE run_transitions SET actor = 'user' WHERE target = 'running'": {"transitions"},
    "DELETE FROM run_transitions WHERE target = 'running'": {"transitions"},
    "DELETE FROM runs": {"transitions", "campaigns"},
    "UPDATE attempts SET ended_at = NULL, outcome = NULL": {"completions", "leases", "manifests"},
    "INSERT INTO attempts (id, run_id, number, worker_id, boot_id, claim_id, devices, device_details, claimed_at, "
    "ended_at, outcome) SELECT gen_random_uuid(), run_id, 2, worker_id, boot_id, gen_random_uuid(), devices, "
    "device_details, ended_at - interval '1 us', ended_at, 'failed' FROM attempts": {"leases"},
}


async def test_the_auditor_sees_evidence_that_is_gone_or_changed(
    database: asyncpg.Connection, api: httpx.AsyncClient, measured: Measured
) -> None:
    await database.execute("CREATE TABLE kept AS SELECT * FROM chunks")
    for damage, kinds in OF_CHUNKS.items():
        await database.execute(damage)
        assert set(await found_by(database, api, measured)) == kinds, damage
        await database.execute("DELETE FROM chunks")
        await database.execute("INSERT INTO chunks SELECT * FROM kept")
    assert await found_by(database, api, measured) == {}


async def test_the_auditor_sees_rows_that_contradict_each_other(
    database: asyncpg.Connection, api: httpx.AsyncClient, measured: Measured
) -> None:
    for damage, kinds in OF_ROWS.items():
        undone = database.transaction()
        await undone.start()
        await database.execute(damage)
        assert set(await found_by(database, api, measured)) == kinds, damage
        await undone.rollback()
    assert await found_by(database, api, measured) == {}


async def test_the_auditor_sees_a_claim_of_what_was_cancelled_or_paused_by_then(
    database: asyncpg.Connection, api: httpx.AsyncClient, measured: Measured
) -> None:
    created, claimed = await database.fetchrow(
        "SELECT min(at) FILTER (WHERE target = 'queued'), min(at) FILTER (WHERE target = 'initialised') "
        "FROM run_transitions"
    )
    measured.campaign.cancelled_at = created
    assert set(await found_by(database, api, measured)) == {"campaigns"}
    measured.campaign.cancelled_at = None
    ended = await database.fetchval("SELECT ended_at FROM attempts")
    assert created < claimed < ended
    measured.campaign.paused.append((created, ended))
    assert set(await found_by(database, api, measured)) == {"campaigns"}


async def test_the_auditor_sees_a_campaign_that_was_stored_twice(
    database: asyncpg.Connection, api: httpx.AsyncClient, measured: Measured
) -> None:
    await submit(api)
    assert set(await found_by(database, api, measured)) == {"campaigns", "stuck"}


async def test_the_auditor_sees_a_completion_that_was_promised_and_is_not_there(
    database: asyncpg.Connection, measured: Measured
) -> None:
    promised = Entries(measured.entries.chunks, frozenset({f"att_{uuid4().hex}"}))
    assert len(await audit.acknowledged_completions(promised, database)) == 1
