"""`lemctl export --table`: a table as a file that is whole or not there, or on standard output."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from factories.served import Lem, submitted
from lem_client import Client
from lem_client.render.transfer import TransferProgress
from lem_domain.tables import TableFormat, TableName

ONE = "backend: simulated\nmodel: m\n"


@pytest.fixture
def campaign(lem: Lem) -> str:
    """A campaign of one queued run."""
    found, _ = submitted(lem, ONE)
    return found


def left(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if "table" in one.name)


def test_a_table_becomes_a_file_in_the_format_of_its_suffix(lem: Lem, campaign: str, tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    answer = lem("export", "night", "--table", "runs", "-o", str(file))
    assert answer.code == 0, answer.err
    assert answer.err == "note: 1 runs are still queued or live; the table has the rows so far.\n"
    assert pq.read_table(file).column("run_state").to_pylist() == ["queued"]
    other = tmp_path / "table.txt"
    said = lem("export", campaign, "--table", "runs", "--format", "json", "--output", str(other), "--json").json
    assert (said["table"], said["format"], said["open_runs"], said["bytes"]) == (
        "runs",
        "json",
        1,
        other.stat().st_size,
    )
    assert left(tmp_path) == ["table.parquet", "table.txt"]
    answer = lem("export", campaign, "--table", "runs", "-o", str(other))
    assert answer.code == 2
    assert "exists already" in answer.err


def test_standard_output_gets_the_table_alone(lem: Lem, campaign: str) -> None:
    answer = lem("export", campaign, "--table", "runs")
    assert answer.code == 0, answer.err
    head, row = answer.out.splitlines()
    assert head.startswith('"campaign_id","experiment_id","experiment","run_id"')
    assert row.startswith(f'"{campaign}",')


def test_the_client_yields_and_writes_the_same_bytes(lem: Lem, campaign: str, tmp_path: Path) -> None:
    with Client() as client:
        parts = b"".join(client.table(campaign, TableName.EXPERIMENTS, form=TableFormat.JSONL))
        client.export_table(campaign, TableName.EXPERIMENTS, tmp_path / "table.jsonl", form=TableFormat.JSONL)
    assert (tmp_path / "table.jsonl").read_bytes() == parts
    assert parts.count(b"\n") > 10


def test_what_cannot_be_written_is_refused(lem: Lem, campaign: str, tmp_path: Path) -> None:
    both = ("--table", "runs", "--bundle", "x")
    for arguments in (("--table", "prices"), ("--table", "runs", "--format", "xlsx"), both):
        answer = lem("export", campaign, *arguments)
        assert (answer.code, answer.out) == (2, "")
    answer = lem("export", "cmp_" + "0" * 32, "--table", "runs", "-o", str(tmp_path / "table.csv"))
    assert (answer.code, left(tmp_path)) == (1, [])


def test_ctrl_c_leaves_no_file(lem: Lem, campaign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_self: TransferProgress, _count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TransferProgress, "add", interrupted)
    answer = lem("export", campaign, "--table", "runs", "-o", str(tmp_path / "table.csv"))
    assert (answer.code, left(tmp_path)) == (130, [])
    assert lem("export", campaign, "--table", "runs").code == 130


def test_a_table_that_breaks_off_leaves_no_file(
    lem: Lem, campaign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        yield b"a,b\n" * 50_000
        raise RuntimeError("evidence is damaged")

    monkeypatch.setattr("lem_server.exports.table_export.pieces", broken)
    answer = lem("export", campaign, "--table", "tokens", "-o", str(tmp_path / "table.csv"))
    assert (answer.code, left(tmp_path)) == (1, [])
    assert answer.err.startswith("error: the transfer ended before it was complete")
    answer = lem("export", campaign, "--table", "tokens")
    assert answer.code == 1


def test_the_python_examples_of_the_documentation_run(
    lem: Lem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign, _ = submitted(lem)
    for table in ("runs", "requests"):
        assert lem("export", campaign, "--table", table, "-o", str(tmp_path / f"{table}.parquet")).code == 0
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "exports.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "exports.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "night m2" in shown
    assert "energy.total_j J\n" in shown
