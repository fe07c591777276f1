"""The requests of a run with the energy of each, over HTTP: every format, the stored result's parameters, refusals."""

from __future__ import annotations

import io
import json
import os
from csv import DictReader

import httpx
import pyarrow as pa
import pytest

from factories.runs import run_ids, submit
from factories.worker import FakeWorker, plain_evidence
from lem_domain.results.requests import RequestTable
from lem_server.aggregation import service
from lem_server.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
async def run(api: httpx.AsyncClient) -> str:
    """A completed run of one request: 16 tokens in 4 s on one device at 50 W."""
    await submit(api)
    worker = await FakeWorker(api).ready()
    return (await worker.whole_attempt(plain_evidence(seconds=4, watts=50.0, chunk_rows=10))).run_id


async def table(api: httpx.AsyncClient, run: str, **parameters: str) -> httpx.Response:
    return await api.get(f"/api/v1/runs/{run}/tables/requests", params=parameters)


async def test_it_divides_the_energy_of_the_result(
    api: httpx.AsyncClient, run: str, server_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = (await api.post(f"/api/v1/runs/{run}:aggregate")).json()
    monkeypatch.setattr(service, "LARGE_ROWS", 0)  # by a subprocess that ends with it
    answer = await table(api, run)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found = RequestTable.model_validate_json(answer.content)
    assert found.summary.total.model_dump(mode="json", exclude_none=True).items() <= result["energy"]["total"].items()
    (request,) = found.requests
    idle = found.summary.idle_energy_j.value
    assert request.energy_j is not None and idle is not None
    assert request.energy_j + idle == pytest.approx(result["energy"]["total"]["joules"], rel=1e-9)
    # No file is left, and nothing was stored.
    assert not [name for name in os.listdir(server_settings.data_dir) if name.startswith("tmp")]  # noqa: PTH208
    assert (await api.get(f"/api/v1/runs/{run}/aggregate")).json() == result


async def test_every_format_has_the_same_rows(api: httpx.AsyncClient, run: str) -> None:
    as_json = (await table(api, run)).json()
    as_csv = await table(api, run, format="csv")
    assert as_csv.headers["content-type"].startswith("text/csv")
    (row,) = DictReader(io.StringIO(as_csv.text))
    assert list(row) == list(as_json["requests"][0])
    assert float(row["energy_j"]) == as_json["requests"][0]["energy_j"]
    arrow = await table(api, run, format="arrow")
    assert arrow.headers["content-type"] == "application/vnd.apache.arrow.stream"
    with pa.ipc.open_stream(arrow.content) as reader:
        read = reader.read_all()
    assert read.to_pylist() == as_json["requests"]
    assert json.loads(read.schema.metadata[b"lem.summary"]) == as_json["summary"]


async def test_by_m1_it_has_the_requests_and_says_why_they_have_no_energy(api: httpx.AsyncClient, run: str) -> None:
    found = RequestTable.model_validate_json((await table(api, run, method="m1")).content)
    assert [one.energy_j for one in found.requests] == [None]
    assert "use m2" in str(found.summary.idle_energy_j.reason)


async def test_a_run_without_evidence_is_refused(api: httpx.AsyncClient) -> None:
    campaign = await submit(api)
    for run_id, status in (((await run_ids(api, campaign))[0], 409), ("run_" + "7" * 32, 404)):
        answer = await table(api, run_id)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
