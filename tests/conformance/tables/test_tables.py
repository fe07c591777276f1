"""What every table does in every format: the same values, units, and names that a spreadsheet shows as text."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

import factories.worker
from factories.evidence import Evidence
from factories.runs import result_json, store_aggregate, submit
from factories.tables import read_table
from factories.worker import FakeWorker, plain_evidence
from lem_domain.tables import TableFormat, TableName
from lem_server.exports import formats, tables

pytestmark = pytest.mark.anyio

Documents = dict[TableName, dict[TableFormat, bytes]]
HOSTILE = ["-1+1", " =1", "\n=1", "＝1", "'quoted'", '=cmd|" /C calc"!A0', "a,b\r\nc"]


def evidence() -> Evidence:
    """Two requests, one of them failed, and rows of every stream."""
    made = plain_evidence(seconds=2, chunk_rows=7)
    made.request(1, 0.5, error='-1 "out of memory"\nthen =1')
    made.power([3.5], joules=lambda time: 10 * time)
    made.host_power("package", [0.0, 1.0], joules=lambda time: 30 * time + 5, method="counter")
    made.phase("rank-0", "measure", "begin", 0.0)
    made.event("rank-0", "=ready", '{"a": 1}')
    return made


@pytest.fixture
async def campaign(api: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> str:
    """One run aggregated, one completed, one failed with evidence, others queued; swept keys of every type."""
    clock = {"monotonic_ns": 1_000, "utc": "2026-03-01T09:30:00.000000001Z", "uncertainty_ns": 1}
    monkeypatch.setitem(factories.worker.ENVIRONMENT, "clock", clock)
    view = await submit(
        api,
        name="@study",
        experiments=[{"name": name, "simulated": {"batch_size": size}} for size, name in enumerate(HOSTILE, 1)],
        sweep={"window.min_duration_s": [0.5]},
    )
    worker = await FakeWorker(api).ready()
    first = await worker.whole_attempt(evidence())
    await store_aggregate(engine, first.run_id, first.attempt_id, result_json())
    await worker.whole_attempt(evidence())
    failing = await worker.started()
    await worker.send(failing.attempt_id, evidence())
    await worker.end(failing.attempt_id, message="=1+1 broke")
    return str(view["id"])


async def documents(api: httpx.AsyncClient, campaign: str) -> Documents:
    """Every table in every format."""
    return {table: {form: await exported(api, campaign, table, form) for form in TableFormat} for table in TableName}


async def exported(api: httpx.AsyncClient, campaign: str, table: TableName, form: TableFormat) -> bytes:
    answer = await api.get(f"/api/v1/campaigns/{campaign}/tables/{table}", params={"format": form})
    assert answer.status_code == 200, answer.text
    return answer.content


def types_of(parquet: bytes) -> dict[str, str]:
    return {field.name: str(field.type) for field in pq.read_schema(io.BytesIO(parquet))}


def test_every_module_is_a_table_or_format_of_its_name() -> None:
    for package, names in ((tables, TableName), (formats, TableFormat)):
        modules = {path.stem for path in Path(str(package.__file__)).parent.glob("*.py")} - {"__init__"}
        assert modules == {one.value for one in names}


async def test_every_format_has_the_same_values(api: httpx.AsyncClient, campaign: str) -> None:
    for table, written in (await documents(api, campaign)).items():
        types = types_of(written[TableFormat.PARQUET])
        expected = read_table("parquet", written[TableFormat.PARQUET], types)
        shared = {"campaign_id", "experiment_id", "experiment", "sweep.simulated.batch_size"}
        if table is not TableName.EXPERIMENTS:
            shared |= {"run_id", "cycle", "run_state"}
        assert expected
        assert all(row[name] is not None for row in expected for name in shared)
        assert {row["campaign_id"] for row in expected} == {campaign}
        assert {row["experiment"] for row in expected} <= {one["experiment"] for one in expected}
        for form, document in written.items():
            assert read_table(form, document, types) == expected, (table, form)
            _assert_refused_without_its_end(form, document)
        _assert_no_cell_is_a_formula(written[TableFormat.CSV].decode(), types)
        _assert_described(table, written, campaign)


def _assert_refused_without_its_end(form: TableFormat, document: bytes) -> None:
    if form in (TableFormat.CSV, TableFormat.JSONL):
        return  # they have no end: an aborted connection says it
    for kept in (len(document) // 2, len(document) - 3):
        with pytest.raises((pa.ArrowInvalid, ValueError)):
            read_table(form, document[:kept], {})


def _assert_no_cell_is_a_formula(document: str, types: dict[str, str]) -> None:
    for row in csv.DictReader(io.StringIO(document, newline="")):
        for name, cell in row.items():
            if types[name] == "string":
                assert cell.lstrip()[:1] not in tuple("=+-@＝＋－＠"), cell


def _assert_described(table: TableName, written: dict[TableFormat, bytes], campaign: str) -> None:
    arrow = pa.ipc.open_file(io.BytesIO(written[TableFormat.ARROW])).schema
    assert pq.read_schema(io.BytesIO(written[TableFormat.PARQUET])).equals(arrow, check_metadata=True)
    about = {name.decode(): value.decode() for name, value in arrow.metadata.items()}
    assert about["lem.table"] == table
    assert (about["lem.campaign_id"], about["lem.campaign"], about["lem.method"]) == (campaign, "@study", "m2")
    assert about["lem.open_runs"] == str(len(HOSTILE) - 3)
    assert arrow.field("sweep.simulated.batch_size").type == pa.int64()
    assert arrow.field("sweep.window.min_duration_s").type == pa.float64()
    endings = {"ns": "_ns", "s": "_s", "J": "_j", "W": "_w"}
    for field in arrow:
        unit = field.metadata[b"unit"].decode()
        assert field.metadata[b"description"]
        if unit in endings:
            assert endings[unit] in field.name, field.name


async def test_a_campaign_without_any_evidence_has_the_same_columns(api: httpx.AsyncClient, campaign: str) -> None:
    sweep = {"simulated.batch_size": [1], "window.min_duration_s": [0.5]}
    full, empty = await documents(api, campaign), await documents(api, str((await submit(api, sweep=sweep))["id"]))
    for table, written in empty.items():
        types = types_of(written[TableFormat.PARQUET])
        assert types == types_of(full[table][TableFormat.PARQUET])
        rows = {form: read_table(form, document, types) for form, document in written.items()}
        assert all(found == rows[TableFormat.PARQUET] for found in rows.values())
        assert bool(rows[TableFormat.CSV]) == (table in ("runs", "experiments"))
        assert written[TableFormat.CSV].count(b"\n") == 1 + len(rows[TableFormat.CSV])
