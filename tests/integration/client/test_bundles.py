"""`lemctl export` and `import`: files that are whole or not there, and one line for everything that can't be."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from factories.runs import complete, move
from factories.served import Lem, by_sql, submitted
from lem_client import AsyncClient, Client
from lem_client.render.transfer import TransferProgress, in_bytes
from lem_domain.bundle import verify
from lem_domain.errors import LemError
from lem_domain.states import ActorKind

ONE = "backend: simulated\nmodel: m\n"


@pytest.fixture
def campaign(lem: Lem, database_url: URL) -> str:
    """A campaign at rest."""
    found, (run,) = submitted(lem, ONE)
    by_sql(database_url, lambda engine: move(engine, run, "cancelled", actor=ActorKind.USER))
    return found


def left(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if "tar" in one.name)


def test_a_campaign_becomes_a_file(lem: Lem, campaign: str, tmp_path: Path) -> None:
    file = tmp_path / "night.lem.tar"
    answer = lem("export", "night", "--bundle", str(file))
    assert answer.code == 0, answer.err
    found = verify(io.BytesIO(file.read_bytes()))
    assert f"night ({campaign}): 1 experiments, 1 runs, 0 attempts" in answer.out
    assert f"bundle sha256 {found.sha256}" in answer.out
    assert left(tmp_path) == ["night.lem.tar"]
    said = lem("export", campaign, "--bundle", str(tmp_path / "again.tar"), "--json").json
    assert said["bundle_sha256"] == found.sha256
    assert said["campaign_id"] == campaign
    assert said["bytes"] == file.stat().st_size
    assert hashlib.sha256((tmp_path / "again.tar").read_bytes()).digest() == hashlib.sha256(file.read_bytes()).digest()


def test_a_file_that_is_there_is_kept(lem: Lem, campaign: str, tmp_path: Path) -> None:
    file = tmp_path / "night.tar"
    file.write_text("mine")
    answer = lem("export", campaign, "--bundle", str(file))
    assert (answer.code, file.read_text()) == (2, "mine")
    assert answer.err.startswith(f"error: {file} ")


def test_what_cannot_be_exported_leaves_no_file(lem: Lem, tmp_path: Path) -> None:
    queued, _ = submitted(lem, ONE)
    answer = lem("export", queued, "--bundle", str(tmp_path / "x.tar"))
    assert (answer.code, left(tmp_path)) == (1, [])
    assert answer.err.startswith("error: 1 runs of the campaign are still queued or live")
    answer = lem("export", queued, "--bundle", str(tmp_path / "nowhere" / "x.tar"))
    assert answer.code == 2
    assert "no file can be made in" in answer.err
    answer = lem("export", queued)
    assert answer.code == 2
    assert "--bundle FILE" in answer.err


def test_ctrl_c_leaves_no_file(lem: Lem, campaign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_self: TransferProgress, _count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TransferProgress, "add", interrupted)
    answer = lem("export", campaign, "--bundle", str(tmp_path / "x.tar"))
    assert (answer.code, left(tmp_path)) == (130, [])


def test_a_transfer_that_breaks_off_leaves_no_file(
    lem: Lem, database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, (run,) = submitted(lem, ONE)
    by_sql(database_url, lambda engine: complete(engine, run))
    monkeypatch.setattr("lem_server.exports.export_queries.next_attempt", _broken)
    answer = lem("export", campaign, "--bundle", str(tmp_path / "x.tar"))
    assert (answer.code, left(tmp_path)) == (1, [])
    assert answer.err.startswith("error: the transfer ended before")


async def _broken(*_: object, **__: object) -> None:
    raise RuntimeError("a page can't be read")


def test_where_it_was_submitted_it_is_not_imported(lem: Lem, campaign: str, tmp_path: Path) -> None:
    file = tmp_path / "night.tar"
    lem("export", campaign, "--bundle", str(file))
    answer = lem("import", str(file))
    assert answer.code == 1
    assert answer.err.startswith(f"error: {campaign} ") and "submitted" in answer.err and answer.err.count("\n") == 1


def test_a_file_that_is_damaged_is_not_even_sent(
    lem: Lem, campaign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "night.tar"
    lem("export", campaign, "--bundle", str(file))
    whole = file.read_bytes()
    monkeypatch.setenv("LEM_SERVER", "http://127.0.0.1:9")
    for content, sentence in (
        (whole[:-2048], "truncated"),
        (whole.replace(b'"night"', b'"nicht"', 1), "SHA256SUMS"),
        (b"name: x\n", "not a bundle"),
    ):
        file.write_bytes(content)
        answer = lem("import", str(file))
        assert answer.code == 2
        assert answer.err.startswith(f"error: {file}: ")
        assert sentence in answer.err
        assert answer.err.count("\n") == 1
    answer = lem("import", str(tmp_path / "none.tar"))
    assert (answer.code, answer.err) == (2, f"error: there is no file {tmp_path / 'none.tar'}; check the path\n")


@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same(lem: Lem, campaign: str, tmp_path: Path) -> None:
    with Client() as client:
        first = client.export_bundle(campaign, tmp_path / "one.tar")
    async with AsyncClient() as client:
        counted: list[int] = []
        assert await client.export_bundle(campaign, tmp_path / "two.tar", progress=counted.append) == first
        assert sum(counted) == (tmp_path / "two.tar").stat().st_size
        with pytest.raises(LemError, match="submitted"):
            await client.import_bundle(tmp_path / "two.tar")


def test_progress_is_a_line_every_ten_seconds_where_no_one_looks() -> None:
    times = iter([0.0, 5.0, 10.0, 11.0, 20.0])
    said = io.StringIO()
    with TransferProgress("sent", quiet=False, stream=said, clock=lambda: next(times)) as transfer:
        for _ in range(4):
            transfer.add(10**6)
    assert said.getvalue() == "2.0 MB sent, 200.0 kB/s\n4.0 MB sent, 200.0 kB/s\n"
    assert in_bytes(640) == "640 B"
