"""What the heaviest requests take of a real server's memory, at the limits that the server sets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import numpy as np
import pytest
from sqlalchemy.engine import URL

from factories.runs import campaign_body, result_json
from factories.server_process import Server, folder_for_everybody
from factories.worker import FakeWorker
from lem_domain.evidence.codec import encode_chunk
from lem_domain.evidence.streams import MAX_CHUNK_BYTES, MAX_CHUNK_DECODED_BYTES, StreamName
from lem_domain.tables import TableFormat

pytestmark = pytest.mark.anyio

CEILING_MB = 64
EXPERIMENTS, CYCLES = 10, 10_000
"""As many runs as a campaign may have."""
DISTINCT = 10_000
"""Experiments of a plan, each 9 kB as an object; only 1 kB of it is held."""
AGGREGATED = 1000
"""Of the runs, so many have a result; each costs the same, whatever came before it."""


@pytest.fixture
async def server(database_url: URL) -> AsyncIterator[Server]:
    """A server of its own process over the test's database."""
    with folder_for_everybody() as folder:
        made = Server(folder / "data", LEM_DATABASE_URL=database_url.render_as_string(hide_password=False))
        try:
            made.start()
            yield made
        finally:
            made.clean_up()


class Peak:
    """The most memory that a process holds from now on, beyond what it holds now."""

    def __init__(self, pid: int) -> None:
        self._status, self._before = Path(f"/proc/{pid}/status"), 0.0
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # begins the high-water mark anew (proc(5))
        self._before = self._mb("VmRSS")

    def mb(self) -> float:
        return self._mb("VmHWM") - self._before

    def _mb(self, name: str) -> float:
        line = next(one for one in self._status.read_text().splitlines() if one.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024 / 1e6


async def give_results(database_url: URL) -> None:
    """An aggregate for some of the runs, as if they had been measured."""
    url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(
            """
            WITH chosen AS (SELECT id FROM runs ORDER BY experiment_id, cycle LIMIT $1),
                 moved AS (UPDATE runs SET state = 'aggregated', current_attempt = id
                            WHERE id IN (SELECT id FROM chosen))
            INSERT INTO aggregates (key, run_id, attempt_id, method, parameters, evidence_sha256, result)
            SELECT decode(md5(id::text), 'hex'), id, id, 'm1', '{}', '\\x00', $2::json FROM chosen
            """,
            AGGREGATED,
            result_json(),
        )
    finally:
        await connection.close()


@pytest.mark.slow
async def test_the_largest_campaign_is_taken_and_its_results_are_reported(server: Server, database_url: URL) -> None:
    async with server.api() as api:
        (await api.get("/api/v1/campaigns")).raise_for_status()
        body = campaign_body(sweep={"output.max_tokens": list(range(1, EXPERIMENTS + 1))}, execution={"cycles": CYCLES})
        peak = Peak(server.pid)
        answer = await api.post("/api/v1/campaigns", json=body, timeout=300)
        assert answer.status_code == 201, answer.text
        submitting_mb = peak.mb()
        campaign = answer.json()["id"]
    await give_results(database_url)
    # What the first request left free is none that the second needs less.
    assert server.stop() == 0
    server.start()
    async with server.api() as api:
        (await api.get("/api/v1/campaigns")).raise_for_status()
        peak = Peak(server.pid)
        assert await received(api, f"/api/v1/campaigns/{campaign}/results") > 10e6
        telling_mb = peak.mb()
    assert submitting_mb < CEILING_MB
    assert telling_mb < CEILING_MB


async def test_a_campaign_of_distinct_experiments_is_taken(server: Server) -> None:
    async with server.api() as api:
        (await api.get("/api/v1/campaigns")).raise_for_status()
        body = campaign_body(sweep={"decoding.seed": list(range(DISTINCT))})
        peak = Peak(server.pid)
        answer = await api.post("/api/v1/campaigns", json=body, timeout=300)
        assert answer.status_code == 201, answer.text
        assert peak.mb() < CEILING_MB


async def test_a_plan_is_reported_without_holding_its_experiments(server: Server) -> None:
    async with server.api() as api:
        (await api.get("/api/v1/campaigns")).raise_for_status()
        peak = Peak(server.pid)
        body = campaign_body(sweep={"decoding.seed": list(range(DISTINCT))})
        assert await received(api, "/api/v1/campaigns:plan", body) > 1000 * DISTINCT
        assert peak.mb() < CEILING_MB


async def received(api: httpx.AsyncClient, path: str, body: dict[str, Any] | None = None) -> int:
    """How many bytes an answer has; none are kept."""
    size = 0
    async with api.stream("GET" if body is None else "POST", path, json=body, timeout=300) as answer:
        assert answer.status_code == 200
        async for piece in answer.aiter_bytes():
            size += len(piece)
    return size


async def test_the_largest_chunk_is_taken_and_given_back(server: Server) -> None:
    rows = MAX_CHUNK_DECODED_BYTES // 24
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "request_id": np.repeat(np.arange(rows // 1000 + 1), 1000)[:rows],
        "index": np.tile(np.arange(1000), rows // 1000 + 1)[:rows],
        "time_ns": np.cumsum(random.integers(1, 255, rows)),
    }
    body = encode_chunk(StreamName.TOKENS, columns)
    assert len(body) > MAX_CHUNK_BYTES / 2
    async with server.api() as api:
        (await api.post("/api/v1/campaigns", json=campaign_body())).raise_for_status()
        worker = await FakeWorker(api).ready()
        attempt = (await worker.started()).attempt_id
        place = (attempt, body, "rank-0", StreamName.TOKENS)
        assert (await worker.put_bytes(*place, seq=0)).status_code == 201
        peak = Peak(server.pid)
        answer = await worker.put_bytes(*place, seq=1)
        assert answer.status_code == 201, answer.text
        taking_mb = peak.mb()
        peak = Peak(server.pid)
        path = f"/api/v1/attempts/{attempt}/processes/rank-0/streams/tokens/chunks/1"
        assert await received(api, path) == len(body)
        giving_mb = peak.mb()
    assert taking_mb < CEILING_MB
    assert giving_mb < CEILING_MB


TOKEN_ROWS, CHUNK_ROWS = 8_000_000, 100_000
"""A chunk of so many tokens has 500 kB, twice that of a real worker."""


@pytest.mark.slow
async def test_a_table_of_eight_million_tokens_is_exported(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)

    async def campaign_of(api: httpx.AsyncClient, chunks: int) -> str:
        body = campaign_body(sweep={"simulated.batch_size": [1], "window.min_duration_s": [0.5]})
        campaign: str = (await api.post("/api/v1/campaigns", json=body)).json()["id"]
        worker = await FakeWorker(api).ready()
        attempt = (await worker.started()).attempt_id
        for seq in range(chunks):
            columns: dict[str, Any] = {
                "request_id": np.repeat(np.arange(seq * 100, seq * 100 + 100), CHUNK_ROWS // 100),
                "index": np.tile(np.arange(CHUNK_ROWS // 100), 100),
                "time_ns": 10**15 + seq * 10**9 + np.cumsum(random.integers(1, 10_000, CHUNK_ROWS)),
            }
            chunk = encode_chunk(StreamName.TOKENS, columns)
            assert (await worker.put_bytes(attempt, chunk, "rank-0", StreamName.TOKENS, seq)).status_code == 201
        await worker.end(attempt)
        return campaign

    async with server.api() as api:
        small, large = await campaign_of(api, 1), await campaign_of(api, TOKEN_ROWS // CHUNK_ROWS)
    for form in (
        TableFormat.ARROW,
        TableFormat.PARQUET,
        TableFormat.CSV,
        TableFormat.JSON,
    ):  # JSON lines are a part of JSON
        # What one format left free is none that the next needs less.
        assert server.stop() == 0
        server.start()
        async with server.api() as api:
            path = "/api/v1/campaigns/{}/tables/tokens?format=" + form
            started = Peak(server.pid)
            await received(api, path.format(small))  # Arrow imports pandas if it is installed: some 40 MB
            first_mb = started.mb()
            peak = Peak(server.pid)
            size = await received(api, path.format(large))
            exporting_mb = peak.mb()
        with capsys.disabled():
            print(  # noqa: T201 - the figure that the test is for
                f"{form}: {size / 1e6:.0f} MB of {TOKEN_ROWS} tokens in {exporting_mb:.1f} MB of memory, after "
                f"{first_mb:.1f} MB for the first {CHUNK_ROWS}"
            )
        assert exporting_mb < CEILING_MB
