"""The oldest PostgreSQL that is supported: schema, leases, evidence and results work on version 15."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.folders import database_folder
from factories.runs import run_ids, submit
from factories.schema import remove_schema
from factories.worker import FakeWorker, plain_evidence
from lem_domain.results.run import RunResult
from lem_server.database.engine import OLDEST_MAJOR, require_supported_version
from lem_server.database.engine import database_url as checked_url
from lem_server.database.migrate import upgrade

BIN = Path(f"/usr/lib/postgresql/{OLDEST_MAJOR}/bin")
RUNUSER = shutil.which("runuser")


def unavailable() -> str | None:
    """Why this machine can't run it."""
    if not (BIN / "initdb").exists():
        return f"PostgreSQL {OLDEST_MAJOR} is not installed in {BIN}"
    if os.geteuid() == 0:
        if RUNUSER is None:
            return "PostgreSQL does not run as root and there is no runuser"
        if "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
            return "PostgreSQL does not run as root and there is no user postgres"
    return None


pytestmark = [pytest.mark.anyio, pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))]


def as_postgres(*command: str | Path) -> None:
    """Run a command as somebody whom PostgreSQL accepts."""
    prefix = [RUNUSER, "-u", "postgres", "--"] if os.geteuid() == 0 else []
    subprocess.run([*map(str, filter(None, prefix)), *map(str, command)], check=True, capture_output=True, cwd="/")


@pytest.fixture(scope="module")
def postgres15() -> Iterator[URL]:
    """A PostgreSQL 15 on a unix socket; its folder's name is short, because a socket's may not be long."""
    folder = database_folder("lem15-")
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        data = folder / "data"
        as_postgres(BIN / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync")
        settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=40"
        as_postgres(BIN / "pg_ctl", "-D", data, "-w", "-t", "60", "-l", folder / "log", "-o", settings, "start")
        try:
            yield checked_url(f"postgresql://postgres@/postgres?host={folder}")
        finally:
            as_postgres(BIN / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database_url(postgres15: URL) -> Iterator[URL]:
    """Its database with the schema at head; the application's fixtures use it in place of the embedded one."""
    asyncio.run(upgrade(postgres15))
    yield postgres15
    asyncio.run(remove_schema(postgres15))


@pytest.fixture
async def worker(api: httpx.AsyncClient) -> AsyncIterator[FakeWorker]:
    """A worker that is registered."""
    yield await FakeWorker(api).ready()


async def test_it_is_the_oldest_supported_version(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        number = int((await connection.execute(text("SHOW server_version_num"))).scalar_one())
    assert number // 10_000 == OLDEST_MAJOR == 15
    await require_supported_version(engine)


async def test_a_run_goes_from_its_submission_to_its_result(api: httpx.AsyncClient, worker: FakeWorker) -> None:
    campaign = await submit(api)
    [run] = await run_ids(api, campaign)
    evidence = plain_evidence(seconds=4, watts=50.0, chunk_rows=10)
    assignment = await worker.whole_attempt(evidence)
    assert assignment.run_id == run

    answer = await api.post(f"/api/v1/runs/{run}:aggregate")
    assert answer.status_code == 200, answer.text
    result = RunResult.model_validate_json(answer.content)
    assert result.work.generated_tokens == 16
    assert result.energy.total.joules == pytest.approx(200, rel=1e-6)
    assert (await api.get(f"/api/v1/runs/{run}/aggregate")).content == answer.content

    view = (await api.get(f"/api/v1/runs/{run}")).json()
    assert (view["state"], view["attempts"]) == ("aggregated", 1)
    chunk = evidence.chunks()[0]
    raw = await api.get(
        f"/api/v1/attempts/{assignment.attempt_id}/processes/{chunk.process}/streams/{chunk.stream.value}"
        f"/chunks/{chunk.seq}"
    )
    assert raw.content == chunk.body
    results = (await api.get(f"/api/v1/campaigns/{campaign['id']}/results")).json()
    assert results["experiments"][0]["outcomes"][0]["state"] == "aggregated"


async def test_a_campaign_is_planned_listed_and_cancelled(api: httpx.AsyncClient, worker: FakeWorker) -> None:
    body = {"name": "sweep", "experiment": {"backend": "simulated", "model": "m"}, "execution": {"cycles": 3}}
    planned = await api.post("/api/v1/campaigns:plan", json=body)
    assert len(planned.json()["runs"]) == 3
    campaign = (await api.post("/api/v1/campaigns", json=body)).json()
    assert campaign["id"] in {one["id"] for one in (await api.get("/api/v1/campaigns")).json()["items"]}
    assignment = await worker.started()
    cancelled = (await api.post(f"/api/v1/campaigns/{campaign['id']}:cancel")).json()
    assert (cancelled["runs"]["cancelled"], cancelled["runs"]["running"]) == (2, 1)
    answer = (await worker.beat(assignment.attempt_id)).json()
    assert answer["attempts"][0]["attempt_id"] == assignment.attempt_id
    assert (await worker.end(assignment.attempt_id, outcome="cancelled", reason="user_cancelled")).status_code == 200
    view = (await api.get(f"/api/v1/campaigns/{campaign['id']}")).json()
    assert view["runs"]["cancelled"] == 3


async def test_workers_that_claim_at_once_get_different_runs(api: httpx.AsyncClient) -> None:
    await submit(api, execution={"cycles": 4})
    workers = [await FakeWorker(api).ready() for _ in range(6)]
    answers = await asyncio.gather(*(one.claim() for one in workers))
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [204] * 2
    assert len({answer.json()["run_id"] for answer in answers if answer.status_code == 200}) == 4


async def test_a_claim_that_waits_hears_of_a_new_campaign(api: httpx.AsyncClient, worker: FakeWorker) -> None:
    waiting = asyncio.create_task(worker.claim(wait_s=20))
    campaign = await submit(api)
    answer = await waiting
    assert answer.status_code == 200
    assert [answer.json()["run_id"]] == await run_ids(api, campaign)
